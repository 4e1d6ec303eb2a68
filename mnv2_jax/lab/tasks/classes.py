"""A network and a data set agree on classes by name, and no score is a mean over nothing."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import BadRecord, Source
from mnv2_jax.lab.data.annotations import FIRST_CROWD
from mnv2_jax.lab.tasks.task import TaskSpec
from mnv2_jax.models.classes import find_classes, have_names

LOOKED_AT = 64  # records of a set whose classes are not counted when it is opened
LISTED = 5  # names in a message


class Renumbered:
    """A source whose labels are places in another list of classes, with the same names."""

    def __init__(self, source: Source, classes: tuple[str, ...], places: Sequence[int]):
        self.classes = self.pixel_classes = classes
        self._source, self._places = source, np.asarray(places)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._with_places(self._source[index])

    def arrays(self) -> dict[str, np.ndarray] | None:
        arrays = self._source.arrays()
        return None if arrays is None else self._with_places(arrays)

    def _with_places(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: self._renumber(value) if name in ("label", "classes") else value
            for name, value in record.items()
        }

    def _renumber(self, labels: Any) -> np.ndarray:
        """Crowds keep being crowds; padding and 255, which are no class, stay as they are."""
        labels, count = np.asarray(labels, np.int32), len(self._places)
        crowds = FIRST_CROWD - labels
        own = self._places[np.clip(labels, 0, count - 1)]
        crowd = FIRST_CROWD - self._places[np.clip(crowds, 0, count - 1)]
        known = np.where((labels >= 0) & (labels < count), own, labels)
        return np.where((crowds >= 0) & (crowds < count), crowd, known).astype(np.int32)


def by_name(
    spec: TaskSpec, source: Source, known: Sequence[str], count: int, where: str, remedy: str
) -> Source:
    """Returns a source in the numbers of the classes that are `known`; it may have fewer of them.

    Classes are compared by name; where one side has none, both must have `count` classes. `where`
    is what the source is, and `remedy` ends the message.

    Raises:
      UsageError: the source has classes that are not known, or another number of them.
    """
    names = spec.classes(source)
    if not (have_names(names) and have_names(known)):
        if len(names) != count:
            raise UsageError(f"{where} has {len(names)} classes and not {count}. {remedy}")
        return source
    places = find_classes(names, known)
    unknown = [name for name, place in zip(names, places, strict=True) if place is None]
    if unknown:
        absent = [
            name for name, i in zip(known, find_classes(known, names), strict=True) if i is None
        ]
        both = [f"+ {_listed(unknown)}", *([f"- {_listed(absent)}"] if absent else [])]
        raise UsageError(
            f"{where} has {'a class' if len(unknown) == 1 else f'{len(unknown)} classes'} of "
            f"another name (+ in the data, - expected and not there): {', '.join(both)}. {remedy}"
        )
    same = places == list(range(len(known)))
    return source if same else Renumbered(source, tuple(known), [p or 0 for p in places])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(repr, names[:LISTED])) + more


def check_seen(spec: TaskSpec, source: Source, where: str, quiet: bool = False) -> None:
    """Refuses a set without any box or label; says which classes have none, unless `quiet`.

    Of a set whose objects were not counted when it was opened, some records are looked at.

    Raises:
      UsageError: there is nothing to learn from or to score.
    """
    if spec.seen is None:
        return
    (field, what, least), names = spec.seen, spec.classes(source)
    counts, looked_at, other = getattr(source, "counts", None), len(source), False
    if counts is None or len(counts) != len(names):
        indices = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int))
        counts, looked_at = np.zeros(len(names), int), len(indices)
        for index in indices.tolist():
            try:
                labels = np.ravel(source[index][field]).astype(int)
            except BadRecord:
                continue
            inside = (labels >= 0) & (labels < len(names))
            counts += np.bincount(labels[inside], minlength=len(names))
            other |= bool((labels >= len(names)).any())
    whole, empty = (
        looked_at == len(source),
        [n for n, c in zip(names, counts, strict=True) if not c],
    )
    amount = f"all {len(source):,}" if whole else f"{looked_at} of its {len(source):,}"
    present = len(names) - len(empty)
    if present < min(least, len(names)) and (whole or other or not present):
        ignored = " Pixels of 255 are ignored: write 1 for the first class." if other else ""
        raise UsageError(
            f"{where} has {what} of {present or 'no'} class in {amount} images, which is "
            f"nothing to learn from or to score.{ignored} Check the annotations."
        )
    if empty and whole and not quiet:
        print(f"{where}: no {what} of {_listed(empty)} in {amount} images", file=sys.stderr)
