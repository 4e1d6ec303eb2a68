"""Images with boxes: what readers of annotation files have in common."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import image
from mnv2_jax.lab.data.annotations import clean_objects
from mnv2_jax.lab.data.readers.files import read_record
from mnv2_jax.lab.data.source import BadRecord, LazySource

MAX_SIDE = 1 << 17
Annotated = tuple[Path, tuple[int, int], np.ndarray, np.ndarray]  # size, boxes, classes


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
        return LazySource(len(self._images), functools.partial(_read, self._images), *facts)


def _read(images: list[Annotated], index: int) -> Mapping[str, Any]:
    path, size, boxes, classes = images[index]
    # Boxes are those of the stored pixels, whatever their EXIF tag says.
    pixels = image.decode(read_record(path), str(path), orient=False)
    if pixels.shape[:2] != image.read_size(*size):
        decoded = "{1}x{0}".format(*pixels.shape)
        raise BadRecord(str(path), f"{decoded} pixels, annotated as {size[1]}x{size[0]}")
    return {"image": pixels, "boxes": boxes, "classes": classes}
