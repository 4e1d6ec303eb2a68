"""What a data set is to everything that reads one: `Source`, its records, and what may be wrong.

A source gives random access to the records of one split. `ArraySource` holds them in memory,
`LazySource` reads each when asked for it; the readers return one or the other.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mnv2_jax.errors import UsageError, one_line, unknown

Transform = Callable[[dict, np.random.Generator], dict]
"""What happens to a record between its source and a batch: `(record, rng) -> record`."""

SPLITS = {
    "train": ("train",),
    "test": ("test", "val", "validation"),
    "val": ("val", "validation", "test"),
    "validation": ("validation", "val", "test"),
}
"""The names under which data sets keep a split, in the order in which they are looked for."""


class BadRecord(ValueError):
    """A record that cannot be used: training masks and counts it, evaluation stops at it.

    Its `name` is a path, or an archive and a member; `reason` says what is wrong with it.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return one_line(f"{self.name}: {self.reason}")


@runtime_checkable
class Source(Protocol):
    """Random access to the records of one split; picklable, and usable as grain's data source."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; a record's label is an index into them."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Reads one record. Raises `BadRecord` if it cannot be decoded.

        Each has an `image`, uint8 (height, width, channels); for classification a `label`; for
        detection `boxes` (n, 4) and `classes` (n,), below -1 for crowds (see `annotations`); for
        segmentation a `label` (h, w), whose source may name a background, which boxes do not have,
        in `pixel_classes`.
        """
        ...

    def arrays(self) -> dict[str, np.ndarray] | None:
        """All records as `image` (n, h, w, c) uint8 and `label` (n,) int32; None if too large."""
        ...


class ArraySource:
    """A set whose images have one size and fit in memory.

    >>> source = ArraySource(np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1, 1]), ("a", "b"))
    >>> len(source), source[2]["label"], source[2]["image"].shape
    (3, 1, (8, 8, 1))
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]):
        if images.ndim != 4 or images.dtype != np.uint8 or len(images) != len(labels):
            raise UsageError(
                f"images must be uint8 (n, h, w, c) with one label each, not {images.dtype} "
                f"{images.shape} with {len(labels)} labels. Reshape or convert them first."
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise UsageError(
                f"labels run from {labels.min()} to {labels.max()} but there are {len(classes)} "
                "classes. Number them from 0, or name all the classes."
            )
        self.classes, self._images, self._labels = classes, images, labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"image": self._images[index], "label": int(self._labels[index])}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"image": self._images, "label": self._labels}


class LazySource:
    """A set whose records are read one by one, by a function of their index.

    >>> source = LazySource(2, lambda i: {"image": np.zeros((4, 4, 3)), "label": i}, ("a", "b"))
    >>> len(source), source[1]["label"], source.arrays()
    (2, 1, None)
    """

    def __init__(
        self,
        length: int,
        read: Callable[[int], Mapping[str, Any]],
        classes: tuple[str, ...],
        pixel_classes: tuple[str, ...] | None = None,
    ):
        self.classes = classes
        self.pixel_classes = classes if pixel_classes is None else pixel_classes
        self._length, self._read = length, read

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._read(index)

    def arrays(self) -> None:
        return None


def find_split(split: str, present: Callable[[str], bool]) -> str | None:
    """Returns the first of the names of a split that is present; None where there is none.

    >>> find_split("val", ("train", "test").__contains__)
    'test'
    """
    return next(filter(present, SPLITS.get(split, (split,))), None)


def chosen_split(split: str, choices: tuple[str, ...]) -> str:
    """Returns which of a data set's own splits is meant."""
    name = find_split(split, choices.__contains__)
    if name is None:
        raise unknown("split", split, sorted({*choices, *SPLITS}))
    return name
