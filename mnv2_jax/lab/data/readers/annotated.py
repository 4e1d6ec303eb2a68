"""What readers of sets with boxes or label maps have in common."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import image
from mnv2_jax.lab.data.annotations import IGNORED, check_labels, clean_objects
from mnv2_jax.lab.data.readers.files import read_record
from mnv2_jax.lab.data.source import BadRecord, LazySource

MAX_SIDE = 1 << 17
Annotated = tuple[Path, tuple[int, int], np.ndarray, np.ndarray]  # size, boxes, classes
Table = np.ndarray | None  # what `label_table` makes; None where a map's values are the labels
Pairs = list[tuple[Path, Path]]  # of an image and its map


class Object(NamedTuple):
    """One object as files list it: top, left, bottom and right in pixels, and its class."""

    corners: tuple[float, float, float, float]
    label: int
    crowd: bool = False


class AnnotatedImages:
    """Collects images and their boxes, and makes a source of them; it decodes what is read."""

    def __init__(self, classes: tuple[str, ...]):
        self.classes = classes
        self.dropped: Counter[str] = Counter()
        self._images: list[Annotated] = []

    def add(self, path: Path, size: Sequence[float], objects: Sequence[Object], name: str) -> None:
        """Adds an image of (height, width); `name` is for errors."""
        if not 1 <= min(size) <= max(size) <= MAX_SIDE:
            shown = "{1}x{0}".format(*(str(n)[:12] for n in size))
            raise UsageError(f"{name} is {shown} pixels. Correct it.")
        boxes = np.array([o.corners for o in objects], np.float64).reshape(-1, 4)
        classes = np.array([o.label for o in objects], int)
        crowd = np.array([o.crowd for o in objects], bool)
        boxes /= np.tile(size, 2)
        cleaned = clean_objects(boxes, classes, len(self.classes), None, name, crowd)
        self.dropped.update(cleaned.dropped)
        height, width = map(int, size)
        self._images.append((path, (height, width), cleaned.boxes, cleaned.classes))

    def source(self, name: str) -> LazySource:
        """Makes the source."""
        if not self._images:
            raise UsageError(f"{name} lists no images: give a set with at least one.")
        classes = np.concatenate([classes for *_, classes in self._images])
        counts = np.bincount(classes[classes >= 0], minlength=len(self.classes))
        left_out = {f"objects ({reason})": n for reason, n in self.dropped.items()}
        files = ("", [str(path) for path, *_ in self._images])
        facts = self.classes, None, counts.tolist(), left_out, files
        return LazySource(len(self._images), partial(_read_boxes, self._images), *facts)


def _read_boxes(images: list[Annotated], index: int) -> Mapping[str, Any]:
    path, size, boxes, classes = images[index]
    # Boxes are those of the stored pixels, whatever their EXIF tag says.
    pixels = image.decode(read_record(path), str(path), orient=False)
    if pixels.shape[:2] != image.read_size(*size):
        decoded = "{1}x{0}".format(*pixels.shape)
        raise BadRecord(str(path), f"{decoded} pixels, annotated as {size[1]}x{size[0]}")
    return {"image": pixels, "boxes": boxes, "classes": classes}


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
    read = partial(_read_map, pairs, len(classes), table)
    return LazySource(len(pairs), read, classes, files=("", files))


def _read_map(pairs: Pairs, num_classes: int, table: Table, index: int) -> Mapping[str, Any]:
    picture, label_map = pairs[index]
    pixels = image.decode(read_record(picture), str(picture), orient=False)
    return labelled_record(pixels, read_record(label_map), str(label_map), num_classes, table)
