"""Sources by name: folders, ImageNet's tar files, prepared sets, and ways to get them wrong."""

import io
import json
import logging
import pickle
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.io import savemat

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import (
    ArraySource,
    BadRecord,
    Source,
    eval_batches,
    eval_transform,
    open_source,
    prepare,
)
from mnv2_jax.lab.data.readers import imagenet
from mnv2_jax.lab.data.sources import OPENERS
from tests.lab.data.pictures import encoded, photo
from tests.lab.data.test_archives import write_mnist


def refused(name, split="train", root=None) -> str:
    with pytest.raises(UsageError) as error:
        open_source(name, split, root)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unknown_names_list_the_choices():
    message = refused("digit")
    assert "did you mean 'digits'" in message
    assert all(name in message for name in OPENERS)
    assert "'trian': did you mean 'train'" in refused("digits", "trian")
    assert "takes no root" in refused("digits", root="somewhere")


@pytest.mark.parametrize("name", sorted(set(OPENERS) - {"digits", "fashion_mnist_small", "scenes"}))
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_set_says_what_is_missing_and_where_to_get_it(tmp_path, name, split):
    message = refused(name, split, str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in message
    ways = ("curl ", "wget ", "apt-get ", "https://image-net.org", "The layout is")
    assert any(way in message for way in ways)
    if name != "fashion_mnist":
        assert "root" in refused(name, split)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist_small"])
def test_a_source_pickles_and_indexes_like_its_arrays(name):
    source = open_source(name, "test")
    assert isinstance(source, Source)
    copy = pickle.loads(pickle.dumps(source))
    for index in (0, 7, np.int64(11), len(source) - 1):
        np.testing.assert_array_equal(copy[index]["image"], source.arrays()["image"][index])
        assert copy[index]["label"] == source.arrays()["label"][index]


def test_grain_reads_a_source():
    grain = pytest.importorskip("grain")
    dataset = grain.MapDataset.source(open_source("digits", "test"))
    assert len(dataset) == 360
    assert dataset[5]["image"].shape == (8, 8, 1)


def test_images_of_the_wrong_kind_are_refused():
    with pytest.raises(UsageError, match="must be uint8"):
        ArraySource(np.zeros((2, 8, 8)), np.zeros(2), ("a",))
    with pytest.raises(UsageError, match="must be uint8"):
        ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.zeros(3), ("a",))


def write_folder(root, split, classes=("ant", "bee"), images=3):
    for seed, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for i in range(images):
            pixels = photo(20 + i, 30, seed=seed)
            (root / split / name / f"{i}.jpg").write_bytes(encoded(pixels))


def test_folder(tmp_path):
    write_folder(tmp_path, "train")
    write_folder(tmp_path, "val", images=1)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "bee" / "a.PNG").write_bytes(encoded(photo(9, 8), "PNG"))
    train = pickle.loads(pickle.dumps(open_source("folder", "train", str(tmp_path))))
    assert train.classes == ("ant", "bee")
    assert train.arrays() is None
    assert [train[i]["label"] for i in range(len(train))] == [0, 0, 0, 1, 1, 1, 1]
    assert [train[i]["image"].shape for i in (0, 2, 6)] == [(20, 30, 3), (22, 30, 3), (9, 8, 3)]
    for split in ("test", "validation", "val"):
        assert len(open_source("folder", split, str(tmp_path))) == 2


