"""Folders of images, one a class, and ways to get them wrong."""

import pickle

import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import BadRecord, open_source
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
    (tmp_path / "train" / "ant" / "3.jpg").mkdir()
    source = open_source("folder", "train", str(tmp_path))
    for index, reason in enumerate(["empty", "cannot be decoded", "No such file", "folder"]):
        with pytest.raises(BadRecord, match=reason) as error:
            source[index]
        assert error.value.name.endswith(f"{index}.jpg")


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    root = str(tmp_path)
    assert "looked for" in refused(root, "train")
    (tmp_path / "train").mkdir()
    assert "no class folders" in refused(root, "train")
    write_folder(tmp_path, "val", ("ant", "cat"))
    (tmp_path / "train").rmdir()
    write_folder(tmp_path, "train")
    assert "-bee, +cat" in refused(root, "train")
    assert "-cat, +bee" in refused(root, "val")
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "bee")
    for file in (tmp_path / "train" / "bee").iterdir():
        file.unlink()
    assert "bee has no images" in refused(root, "train")
    assert "unknown split" in refused(root, "trian")
