"""VOC's layout, boxes and label maps: what was written comes back, and bad files are named."""

import logging
import os
import shutil
import xml.etree.ElementTree as xml

import numpy as np
import pytest
from PIL import Image

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import BadRecord, open_source, train_batches
from mnv2_jax.lab.data.readers.voc import VOC_CLASSES
from tests.lab.data.scene_files import some_scenes, write_voc


@pytest.fixture(scope="module")
def scenes():
    return some_scenes()


@pytest.fixture
def voc(scenes, tmp_path):
    write_voc(scenes, tmp_path)
    for kind in ("Main", "Segmentation"):  # without a list of val, a part would be held out
        shutil.copy(
            tmp_path / f"ImageSets/{kind}/train.txt", tmp_path / f"ImageSets/{kind}/val.txt"
        )
    return tmp_path


def refused(root, split="train"):
    with pytest.raises(UsageError) as error:
        open_source("voc", split, str(root))
    assert "\n" not in str(error.value) and str(root) in str(error.value)
    return str(error.value)


def test_boxes_that_were_written_are_read(scenes, tmp_path):
    write_voc(scenes, tmp_path, "val")
    source = open_source("voc", "test", str(tmp_path))
    assert source.classes == scenes.classes and len(source) == len(scenes)
    for i in range(len(scenes)):
        expected, record = scenes[i], source[i]
        real = expected["classes"] >= 0
        np.testing.assert_allclose(record["boxes"], expected["boxes"][real], atol=1e-6)
        np.testing.assert_array_equal(record["classes"], expected["classes"][real])
        # JPEG; two scenes differ by 40
        assert np.abs(record["image"].astype(int) - expected["image"]).mean() < 8


def test_vocs_own_classes_without_a_list_and_difficult_objects(voc, caplog):
    (voc / "classes.txt").unlink()
    for file in (voc / "Annotations").glob("*.xml"):
        tree = xml.parse(file)
        for entry in tree.getroot().iter("object"):
            entry.find("name").text = "cat"
            entry.find("difficult").text = "1"
        tree.write(file)
    with caplog.at_level(logging.WARNING, "mnv2_jax"):
        source = open_source("voc", "train", str(voc))
    assert source.classes == VOC_CLASSES and "difficult" in caplog.text
    assert all(len(source[i]["boxes"]) == 0 for i in range(5))


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("<xmin>", "<xmim>", "cannot be read as XML"),
        ("<xmin>", "<xmin>one", "object 0 has bndbox/xmin 'one"),
        ("<bndbox>", "<bndbox><xmin>1</xmin>", "object 0 has bndbox/xmin 2 times"),
        ("<name>", "<name>flying ", "is a 'flying "),
        ("<height>", "<height>-", "is 56.0x-40.0 pixels"),
        ("<height>40", "<height>nan", "is 56.0xnan pixels"),
        ("<width>56</width>", "", "the file has no size/width"),
    ],
)
def test_what_is_wrong_in_the_xml_is_named(voc, old, new, part):
    file = voc / "Annotations/000001.xml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    message = refused(voc)
    assert part in message and "000001.xml" in message


def test_lists_of_names_that_cannot_be_used(voc):
    assert "ImageSets/Main/trainval.txt" in refused(voc, "trainval")
    (voc / "ImageSets/Main/train.txt").write_text("../../secret\n")
    assert "no path" in refused(voc)
    (voc / "ImageSets/Main/train.txt").write_text("gone\n")
    assert "gone.xml" in refused(voc)
    (voc / "classes.txt").write_text("a\na\n")
    assert "classes.txt" in refused(voc)


def test_label_maps_that_were_written_are_read(scenes, voc):
    source = open_source("voc_segmentation", "train", str(voc))
    assert source.pixel_classes == ("background", *scenes.classes) and len(source) == len(scenes)
    for i in range(len(scenes)):
        np.testing.assert_array_equal(source[i]["label"], scenes[i]["label"])
        assert source[i]["image"].shape == (40, 56, 3)


def write_label(voc, values, mode="L"):
    Image.fromarray(values, mode).save(voc / "SegmentationClass/000001.png")


@pytest.mark.parametrize(
    ("values", "mode", "message"),
    [
        (np.full((40, 56), 11, np.uint8), "L", "label 11 where the classes are 0 to 10"),
        (np.zeros((40, 57), np.uint8), "L", "a label map of 57x40 pixels for an image of 56x40"),
        (np.zeros((40, 56, 3), np.uint8), "RGB", "mode RGB is not a label map"),
    ],
)
def test_maps_that_cannot_be_used_are_bad_records(voc, values, mode, message):
    write_label(voc, values, mode)
    source = open_source("voc_segmentation", "train", str(voc))
    with pytest.raises(BadRecord, match=message) as error:
        source[1]
    assert "000001.png" in str(error.value)
    assert source[0]["label"].dtype == np.uint8