def test_a_file_that_cannot_be_used_is_a_bad_record(tmp_path):
    write_folder(tmp_path, "train", images=4)
    (tmp_path / "train" / "ant" / "0.jpg").write_bytes(b"")
    (tmp_path / "train" / "ant" / "1.jpg").write_bytes(b"this is text")
    (tmp_path / "train" / "ant" / "2.jpg").unlink()
    (tmp_path / "train" / "ant" / "2.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "train" / "ant" / "3.jpg").unlink()
    (tmp_path / "train" / "ant" / "3.jpg").mkdir()
    source = open_source("folder", "train", str(tmp_path))
    for index, reason in enumerate(["empty", "cannot be decoded", "No such file", "folder"]):
        with pytest.raises(BadRecord, match=reason) as error:
            source[index]
        assert error.value.name.endswith(f"{index}.jpg")


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    root = str(tmp_path)
    assert "looked for" in refused("folder", "train", root)
    (tmp_path / "train").mkdir()
    assert "no class folders" in refused("folder", "train", root)
    write_folder(tmp_path, "val", ("ant", "cat"))
    (tmp_path / "train").rmdir()
    write_folder(tmp_path, "train")
    assert "-bee, +cat" in refused("folder", "train", root)
    assert "-cat, +bee" in refused("folder", "val", root)
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "bee")
    for file in (tmp_path / "train" / "bee").iterdir():
        file.unlink()
    assert "bee has no images" in refused("folder", "train", root)
    assert "unknown split" in refused("folder", "trian", root)


WORDNET = ("n02084071", "n01440764", "n03000000")  # ILSVRC2012 ids 1, 2, 3


