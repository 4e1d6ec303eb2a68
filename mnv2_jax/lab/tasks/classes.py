"""A network and a data set agree on classes by name, and no score is a mean over nothing."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import ArraySource, BadRecord, Source
from mnv2_jax.lab.data.annotations import FIRST_CROWD, crowd_of
from mnv2_jax.lab.data.source import LazySource
from mnv2_jax.lab.tasks.task import TaskSpec
from mnv2_jax.models.classes import find_classes, have_names

LOOKED_AT = 64  # records of a set whose classes are not counted when it is opened
LISTED = 5  # names in a message


def _renumbered(source: Source, classes: tuple[str, ...], places: np.ndarray) -> Source:
    """A source whose labels are places in another list of classes, with the same names."""
    arrays = source.arrays()
    if arrays is None:
        return LazySource(len(source), partial(_read, source, places), classes)
    return ArraySource(arrays["image"], _renumber(arrays["label"], places), classes)


def _read(source: Source, places: np.ndarray, index: int) -> dict[str, Any]:
    record = dict(source[index])
    changed = record.keys() & {"label", "classes", "also"}
    return record | {name: _renumber(record[name], places) for name in changed}


def _renumber(labels: Any, places: np.ndarray) -> np.ndarray:
    """Crowds keep being crowds; padding and 255, which are no class, stay as they are."""
    labels = np.asarray(labels, np.int32)
    crowd = labels <= FIRST_CROWD
    numbers = np.where(crowd, crowd_of(labels), labels)
    own = places[np.clip(numbers, 0, len(places) - 1)]
    known = (numbers >= 0) & (numbers < len(places))
    return np.where(known, np.where(crowd, crowd_of(own), own), labels).astype(np.int32)


def by_name(
    spec: TaskSpec, source: Source, known: Sequence[str], count: int, where: str, remedy: str
) -> Source:
    """Returns a source in the numbers of the classes that are `known`; it may have fewer of them.

    Classes are compared by name; where one side has none, both must have `count` classes. Others
    are a `UsageError`, in which `where` is what the source is, and `remedy` the end.
    """
    names = spec.classes(source)
    if not (have_names(names) and have_names(known)):
        if len(names) != count:
            raise UsageError(f"{where} has {len(names)} classes and not {count}. {remedy}")
        return source
    places = find_classes(names, known)
    unknown, absent = _unknown(names, known), _unknown(known, names)
    if unknown:
        both = f"+ {_listed(unknown)}" + (f", - {_listed(absent)}" if absent else "")
        raise UsageError(
            f"{where} has {'a class' if len(unknown) == 1 else f'{len(unknown)} classes'} of "
            f"another name (+ in the data, - expected and not there): {both}. {remedy}"
        )
    if places == list(range(len(known))):
        return source
    return _renumbered(source, tuple(known), np.array(places, int))


def _unknown(names: Sequence[str], known: Sequence[str]) -> list[str]:
    return [n for n, i in zip(names, find_classes(names, known), strict=True) if i is None]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(repr, names[:LISTED])) + more


def check_seen(spec: TaskSpec, source: Source, where: str, quiet: bool = False) -> None:
    """Says which classes have no box or label, unless `quiet`; `UsageError` if too few have any.

    Of a set whose objects were not counted when it was opened, some records are looked at.
    """
    if spec.seen is None:
        return
    (field, what, least), names = spec.seen, spec.classes(source)
    counts, looked_at, other = getattr(source, "counts", None), len(source), False
    if counts is None or len(counts) != len(names):
        indices = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int))
        counts, looked_at = np.zeros(len(names), int), len(indices)
        for index in indices.tolist():
            with suppress(BadRecord):
                labels = np.ravel(source[index][field]).astype(int)
                inside = (labels >= 0) & (labels < len(names))
                counts += np.bincount(labels[inside], minlength=len(names))
                other |= bool((labels >= len(names)).any())
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    whole, present = looked_at == len(source), len(names) - len(empty)
    amount = f"all {len(source):,}" if whole else f"{looked_at} of its {len(source):,}"
    if present < min(least, len(names)) and (whole or other or not present):
        ignored = " Pixels of 255 are ignored: write 1 for the first class." if other else ""
        raise UsageError(
            f"{where} has {what} of {present or 'no'} class in {amount} images, which is "
            f"nothing to learn from or to score.{ignored} Check the annotations."
        )
    if empty and whole and not quiet:
        print(f"{where}: no {what} of {_listed(empty)} in {amount} images", file=sys.stderr)
