"""Sets with label maps that TensorFlow Datasets has prepared."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import BadRecord, eval_batches, open_source
from mnv2_jax.lab.data.joint_transforms import segmentation_eval, segmentation_train
from tests.lab.data.prepared_sets import encoded, prepare

IMAGE = tfds.features.Image(shape=(None, None, 3))
MAP = tfds.features.Image(shape=(None, None, 1))


def pairs(values, count=3, shape=(10, 14)):
    """Random images and maps with these values."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape, 3), np.uint8)
    return images, rng.choice(np.array(values, np.uint8), (count, *shape))


def rows(images, maps, image="image", mask="segmentation_mask", **others):
    return [
        {image: encoded(pixels), mask: encoded(labels), **others}
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
    prepare(tmp_path, "named", features, rows(images, maps, mask="segmentation_label"))
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
    prepare(tmp_path, "bare", {"image": IMAGE, "segmentation_mask": MAP}, rows(images, maps))
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
    prepare(tmp_path, "oxford_iiit_pet", features, rows(images, maps, label=1))
    labelled = open_source("tfds:oxford_iiit_pet", "train", str(tmp_path))
    assert labelled.classes == ("cat", "dog") and labelled[0]["label"] == 1
    source = open_source("tfds_masks:oxford_iiit_pet", "train", str(tmp_path))
    assert source.classes == ("pet", "background", "border")
    check(source, images, np.where(maps == 0, 255, maps - 1))


def test_cityscapes_is_read_as_it_is_evaluated(tmp_path):
    images, maps = pairs([7, 33, 26, 4])  # road, bicycle, car, and what does not count
    features = {"image_left": IMAGE, "segmentation_label": MAP, "image_id": tfds.features.Text()}
    records = rows(images, maps, "image_left", "segmentation_label", image_id="x")
    prepare(tmp_path, "cityscapes", features, records)
    source = open_source("tfds:cityscapes", "train", str(tmp_path))
    assert len(source.classes) == 19 and source.classes[13] == "car"
    expected = np.select([maps == 7, maps == 33, maps == 26], [0, 18, 13], 255)
    check(source, images, expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((10, 13), np.uint8), "a map of 13x10 pixels, and its image of 14x10"),
        (np.zeros((10, 14, 3), np.uint8), "mode RGB, and no map of labels"),
        (np.zeros((10, 14), np.uint16), "and no map of labels"),
    ],
)
def test_what_is_no_map_is_a_bad_record(tmp_path, labels, message):
    images, _ = pairs([0], count=1)
    labeled = tfds.features.LabeledImage(labels=2, shape=(None, None, 1))
    prepare(tmp_path, "odd", {"image": IMAGE, "mask": labeled}, rows(images, [labels], mask="mask"))
    source = open_source("tfds:odd", "train", str(tmp_path))
    assert source.classes == ("0", "1")
    with pytest.raises(BadRecord, match=message):
        source[0]


def test_a_set_without_maps_is_refused(tmp_path):
    images, _ = pairs([0], count=1)
    features = {"image": IMAGE, "label": tfds.features.ClassLabel(num_classes=2)}
    prepare(tmp_path, "flat", features, [{"image": encoded(images[0]), "label": 0}])
    with pytest.raises(UsageError, match=r"needs an image and a map of labels"):
        open_source("tfds_masks:flat", "train", str(tmp_path))