def tar_bytes(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def devkit_bytes(truth) -> bytes:
    """The development kit's layout; meta.mat also lists inner nodes, which have children."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(i + 1, name, "words", 0) for i, name in enumerate(WORDNET)]
    rows.append((4, "n00001740", "entity", 3))
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kind).reshape(-1, 1)})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in (
            ("data/meta.mat", meta.getvalue()),
            ("data/ILSVRC2012_validation_ground_truth.txt", "\n".join(map(str, truth)).encode()),
        ):
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def write_imagenet(root, truth=(2, 1, 3, 1)):
    classes = {
        f"{name}.tar": tar_bytes(
            {f"{name}_{i}.JPEG": encoded(photo(10 + i, 20, seed=i + label)) for i in (2, 10)}
        )
        for label, name in enumerate(WORDNET)
    }
    (root / imagenet.TRAIN).write_bytes(tar_bytes(classes))
    images = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": encoded(photo(10 + i, 20)) for i in range(4)}
    shuffled = dict(sorted(images.items(), key=lambda item: item[0][-6]))
    (root / imagenet.TEST).write_bytes(tar_bytes(shuffled))
    (root / imagenet.DEVKIT).write_bytes(devkit_bytes(truth))


def test_imagenet(tmp_path):
    write_imagenet(tmp_path)
    for _ in range(2):  # the second time from the index beside the archive
        train = open_source("imagenet2012", "train", str(tmp_path))
        assert train.classes == ("n01440764", "n02084071", "n03000000")
        assert [train[i]["label"] for i in range(len(train))] == [0, 0, 1, 1, 2, 2]
        assert [train[i]["image"].shape[0] for i in range(len(train))] == [20, 12] * 3
        assert (tmp_path / f"{imagenet.TRAIN}.index.npz").exists()
    test = open_source("imagenet2012", "validation", str(tmp_path))
    assert [test[i]["label"] for i in range(4)] == [0, 1, 2, 1]
    assert [test[i]["image"].shape[0] for i in range(4)] == [10, 11, 12, 13]
    assert test.classes == train.classes
    copy = pickle.loads(pickle.dumps(test))
    with ThreadPoolExecutor(4) as pool:
        labels = list(pool.map(lambda i: copy[i % 4]["label"], range(40)))
    assert labels == [0, 1, 2, 1] * 10


def test_the_index_follows_the_archive(tmp_path, monkeypatch, caplog):
    write_imagenet(tmp_path)
    open_source("imagenet2012", "train", str(tmp_path))
    index = tmp_path / f"{imagenet.TRAIN}.index.npz"
    whole = index.read_bytes()
    for damaged in (b"", b"garbage", whole[: len(whole) // 2]):
        index.write_bytes(damaged)
        assert len(open_source("imagenet2012", "train", str(tmp_path))) == 6
    assert "ignoring the damaged index" in caplog.text
    one_class = {"n01440764.tar": tar_bytes({"n01440764_1.JPEG": encoded(photo())})}
    (tmp_path / imagenet.TRAIN).write_bytes(tar_bytes(one_class))
    assert len(open_source("imagenet2012", "train", str(tmp_path))) == 1
    assert not list(tmp_path.glob("*.part"))


def test_the_index_goes_to_the_cache_where_the_data_is_read_only(tmp_path, monkeypatch, caplog):
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    write_imagenet(data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    save = imagenet._save_index

    def refuse_beside(place, arrays):
        if place.parent == data:
            raise PermissionError("read-only")
        save(place, arrays)

    monkeypatch.setattr(imagenet, "_save_index", refuse_beside)
    with caplog.at_level(logging.INFO, "mnv2_jax"):
        for _ in range(2):
            assert len(open_source("imagenet2012", "train", str(data))) == 6
    assert len(list(cache.glob("mnv2_jax/*.index.npz"))) == 1
    assert caplog.text.count("indexing") == 1


def test_an_index_that_would_run_code_is_not_unpickled(tmp_path):
    write_imagenet(tmp_path)
    path = tmp_path / f"{imagenet.TRAIN}.index.npz"
    np.savez(path, stamp=np.array([{"object": 1}], dtype=object))
    assert len(open_source("imagenet2012", "train", str(tmp_path))) == 6


def test_imagenet_that_is_cut_short_is_refused(tmp_path):
    write_imagenet(tmp_path)
    root = str(tmp_path)
    (tmp_path / imagenet.DEVKIT).write_bytes(devkit_bytes((1, 2, 3)))
    assert "4 images and ILSVRC2012_devkit_t12.tar.gz 3 labels" in refused(
        "imagenet2012", "test", root
    )
    (tmp_path / imagenet.DEVKIT).write_bytes(devkit_bytes((1, 2, 3, 1001)))
    assert "no usable meta.mat" in refused("imagenet2012", "test", root)
    (tmp_path / imagenet.DEVKIT).write_bytes(devkit_bytes((1, 2, 3, 1))[:-30])
    assert "cannot be read" in refused("imagenet2012", "test", root)
    whole = (tmp_path / imagenet.TRAIN).read_bytes()
    (tmp_path / imagenet.TRAIN).write_bytes(whole[: len(whole) // 2 // 512 * 512])
    assert "is cut short" in refused("imagenet2012", "train", root)
    (tmp_path / imagenet.TRAIN).write_bytes((tmp_path / imagenet.TEST).read_bytes())
    assert "is no tar file of a class" in refused("imagenet2012", "train", root)


def test_an_archive_cut_after_it_was_opened_gives_bad_records(tmp_path):
    write_imagenet(tmp_path)
    source = open_source("imagenet2012", "test", str(tmp_path))
    (tmp_path / imagenet.TEST).write_bytes(b"")
    with pytest.raises(BadRecord, match="bytes are left"):
        source[0]


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
        assert "is no data set name" in refused(name, "train", str(tmp_path))


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
        ({"dataset_info": lambda c: b"{"}, "cannot be opened"),
        ({"features": lambda c: c.replace(b'"image"', b'"picture"', 1)}, "needs an image"),
        (
            {"features": lambda c: c.replace(b"tensorflow_datasets.core.features", b"os.path", 1)},
            "no feature",
        ),
        ({"dataset_info": lambda c: c.replace(b"array_record", b"tfrecord")}, "array_record"),
    ],
)
def test_damaged_metadata_is_refused(prepared, tmp_path, damage, message):
    root = copy_of(prepared[1], tmp_path, **damage)
    assert message in refused("tfds:fashion_mnist", "train", root)


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


def test_preparing_another_set_needs_tensorflow(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no set 'fashion_mnits'"):
        prepare("fashion_mnits", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    with pytest.raises(UsageError, match=r"needs TensorFlow.*mnv2_jax\[tf\]"):
        prepare("mnist", str(tmp_path))


def test_preparing_where_nothing_can_be_written(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot prepare fashion_mnist"):
        prepare("fashion_mnist", str(tmp_path / "file"), idx_root=str(tmp_path))