def test_a_bad_map_is_masked_in_training(voc):
    (voc / "SegmentationClass/000001.png").write_bytes(b"none")
    source = open_source("voc_segmentation", "train", str(voc))
    rows = next(train_batches(source, batch_size=4, seed=0))
    assert rows["label"].shape == (4, 40, 56) and rows["label"].dtype == np.uint8
    np.testing.assert_array_equal(rows["mask"], rows["id"] != 1)


def test_missing_files_and_lists_are_named(voc):
    (voc / "SegmentationClass/000002.png").unlink()
    with pytest.raises(UsageError, match=r"000002.png is missing"):
        open_source("voc_segmentation", "train", str(voc))
    with pytest.raises(UsageError, match=r"ImageSets/Segmentation/trainaug.txt"):
        open_source("voc_segmentation", "trainaug", str(voc))


def write_list(voc, content, kind="Main"):
    data = content if isinstance(content, bytes) else content.encode()
    (voc / "ImageSets" / kind / "train.txt").write_bytes(data)


def names_of(source):
    return [path.name for path, *_ in source._read.args[0]]


@pytest.mark.parametrize(
    "content",
    [
        "a cat 1\n000002\n",
        "\ufeffa cat 1\r\n\r\n  000002  \r\n",
        "a cat 1.jpg\n000002.jpg\n",
        "a cat 1 -1\n000002  1\n",
        "a cat 1\t1\n000002\t-1\n",
        "a cat 1\r000002",
        "a cat 1\n000002\n".encode("utf-16"),
    ],
)
def test_lists_as_people_have_them(voc, content):
    for folder, ending in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (voc / folder / f"000001.{ending}").rename(voc / folder / f"a cat 1.{ending}")
    write_list(voc, content)
    source = open_source("voc", "train", str(voc))
    assert names_of(source) == ["a cat 1.jpg", "000002.jpg"] and source[0]["boxes"].size


@pytest.mark.parametrize("ending", [".JPG", ".png", ".jpeg", ".PNG", ".bmp"])
def test_images_of_other_endings(voc, ending):
    picture = voc / "JPEGImages/000001.jpg"
    Image.open(picture).save(voc / f"JPEGImages/000001{ending}")
    picture.unlink()
    assert open_source("voc", "train", str(voc))[1]["image"].shape == (40, 56, 3)
    assert open_source("voc_segmentation", "train", str(voc))[1]["image"].shape == (40, 56, 3)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("000001\n000002\n000001\n", "train.txt lists '000001' twice, as number 1 and 3"),
        ("000001.jpg\n000001\n", "lists '000001' twice, as number 1 and 2"),
        (b"\xc3\x28", "not text in UTF-8"),
        (b"\0\0\0\0", "train.txt"),
        ("x" * 300, "File name too long"),
        ("\n\n", "train.txt lists None"),
    ],
)
def test_lists_that_cannot_be_meant(voc, content, part):
    write_list(voc, content)
    assert part in refused(voc)


def test_sets_without_lists_are_shared(scenes, voc):
    """Here in the folder that VOC's archive has around it."""
    shutil.rmtree(voc / "ImageSets")
    top = voc / "VOCdevkit/VOC2012"
    top.mkdir(parents=True)
    for folder in ("Annotations", "JPEGImages", "SegmentationClass", "classes.txt"):
        (voc / folder).rename(top / folder)
    train, held_out = (open_source("voc", split, str(voc)) for split in ("train", "val"))
    assert sorted(names_of(train) + names_of(held_out)) == [f"{i:06}.jpg" for i in range(5)]
    assert train.classes == held_out.classes == scenes.classes
    assert len(open_source("voc_segmentation", "test", str(voc))) == len(held_out) > 0


@pytest.mark.parametrize(
    "head",
    [
        "<?xml version='1.0' encoding='utf-99'?>",
        "<?xml version='1.0' encoding='utf-16'?>",
        "<?xml version='1.0' encoding='shift_jis'?>",
        "<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;'>]><y>&b;",
        "<a>" * 100_000,
        "\0",
    ],
)
def test_xml_that_is_odd_is_refused(voc, head):
    file = voc / "Annotations/000001.xml"
    file.write_text(head + file.read_text())
    assert "000001.xml" in refused(voc)


def test_files_that_are_none(voc):
    file = voc / "Annotations/000001.xml"
    for make in (os.mkfifo, lambda f: os.symlink("/dev/zero", f), lambda f: os.symlink(f, f)):
        file.unlink()
        make(file)
        assert "000001.xml" in refused(voc)
    (voc / "classes.txt").unlink()
    os.mkfifo(voc / "classes.txt")
    assert "classes.txt' is not a regular file" in refused(voc)


def test_classes_that_are_listed_twice_or_written_in_two_forms(voc):
    file = voc / "classes.txt"
    names = file.read_text()
    file.write_text(f"\ufeff{names}")
    assert open_source("voc", "train", str(voc)).classes == tuple(names.split("\n")[:-1])
    file.write_text("cafe\u0301\ndog\ncaf\xe9\n")
    assert "lists 'caf\xe9' twice, as number 1 and 3" in refused(voc)
