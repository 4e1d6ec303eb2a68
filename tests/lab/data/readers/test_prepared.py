"""Sets that TensorFlow Datasets has prepared: labels, boxes, label maps, and damaged ones."""

import json
import os
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import (
    BadRecord,
    eval_batches,
    eval_transform,
    open_source,
    prepare,
    segmentation_eval,
    segmentation_train,
)
from mnv2_jax.lab.data.scenes import Scenes
from tests.lab.data.pictures import write_mnist
from tests.lab.data.prepared_sets import as_file, write_prepared


def refused(name, split="train", root=None) -> str:
    with pytest.raises(UsageError) as error:
        open_source(name, split, root)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Fashion-MNIST of 12 and 5 random images, prepared without TensorFlow."""
    root = tmp_path_factory.mktemp("prepared")
    written = write_mnist(root)
    folder = prepare("fashion_mnist", str(root), idx_root=str(root))
    return root, folder, written


def test_prepared_sets_are_read_without_tensorflow(prepared):
    root, folder, written = prepared
    assert folder == root / "fashion_mnist" / "3.0.1"
    for name in ("tfds:fashion_mnist", "tfds:fashion_mnist:3.0.1"):
        for split, of in (("train", "train"), ("test", "test"), ("validation", "test")):
            source = open_source(name, split, str(root))
            images, labels = written[of]
            records = [source[i] for i in range(len(source))]
            found = sorted((r["label"], r["image"].tobytes()) for r in records)
            pixels = (image.astype(np.uint8).tobytes() for image in images)
            assert found == sorted(zip(labels.tolist(), pixels, strict=True))
            assert {record["image"].shape for record in records} == {(28, 28, 1)}
    assert source.classes[9] == "ankle boot"
    assert len(pickle.loads(pickle.dumps(source))) == 5
    batches = list(eval_batches(source, batch_size=4, transform=eval_transform(28), threads=2))
    assert [batch["mask"].sum() for batch in batches] == [4, 1]


def test_prepared_splits_can_be_sliced(prepared):
    root = str(prepared[0])
    parts = [open_source("tfds:fashion_mnist", s, root) for s in ("train[:75%]", "train[75%:]")]
    assert [len(part) for part in parts] == [9, 3]
    assert "did you mean 'train'" in refused("tfds:fashion_mnist", "trian", root)
    assert "cannot be read" in refused("tfds:fashion_mnist", "train[oops]", root)


def test_sets_that_are_not_prepared_say_how_to_prepare_them(prepared, tmp_path):
    assert "mnv2 prepare nowhere" in refused("tfds:nowhere", "train", str(tmp_path))
    assert "has no 9.9.9" in refused("tfds:fashion_mnist:9.9.9", "train", str(prepared[0]))
    for name in ("tfds:../x", "tfds:", "tfds:a b", "tfds:/etc"):
        assert "is not the name of a data set" in refused(name, "train", str(tmp_path))


def copy_of(folder, to, **replace):
    to = to / "fashion_mnist" / "3.0.1"
    to.mkdir(parents=True)
    for file in folder.iterdir():
        content = file.read_bytes()
        (to / file.name).write_bytes(replace.get(file.name.split(".")[0], lambda c: c)(content))
    return str(to.parent.parent)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"features": lambda c: b"{"}, "cannot be read"),
        ({"dataset_info": lambda c: b"{"}, "cannot be read"),
        ({"dataset_info": lambda c: b"[]"}, "cannot be opened"),
        ({"features": lambda c: c.replace(b'"image"', b'"picture"', 1)}, "needs an image"),
        (
            {"features": lambda c: c.replace(b"tensorflow_datasets.core.features", b"os.path", 1)},
            "not a feature",
        ),
        ({"dataset_info": lambda c: c.replace(b"array_record", b"tfrecord")}, "array_record"),
    ],
)
def test_damaged_metadata_is_refused(prepared, tmp_path, damage, message):
    root = copy_of(prepared[1], tmp_path, **damage)
    assert message in refused("tfds:fashion_mnist", "train", root)


def test_pipes_in_place_of_metadata_and_shards_are_not_waited_for(prepared, tmp_path):
    root = copy_of(prepared[1], tmp_path)
    for file in sorted((tmp_path / "fashion_mnist" / "3.0.1").iterdir(), reverse=True):
        if file.name != "label.labels.txt":
            file.unlink()
            os.mkfifo(file)
            message = refused("tfds:fashion_mnist", "train", root)
            assert "3.0.1" in message or file.name in message


def test_features_are_checked_in_every_spelling(prepared, tmp_path):
    features = json.loads((prepared[1] / "features.json").read_text())
    features["featuresDict"]["features"]["image"] |= {"python_class_name": "antigravity.Image"}
    root = copy_of(prepared[1], tmp_path, features=lambda c: json.dumps(features).encode())
    assert "antigravity.Image" in refused("tfds:fashion_mnist", "train", root)


def test_missing_and_damaged_shards(prepared, tmp_path):
    root = copy_of(prepared[1], tmp_path)
    (shard,) = (tmp_path / "fashion_mnist" / "3.0.1").glob("*-train.array_record*")
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(BadRecord, match="cannot be read"):
        open_source("tfds:fashion_mnist", "train", root)[0]
    shard.unlink()
    assert "cannot be read" in refused("tfds:fashion_mnist", "train", root)


OBJECT = {
    "bbox": tfds.features.BBoxFeature(),
    "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
    "is_crowd": np.bool_,
}


def an_object(box, label, crowd=False):
    return {"bbox": tfds.features.BBox(*box), "label": label, "is_crowd": crowd}


def test_objects_come_back_with_crowds_marked(tmp_path):
    scenes = Scenes(open_source("fashion_mnist_small", "test"), 4, (24, 40), max_objects=3)
    objects = [
        [an_object((0.0, 0.25, 0.5, 1.0), 2), an_object((0.0, 0.0, 1.0, 1.0), 1, True)],
        [],
        [an_object((0.125, 0.5, 0.25, 0.75), 0), an_object((0.5, 0.5, 0.5, 0.75), 0)],
        [an_object((0.0, 0.0, 1.0, 0.5), 1)],
    ]
    records = [
        {"image": as_file(scenes[i]["image"]), "objects": found} for i, found in enumerate(objects)
    ]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "objects": tfds.features.Sequence(OBJECT),
    }
    write_prepared(tmp_path, "boxed", features, records)
    source = open_source("tfds:boxed", "train", str(tmp_path))
    assert source.classes == ("a", "b", "c") and len(source) == 4 and source.arrays() is None
    expected = {  # tfds shuffles what it writes, so images tell the records apart
        scenes[0]["image"].tobytes(): ([[0, 0.25, 0.5, 1], [0, 0, 1, 1]], [2, -3]),
        scenes[1]["image"].tobytes(): (np.zeros((0, 4)), []),
        scenes[2]["image"].tobytes(): ([[0.125, 0.5, 0.25, 0.75]], [0]),
        scenes[3]["image"].tobytes(): ([[0, 0, 1, 0.5]], [1]),
    }
    for i in range(4):
        record = source[i]
        boxes, classes = expected.pop(record["image"].tobytes())
        np.testing.assert_allclose(record["boxes"], boxes)
        assert record["classes"].tolist() == classes
    assert not expected
    read, (_, *others) = source._read.func, source._read.args
    for damaged in (
        {"image": b"none", "objects": {"bbox": [], "label": []}},
        {"image": as_file(scenes[0]["image"]).read(), "objects": {"bbox": [[0, 0, 1, 1]]}},
    ):
        with pytest.raises(BadRecord, match="record 0"):
            read([damaged], *others, 0)


def test_a_set_with_neither_labels_nor_boxes_is_refused(tmp_path):
    image = tfds.features.Image(shape=(None, None, 3))
    records = [{"image": as_file(np.zeros((4, 4, 3), np.uint8)), "caption": "x"}]
    write_prepared(
        tmp_path, "captioned", {"image": image, "caption": tfds.features.Text()}, records
    )
    with pytest.raises(
        UsageError, match="a label, objects with bbox and label, or a label map"
    ) as error:
        open_source("tfds:captioned", "train", str(tmp_path))
    assert "\n" not in str(error.value)


IMAGE = tfds.features.Image(shape=(None, None, 3))


MAP = tfds.features.Image(shape=(None, None, 1))


def pairs(values, count=3, shape=(10, 14)):
    """Random images and maps with these values."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape, 3), np.uint8)
    return images, rng.choice(np.array(values, np.uint8), (count, *shape))


