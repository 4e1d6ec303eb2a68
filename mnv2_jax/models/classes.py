"""Names of classes, by which a network and a data set are compared; their order says nothing."""

import unicodedata
from collections.abc import Sequence


def have_names(classes: Sequence[str]) -> bool:
    """Whether classes have names of their own, and not only numbers.

    >>> have_names(["cat", "dog"]), have_names(["class 0", "class 1"]), have_names([])
    (True, False, False)
    """
    return any(name != f"class {i}" for i, name in enumerate(classes))


def find_classes(wanted: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Returns where each class is among those that are known, None where it is not.

    Names that differ only in how Unicode composes their letters are the same name.

    >>> find_classes(["dog", "cow", "cat"], ["cat", "dog"])
    [1, None, 0]
    """
    places = {unicodedata.normalize("NFC", name): i for i, name in enumerate(known)}
    return [places.get(unicodedata.normalize("NFC", name)) for name in wanted]


def same_classes(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether two lists name the same classes in one order; their number decides without names.

    >>> same_classes(["caf\u00e9", "bar"], ["cafe\u0301", "bar"]), same_classes(["a"], ["b"])
    (True, False)
    """
    if not (have_names(ours) and have_names(theirs)):
        return not ours or not theirs or len(ours) == len(theirs)
    return find_classes(ours, theirs) == list(range(len(theirs)))
