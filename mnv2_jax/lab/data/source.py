"""What a data set is to everything that reads one: `Source`, its records, and what may be wrong."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mnv2_jax.errors import UsageError, one_line, unknown

Rng = np.random.Generator
Pair = tuple[float, float]
Transform = Callable[[dict, Rng], dict]
"""What happens to a record between its source and a batch: `(record, rng) -> record`."""

# The names under which sets keep a split; val and test stand for each other where one is missing.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}
HELD_OUT = 0.2  # the share of a set without a split to evaluate on


class BadRecord(ValueError):
    """A record, by the `name` of its file, that cannot be used: training masks and counts it."""

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
        """Reads one record; raises `BadRecord` if it cannot be decoded.

        It has an `image`, uint8 (h, w, channels); for classification a `label`; for detection
        `boxes` (n, 4) and `classes` (n,), below -1 for crowds (see `annotations`); for segmentation
        a `label` (h, w); the source's `pixel_classes`, if any, are those with the background.
        """
        ...

    def arrays(self) -> dict[str, np.ndarray] | None:
        """All records as `image` (n, h, w, c) uint8 and `label` (n,) int32; None if too large."""
        ...


class ArraySource:
    """A set whose images have one size and are held in memory.

    >>> source = ArraySource(np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1, 1]), ("a", "b"))
    >>> len(source), source[2]["label"], source[2]["image"].shape
    (3, 1, (8, 8, 1))
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]):
        if images.ndim != 4 or images.dtype != np.uint8 or len(images) != len(labels):
            given = f"not {images.dtype} {images.shape} with {len(labels)} labels. Convert them."
            raise UsageError(f"images must be uint8 (n, h, w, c) with one label each, {given}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            run = f"labels run from {labels.min()} to {labels.max()} but there are {len(classes)}"
            raise UsageError(f"{run} classes. Number them from 0, or name all the classes.")
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
        self, length: int, read: Callable[[int], Mapping[str, Any]], classes: tuple[str, ...],
        pixel_classes: tuple[str, ...] | None = None, counts: Sequence[int] | None = None,
        left_out: Mapping[str, int] | None = None,
        files: tuple[str | Path, Sequence[str]] = ("", ()),
    ):  # fmt: skip
        # Counts are images or objects of each class, where they are known; files are a folder and
        # the names of the records' files from there.
        self.classes, self.counts, self.files = classes, counts, files
        self.left_out = dict(left_out or {})
        self.pixel_classes = classes if pixel_classes is None else pixel_classes
        self._length, self._read = length, read

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._read(index)

    def arrays(self) -> None:
        return None


def summary(source: Source) -> str:
    """Says how large a source is: images, classes, smallest and largest class.

    >>> summary(ArraySource(np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1, 1]), ("a", "b")))
    "3 images, 2 classes, from 1 ('a') to 2 ('b')"
    """
    arrays, names = source.arrays(), source.classes
    counts: Any = getattr(source, "counts", None)
    if arrays is not None:
        counts = np.bincount(arrays["label"], minlength=len(names)).tolist()
    ends = [counts.index(end(counts)) for end in (min, max)] if counts else []
    parts = " to ".join(f"{counts[i]:,} ({names[i][:60]!r})" for i in ends)
    return f"{len(source):,} images, {len(names):,} classes" + (f", from {parts}" if parts else "")


def split_kind(name: str) -> str | None:
    """Returns whether a name means train, val or test; None where it means none of them."""
    return next((kind for kind, names in SPLITS.items() if name.lower() in names), None)


def find_split(split: str, present: Callable[[str], bool]) -> str | None:
    """Returns the first of the names of a split that is present; None where there is none.

    >>> find_split("val", ("train", "Test").__contains__)
    'Test'
    """
    kind, names = split_kind(split), [split]
    if kind is not None:
        names += SPLITS[kind] + SPLITS.get({"val": "test", "test": "val"}.get(kind, ""), ())
    forms = (form for name in names for form in (name, name.lower(), name.title(), name.upper()))
    return next(filter(present, forms), None)


def chosen_split(split: str, choices: tuple[str, ...]) -> str:
    """Returns which of a data set's own splits is meant."""
    name = find_split(split, choices.__contains__)
    if name is None:
        raise unknown("split", split, sorted({*choices, *SPLITS, "validation"}))
    return name


def find_part(split: str, present: Callable[[str], bool]) -> tuple[str | None, bool]:
    """Returns the name of a split that is present, and whether `share` must say what is in it.

    It must where there is nothing to evaluate on: of train, or of all there is, which has no name.
    """
    if split_kind(split) is not None and find_split("val", present) is None:
        return find_split("train", present), True
    return find_split(split, present), False


def share(names: Sequence[str], split: str) -> list[int]:
    """Returns which records of a set without splits are in one: a fifth is not in train.

    The hash of each name decides, so that other files change nothing; but of two names or more, at
    least one is on either side.

    >>> names = [f"{i}.jpg" for i in range(10)]
    >>> share(names, "val"), share(names, "train"), share(["only.jpg"], "val")
    ([0], [1, 2, 3, 4, 5, 6, 7, 8, 9], [])
    """
    hashes = (hashlib.sha256(class_name(name).encode()).digest() for name in names)
    scores = [int.from_bytes(digest[:4]) / 2**32 for digest in hashes]
    bound = min(max(HELD_OUT, min(scores)), sorted(scores)[-2]) if len(scores) > 1 else -1
    held_out = split_kind(split) != "train"
    return [i for i, score in enumerate(scores) if (score <= bound) == held_out]


def resplit(train: np.ndarray, test: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits a set anew, from its labels: as many records of each class as before in either part.

    Returns the indices of train and test into both together, train first.

    >>> train, test = resplit(np.array([0, 0, 1, 1]), np.array([1, 0]), seed=0)
    >>> sorted([*train.tolist(), *test.tolist()]), len(test)
    ([0, 1, 2, 3, 4, 5], 2)
    """
    rng, labels, held_out = np.random.default_rng(seed), np.concatenate((train, test)), []
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        held_out.append(own[: np.sum(test == label)])
    ids = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), ids), ids


def class_name(name: str) -> str:
    r"""Returns the name of a class as it can be compared and printed, whatever the file calls it.

    >>> class_name("e\u0301t\xe9"), class_name("caf\udce9")
    ('été', 'caf\\udce9')
    """
    unprintable = r"[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
    name = unicodedata.normalize("NFC", name).strip()
    return re.sub(unprintable, lambda found: found[0].encode("unicode_escape").decode(), name)
