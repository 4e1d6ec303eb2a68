"""Folders of images, one a class, and ways to get them wrong."""

import os
import pickle

import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import BadRecord, open_source, summary
from tests.lab.data.pictures import encoded, photo


def refused(root, split="train") -> str:
    with pytest.raises(UsageError) as error:
        open_source("folder", split, root)
    assert "\n" not in str(error.value)
    return str(error.value)


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
    os.mkfifo(tmp_path / "train" / "ant" / "3.jpg")
    write_folder(tmp_path, "val", images=1)
    source = open_source("folder", "train", str(tmp_path))
    reasons = ["empty", "cannot be decoded", "No such file", "not a regular file"]
    for index, reason in enumerate(reasons):
        with pytest.raises(BadRecord, match=reason) as error:
            source[index]
        assert error.value.name.endswith(f"{index}.jpg")


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    root = str(tmp_path)
    assert "no images for the split 'train'" in refused(root, "train")
    write_folder(tmp_path, "val", ("ant", "cat"))
    assert "no images for the split 'train'" in refused(root, "train")
    (tmp_path / "train").mkdir()
    assert "no class folders" in refused(root, "train")
    write_folder(tmp_path, "train")
    assert "lacks: +cat" in refused(root, "val") and len(open_source("folder", "train", root)) == 6
    for file in (tmp_path / "train" / "bee").iterdir():
        file.unlink()
    assert "bee has no images" in refused(root, "train")
    assert "unknown split" in refused(root, "trian")


def files_of(source):
    """The files that a source reads, by class."""
    _, files, labels = source._read.args
    return [(source.classes[label], file) for label, file in zip(labels, files, strict=True)]


def test_images_at_any_depth_and_of_every_ending_are_read_and_the_rest_is_told(tmp_path, caplog):
    write_folder(tmp_path, "train", images=1)
    write_folder(tmp_path, "val", images=1)
    ant = tmp_path / "train/ant"
    (ant / "day/one").mkdir(parents=True)
    jpeg = encoded(photo(9, 8))
    for name in ("day/a.jfif", "day/one/b.JPE", "c.dib", "d.PGM", "e.pjpeg"):
        (ant / name).write_bytes(jpeg)
    for name in ("notes.txt", "more.TXT", "f.heic", "LICENSE", ".DS_Store", "._a.jpg"):
        (ant / name).write_bytes(b"x")
    (tmp_path / "train/stray.jpg").write_bytes(jpeg)
    (ant / "loop").symlink_to(ant)
    (ant / "self.jpg").symlink_to("self.jpg")
    source = open_source("folder", "train", str(tmp_path))
    names = [file for kind, file in files_of(source) if kind == "ant"]
    expected = ["0.jpg", "c.dib", "d.PGM", "day/a.jfif", "day/one/b.JPE", "e.pjpeg", "self.jpg"]
    assert names == [f"ant/{name}" for name in expected]
    assert source[3]["image"].shape == (9, 8, 3)
    assert source.left_out == {
        ".txt files": 2, ".heic files": 1, "files without an ending": 1, "folders met twice": 1,
        ".jpg files in no class": 1,
    }  # fmt: skip
    assert f"train of {tmp_path}: left out: 1 .heic files" in caplog.text
    assert summary(source) == "8 images, 2 classes, from 1 ('bee') to 7 ('ant')"
    with pytest.raises(BadRecord, match="Too many levels of symbolic links"):
        source[6]


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("train", "valid"), ("Train", "Validation"), ("training", "VAL"), ("TRAIN", "testing")],
)
def test_splits_by_the_names_that_people_give_them(tmp_path, train, held_out):
    write_folder(tmp_path / "wrapped", train, images=2)
    write_folder(tmp_path / "wrapped", held_out, images=1)
    sizes = [len(open_source("folder", s, str(tmp_path))) for s in ("train", "val", "test")]
    assert sizes == [4, 2, 2]


def test_val_is_watched_test_is_left_alone_and_val_may_lack_a_class(tmp_path):
    write_folder(tmp_path, "train", ("ant", "bee", "cow"))
    write_folder(tmp_path, "val", ("ant", "cow"), images=1)
    write_folder(tmp_path, "test", ("zebra",), images=1)  # of no concern to a training
    train, val = (open_source("folder", split, str(tmp_path)) for split in ("train", "val"))
    assert train.classes == val.classes == ("ant", "bee", "cow")
    assert [val[i]["label"] for i in range(len(val))] == [0, 2] and val.counts == [1, 0, 1]
    assert "lacks: +zebra" in refused(str(tmp_path), "test")


@pytest.mark.parametrize("split", ["", "train"])
def test_a_set_without_a_split_holds_out_the_same_fifth_wherever_it_lies(tmp_path, split):
    for place in ("a", "b"):
        write_folder(tmp_path / place, split, images=40)
    parts = [files_of(open_source("folder", s, str(tmp_path / "a"))) for s in ("train", "val")]
    assert parts == [
        files_of(open_source("folder", s, str(tmp_path / "b"))) for s in ("train", "test")
    ]
    assert not {*parts[0]} & {*parts[1]} and len(parts[0]) + len(parts[1]) == 80
    assert 8 <= len(parts[1]) <= 24 and {kind for kind, _ in parts[1]} == {"ant", "bee"}
    (tmp_path / "a" / split / "ant/new.jpg").write_bytes(encoded(photo()))
    again = files_of(open_source("folder", "val", str(tmp_path / "a")))
    assert {*again} - {("ant", "ant/new.jpg")} == {*parts[1]}


@pytest.mark.parametrize(
    "names", [("train_set", "test_set"), ("seg_train", "seg_test", "seg_pred")]
)
def test_splits_by_other_names_are_no_classes(tmp_path, names):
    for name in names:
        write_folder(tmp_path / "all", name, images=1)
    assert "which tell of splits" in refused(str(tmp_path))


def test_folders_of_two_images_a_class_have_one_on_either_side(tmp_path):
    write_folder(tmp_path, "", images=2)
    assert [len(open_source("folder", s, str(tmp_path))) for s in ("train", "val")] == [2, 2]
    write_folder(tmp_path / "one", "", ("cat",))
    assert "and two are needed" in refused(str(tmp_path / "one"))


def test_class_names_that_are_not_utf8_or_composed_otherwise(tmp_path):
    """The names on disk stay; classes can be compared, printed and written."""
    write_folder(tmp_path, "train", ("cafe\u0301", "na\nme", "x\udce9"), images=1)
    write_folder(tmp_path, "val", ("caf\xe9", "x\udce9"), images=1)
    for split in ("train", "val"):
        source = open_source("folder", split, str(tmp_path))
        assert source.classes == ("caf\xe9", "na\\nme", "x\\udce9")
        assert all(source[i]["image"].size for i in range(len(source)))
    write_folder(tmp_path, "train", ("caf\xe9",), images=1)
    assert "two folders of the class 'caf\xe9'" in refused(str(tmp_path))


def test_roots_that_are_none(tmp_path):
    for root in ("x" * 300, f"{tmp_path}/{'y' * 5000}", "a\0b", str(tmp_path / "loop"), ""):
        refused(root)
