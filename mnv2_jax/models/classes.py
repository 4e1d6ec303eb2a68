"""Names of classes, by which a network and a data set are compared; their order says nothing."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path


@cache
def imagenet() -> dict[str, str]:
    """The 1,000 classes of ILSVRC 2012 in their usual order: names by WordNet id.

    A name is WordNet's synonyms with commas between, of which the first is that of one class only.
    """
    lines = Path(__file__).with_name("imagenet.txt").read_text("utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def wordnet_ids(classes: Sequence[str]) -> Sequence[str]:
    """Returns the WordNet ids of ImageNet's classes, however they are written; others unchanged.

    Lists of their names differ in which synonyms they have. So what counts is that most of the
    1,000 have a synonym of the class in their place.

    >>> names = [name.split(",")[0].replace(" ", "_") for name in imagenet().values()]
    >>> wordnet_ids(names)[:2], wordnet_ids(names[::-1])[:2], wordnet_ids(["cat", "dog"])
    (['n01440764', 'n01443537'], ['toilet_tissue', 'ear'], ['cat', 'dog'])
    """
    if len(classes) != len(imagenet()):
        return classes
    pairs = zip(classes, imagenet().values(), strict=True)
    agree = sum(not _synonyms(ours).isdisjoint(_synonyms(theirs)) for ours, theirs in pairs)
    return list(imagenet()) if agree > len(classes) // 2 else classes


def _synonyms(name: str) -> set[str]:
    return {re.sub(r"[\W_]", "", part.lower()) for part in name.split(",")}


def have_names(classes: Sequence[str]) -> bool:
    """Whether classes have names of their own, and not only numbers.

    >>> have_names(["cat", "dog"]), have_names(["class 0", "class 1"]), have_names([])
    (True, False, False)
    """
    return any(name != f"class {i}" for i, name in enumerate(classes))


def find_classes(wanted: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Returns where each class is among those that are known, None where it is not.

    Names that differ only in how Unicode composes their letters are the same name, and ImageNet's
    classes are known by name and by WordNet id.

    >>> find_classes(["dog", "cow", "cat"], ["cat", "dog"])
    [1, None, 0]
    """
    places = {_composed(name): i for i, name in enumerate(known)}
    places |= {name: i for i, name in enumerate(wordnet_ids(known))}
    return [
        places.get(_composed(name), places.get(other))
        for name, other in zip(wanted, wordnet_ids(wanted), strict=True)
    ]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def same_classes(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether two lists name the same classes in one order; their number decides without names.

    >>> same_classes(["caf\u00e9", "bar"], ["cafe\u0301", "bar"]), same_classes(["a"], ["b"])
    (True, False)
    """
    if not (have_names(ours) and have_names(theirs)):
        return not ours or not theirs or len(ours) == len(theirs)
    return find_classes(ours, theirs) == list(range(len(theirs)))
