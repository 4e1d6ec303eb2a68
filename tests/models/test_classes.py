"""Classes of ImageNet are the same under every list of their names."""

import importlib.util
import runpy
from pathlib import Path

import pytest

from mnv2_jax.models.classes import find_classes, imagenet, same_classes, wordnet_ids

IDS, NAMES = list(imagenet()), [name.split(", ")[0] for name in imagenet().values()]
DATASETS = Path(importlib.util.find_spec("tensorflow_datasets").origin).parent / "datasets"


def test_ids_and_names_are_those_of_tensorflow_datasets():
    assert (DATASETS / "imagenet2012/labels.txt").read_text().split() == IDS
    theirs = runpy.run_path(str(DATASETS / "siscore/labels.py"))["IMAGENET_LABELS_LIST"]
    same = [a == b for a, b in zip(theirs, imagenet().values(), strict=True)]
    assert [i for i, is_same in enumerate(same) if not is_same] == [134, 264, 517, 639]


def test_the_first_synonym_is_of_one_class():
    assert len({name.lower() for name in NAMES}) == 1000
    assert [NAMES[i] for i in (0, 285, 999)] == ["tench", "Egyptian cat", "toilet tissue"]


@pytest.mark.parametrize(
    "names",
    [
        list(imagenet().values()),  # as Hugging Face and Coral have them
        [name.replace(" ", "_") for name in NAMES],  # Keras
        [name.split(", ")[-1].title() for name in imagenet().values()],
        [name if i % 3 else "of their own" for i, name in enumerate(NAMES)],
        IDS,
    ],
)
def test_every_list_of_names_is_known_by_wordnet_id(names):
    assert list(wordnet_ids(names)) == IDS
    assert find_classes(["n02124075", "n15075141", "n00000000"], names) == [285, 999, None]
    assert same_classes(names, IDS) and same_classes(IDS, names)
    assert find_classes(names[1:2], names) == [1]


def test_others_keep_their_names():
    for names in (NAMES[::-1], NAMES[:999], [f"class {i}" for i in range(1000)]):
        assert wordnet_ids(names) is names
    assert find_classes(["n02124075"], NAMES[::-1]) == [None]
    assert find_classes(["tench"], NAMES[::-1]) == [999]
