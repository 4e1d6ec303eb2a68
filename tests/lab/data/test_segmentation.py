"""Label maps in VOC's and Cityscapes' layouts, read back from files, and bad ones named."""

import numpy as np
import pytest
from PIL import Image

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import BadRecord, open_source, train_batches
from mnv2_jax.lab.data.readers.segmentation import CITYSCAPES
from mnv2_jax.lab.data.scenes import Scenes, write_voc


@pytest.fixture(scope="module")
def scenes():
    return Scenes(open_source("fashion_mnist_small", "test"), 4, (40, 56), max_objects=3)


@pytest.fixture
def voc(scenes, tmp_path):
    write_voc(scenes, tmp_path)
    return tmp_path


def test_what_was_written_is_read(scenes, voc):
    source = open_source("voc_segmentation", "train", str(voc))
    assert source.pixel_classes == ("background", *scenes.classes) and len(source) == 4
    for i in range(4):
        np.testing.assert_array_equal(source[i]["label"], scenes[i]["label"])
        assert source[i]["image"].shape == (40, 56, 3)


def write_label(voc, values, mode="L"):
    Image.fromarray(values, mode).save(voc / "SegmentationClass/000001.png")


@pytest.mark.parametrize(
    ("values", "mode", "message"),
    [
        (np.full((40, 56), 11, np.uint8), "L", "label 11 where the classes are 0 to 10"),
        (np.zeros((40, 57), np.uint8), "L", "57x40 pixels, and its image 56x40"),
        (np.zeros((40, 56, 3), np.uint8), "RGB", "mode RGB, and no map of labels"),
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


def test_cityscapes_counts_nineteen_of_its_values(tmp_path):
    values = np.arange(34, dtype=np.uint8).reshape(2, 17)
    for part, name, content in (
        ("leftImg8bit", "leftImg8bit", np.zeros((2, 17, 3), np.uint8)),
        ("gtFine", "gtFine_labelIds", values),
    ):
        folder = tmp_path / part / "val" / "bonn"
        folder.mkdir(parents=True)
        Image.fromarray(content).save(folder / f"bonn_000001_000019_{name}.png")
    source = open_source("cityscapes", "test", str(tmp_path))
    label = source[0]["label"].ravel()
    assert len(source.pixel_classes) == 19
    # From the table of the data set's own scripts.
    assert {v: int(label[v]) for v in (6, 7, 11, 23, 26, 29, 33)} == {
        6: 255, 7: 0, 11: 2, 23: 10, 26: 13, 29: 255, 33: 18
    }  # fmt: skip
    assert (label != 255).sum() == len(CITYSCAPES)
    (tmp_path / "gtFine/val/bonn/bonn_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(UsageError, match=r"labelIds.png is missing. The layout is"):
        open_source("cityscapes", "val", str(tmp_path))
    with pytest.raises(UsageError, match=r"has no images. The layout is"):
        open_source("cityscapes", "train", str(tmp_path))