def rows(images, maps, image="image", mask="segmentation_mask", **others):
    return [
        {image: as_file(pixels), mask: as_file(labels), **others}
        for pixels, labels in zip(images, maps, strict=True)
    ]


def check(source, images, labels):
    """The set is shuffled when it is written, so images tell the records apart."""
    left = {pixels.tobytes(): label for pixels, label in zip(images, labels, strict=True)}
    for i in range(len(images)):
        record = source[i]
        np.testing.assert_array_equal(record["label"], left.pop(record["image"].tobytes()))
    assert not left and len(source) == len(images)


def test_named_maps_come_back(tmp_path):
    images, maps = pairs([0, 1, 2, 255])
    labeled = tfds.features.LabeledImage(labels=["background", "a", "b"], shape=(None, None, 1))
    features = {"image": IMAGE, "segmentation_label": labeled}
    write_prepared(tmp_path, "named", features, rows(images, maps, mask="segmentation_label"))
    source = open_source("tfds:named", "train", str(tmp_path))
    assert source.classes == source.pixel_classes == ("background", "a", "b")
    assert source.arrays() is None
    check(source, images, maps)
    found = segmentation_train(8)(source[0], np.random.default_rng(0))
    assert found["image"].shape == (8, 8, 3) and found["label"].shape == (8, 8)
    (batch,) = eval_batches(source, batch_size=4, transform=segmentation_eval(16))
    assert batch["label"].shape == (4, 16, 16) and batch["mask"].tolist() == [1, 1, 1, 0]


