"""VOC's layout, boxes and label maps: what was written comes back, and bad files are named."""

import logging
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
        ("<bndbox>", "<bndbox><xmin>one</xmin>", "object 0 has bndbox/xmin 'one'"),
        ("<name>", "<name>flying ", "is a 'flying "),
        ("<height>", "<height>-", "size/height -40"),
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
