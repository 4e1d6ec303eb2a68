"""Cityscapes' layout and its nineteen classes."""

import numpy as np
import pytest
from PIL import Image

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.data.readers.cityscapes import CITYSCAPES


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
