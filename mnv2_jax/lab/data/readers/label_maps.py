"""Images with label maps: what readers of such sets have in common."""

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import image
from mnv2_jax.lab.data.annotations import IGNORED, check_labels
from mnv2_jax.lab.data.readers.files import read_record
from mnv2_jax.lab.data.source import BadRecord, LazySource

Table = np.ndarray | None  # what `label_table` makes; None where a map's values are the labels
Pairs = list[tuple[Path, Path]]  # of an image and its map


def label_table(values: Iterable[int]) -> np.ndarray:
    """Maps the value of each class to its label, and all others to 255: (256,) uint8.

    >>> label_table([7, 9])[6:10]
    array([255,   0, 255,   1], dtype=uint8)
    """
    table, values = np.full(256, IGNORED, np.uint8), list(values)
    table[values] = range(len(values))
    return table


def labelled_record(
    pixels: np.ndarray, label_map: bytes, name: str, num_classes: int, table: Table = None
) -> Mapping[str, Any]:
    """Decodes the file of an image's map: `image` (h, w, c) uint8 and `label` (h, w) uint8.

    A map of another size, or with a value of no class (255 is ignored), is a `BadRecord` by name.
    """
    label = image.decode_labels(label_map, name)
    if table is not None:
        label = table[label]
    check_labels(label, num_classes, name)
    if label.shape != pixels.shape[:2]:
        ours, theirs = ("{1}x{0}".format(*shape) for shape in (label.shape, pixels.shape))
        raise BadRecord(name, f"a label map of {ours} pixels for an image of {theirs}")
    return {"image": pixels, "label": label}


def paired_source(pairs: Pairs, classes: tuple, layout: str, table: Table = None) -> LazySource:
    """Makes a source of pairs of an image file and the file of its label map."""
    files = [str(path) for pair in pairs for path in pair]
    for missing in (file for file in files if not os.path.isfile(file)):
        raise UsageError(f"{missing} is missing. {layout}.")
    read = functools.partial(_read, pairs, len(classes), table)
    return LazySource(len(pairs), read, classes, files=("", files))


def _read(pairs: Pairs, num_classes: int, table: Table, index: int) -> Mapping[str, Any]:
    picture, label_map = pairs[index]
    pixels = image.decode(read_record(picture), str(picture), orient=False)
    return labelled_record(pixels, read_record(label_map), str(label_map), num_classes, table)
