"""Sources in memory, and the names of splits."""

import numpy as np
import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import ArraySource
from mnv2_jax.lab.data.source import SPLITS, chosen_split, find_split


def test_images_of_the_wrong_kind_are_refused():
    with pytest.raises(UsageError, match="must be uint8"):
        ArraySource(np.zeros((2, 8, 8)), np.zeros(2), ("a",))
    with pytest.raises(UsageError, match="must be uint8"):
        ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.zeros(3), ("a",))


@pytest.mark.parametrize(
    ("split", "order"),
    [
        ("test", ("test", "TEST", "testing", "val", "validation", "valid")),
        ("val", ("val", "validation", "Valid", "dev", "test")),
        ("validation", ("validation", "val", "Val", "test")),
        ("train", ("train", "Train", "TRAIN", "training")),
        ("trainaug", ("trainaug",)),
    ],
)
def test_a_split_is_found_under_its_nearest_name(split, order):
    for i, name in enumerate(order):
        assert find_split(split, order[i:].__contains__) == name
    assert find_split(split, ("other",).__contains__) is None


def test_an_unknown_split_lists_the_choices():
    assert [chosen_split(split, ("train", "val")) for split in SPLITS] == ["train"] + 2 * ["val"]
    with pytest.raises(UsageError, match="did you mean 'train'"):
        chosen_split("trian", ("train", "test"))