def test_a_file_names_what_the_set_does_not(tmp_path):
    images, maps = pairs([0, 1])
    write_prepared(tmp_path, "bare", {"image": IMAGE, "segmentation_mask": MAP}, rows(images, maps))
    place = tmp_path / "bare" / "1.0.0" / "pixel_classes.txt"
    with pytest.raises(UsageError, match=r"what the values in 'segmentation_mask' mean") as error:
        open_source("tfds:bare", "train", str(tmp_path))
    assert str(place) in str(error.value) and "\n" not in str(error.value)
    place.write_text("sky\nground\n")
    source = open_source("tfds:bare", "train", str(tmp_path))
    assert source.classes == ("sky", "ground")
    check(source, images, maps)
    place.write_text("sky\n")
    source = open_source("tfds:bare", "train", str(tmp_path))
    with pytest.raises(BadRecord, match=r"record \d: label 1 where the classes are 0 to 0"):
        [source[i] for i in range(3)]


def test_pets_have_labels_and_maps(tmp_path):
    """Two data sets in one; the maps count from 1, as their documentation says."""
    images, maps = pairs([1, 2, 3, 0])
    features = {
        "image": IMAGE,
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        "segmentation_mask": MAP,
    }
    write_prepared(tmp_path, "oxford_iiit_pet", features, rows(images, maps, label=1))
    labelled = open_source("tfds:oxford_iiit_pet", "train", str(tmp_path))
    assert labelled.classes == ("cat", "dog") and labelled[0]["label"] == 1
    source = open_source("tfds_masks:oxford_iiit_pet", "train", str(tmp_path))
    assert source.classes == ("pet", "background", "border")
    check(source, images, np.where(maps == 0, 255, maps - 1))


def test_cityscapes_is_read_as_it_is_evaluated(tmp_path):
    images, maps = pairs([7, 33, 26, 4])  # road, bicycle, car, and what does not count
    features = {"image_left": IMAGE, "segmentation_label": MAP, "image_id": tfds.features.Text()}
    records = rows(images, maps, "image_left", "segmentation_label", image_id="x")
    write_prepared(tmp_path, "cityscapes", features, records)
    source = open_source("tfds:cityscapes", "train", str(tmp_path))
    assert len(source.classes) == 19 and source.classes[13] == "car"
    expected = np.select([maps == 7, maps == 33, maps == 26], [0, 18, 13], 255)
    check(source, images, expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((10, 13), np.uint8), "a label map of 13x10 pixels for an image of 14x10"),
        (np.zeros((10, 14, 3), np.uint8), "mode RGB is not a label map"),
        (np.zeros((10, 14), np.uint16), "is not a label map"),
    ],
)
def test_what_is_no_map_is_a_bad_record(tmp_path, labels, message):
    images, _ = pairs([0], count=1)
    labeled = tfds.features.LabeledImage(labels=2, shape=(None, None, 1))
    write_prepared(
        tmp_path, "odd", {"image": IMAGE, "mask": labeled}, rows(images, [labels], mask="mask")
    )
    source = open_source("tfds:odd", "train", str(tmp_path))
    assert source.classes == ("0", "1")
    with pytest.raises(BadRecord, match=message):
        source[0]


def test_a_set_without_maps_is_refused(tmp_path):
    images, _ = pairs([0], count=1)
    features = {"image": IMAGE, "label": tfds.features.ClassLabel(num_classes=2)}
    write_prepared(tmp_path, "flat", features, [{"image": as_file(images[0]), "label": 0}])
    with pytest.raises(UsageError, match=r"needs an image and a label map"):
        open_source("tfds_masks:flat", "train", str(tmp_path))
