"""Classes are the same by name, and a set without them is neither learned from nor scored."""

import json
import pickle

import numpy as np
import pytest

from mnv2_jax import UsageError
from mnv2_jax.files import write_json
from mnv2_jax.lab.data import ArraySource
from mnv2_jax.lab.data.annotations import FIRST_CROWD
from mnv2_jax.lab.data.source import LazySource
from mnv2_jax.lab.tasks import TASKS
from mnv2_jax.lab.tasks.classes import by_name, check_seen

PIXELS = np.zeros((4, 4, 3), np.uint8)
CLASSIFY, DETECT, SEGMENT = TASKS["classify"], TASKS["detect"], TASKS["segment"]


def labelled(names, labels=(0, 1, 1)):
    return ArraySource(np.zeros((len(labels), 4, 4, 3), np.uint8), np.array(labels), tuple(names))


def places(names, field, values, counts=None):
    """A set of boxes or label maps, one array of classes a record."""

    def read(i):
        return {"image": PIXELS, "boxes": np.zeros((0, 4)), field: np.asarray(values[i])}

    return LazySource(len(values), read, tuple(names), counts=counts)


def matched(spec, source, known, count=None):
    return by_name(spec, source, known, count or len(known), "the data", "Use other data.")


@pytest.mark.parametrize(
    ("names", "known", "labels"),
    [
        (["cat", "dog"], ["cat", "dog"], [0, 1, 1]),
        (["dog", "cat"], ["cat", "dog"], [1, 0, 0]),
        (["dog", "cow"], ["cat", "cow", "dog"], [2, 1, 1]),  # a subset
        (["caf\u00e9", "bar"], ["bar", "cafe\u0301"], [1, 0, 0]),
        (["cat", "dog"], [], [0, 1, 1]),  # a model without names: by number
        (["class 0", "class 1"], ["cat", "dog"], [0, 1, 1]),
    ],
)
def test_labels_are_numbered_as_the_model_numbers_them(names, known, labels):
    source = matched(CLASSIFY, labelled(names), known, 2 if len(known) < 3 else 3)
    assert [int(source[i]["label"]) for i in range(3)] == labels
    np.testing.assert_array_equal(source.arrays()["label"], labels)
    assert len(pickle.loads(pickle.dumps(source))) == 3


@pytest.mark.parametrize(
    ("names", "known", "count", "message"),
    [
        (
            ["a_dog", "cat"],
            ["cat", "dog"],
            2,
            r"a class of another name .*\+ 'a_dog', - 'dog'\. Us",
        ),
        (["Cat", "dog"], ["cat", "dog"], 2, r"\+ 'Cat', - 'cat'"),
        (["cat", "dog", "cow"], ["cat", "dog"], 2, r"\+ 'cow'\. "),
        ([f"a{i}" for i in range(9)], ["b"] * 9, 9, r"9 classes of another name .*'a4' and 4 more"),
        (["cat", "dog", "cow"], [], 2, "3 classes and not 2"),
        (["class 0", "class 1"], ["cat", "dog", "cow"], 3, "2 classes and not 3"),
    ],
)
def test_other_names_are_refused(names, known, count, message):
    with pytest.raises(UsageError, match=message):
        matched(CLASSIFY, labelled(names), known, count)


def test_crowds_padding_and_ignored_pixels_keep_their_meaning():
    boxes = matched(DETECT, places("ab", "classes", [[0, 1, -1, FIRST_CROWD - 1]]), ["b", "a"])
    assert boxes[0]["classes"].tolist() == [1, 0, -1, FIRST_CROWD]
    masks = matched(SEGMENT, places("ab", "label", [[[0, 1], [255, 0]]]), ["b", "a"])
    assert masks[0]["label"].tolist() == [[1, 0], [255, 1]]
    assert masks.pixel_classes == ("b", "a")


@pytest.mark.parametrize(
    ("spec", "source", "message"),
    [
        # The common mistake of masks: 255 for the object is "ignored".
        (SEGMENT, places(["background", "crack"], "label", [[[0, 255]]] * 3), "write 1 for the"),
        (SEGMENT, places(["background", "crack"], "label", [[[0, 255]]] * 300), "64 of its 300"),
        (SEGMENT, places(["background", "crack"], "label", [[[0, 0]]] * 3), "pixels of 1 class"),
        (SEGMENT, places(["background", "crack"], "label", [[[255]]] * 3), "pixels of no class"),
        (DETECT, places(["car"], "classes", [[], []]), "boxes of no class in all 2 images"),
        (DETECT, places(["car"], "classes", [[FIRST_CROWD]]), "boxes of no class"),
        (DETECT, places(["car", "bus"], "classes", [[], []], counts=[0, 0]), "boxes of no class"),
    ],
)
def test_nothing_to_score_is_refused(spec, source, message):
    with pytest.raises(UsageError, match=message):
        check_seen(spec, source, "train of x")


@pytest.mark.parametrize(
    ("spec", "source", "said"),
    [
        (
            SEGMENT,
            places("abc", "label", [[[0, 1]]]),
            "train of x: no pixels of 'c' in all 1 images",
        ),
        (SEGMENT, places("ab", "label", [[[0, 1]]]), ""),
        (SEGMENT, places("ab", "label", [[[0, 0]]] * 300), ""),  # a rare class may be elsewhere
        (DETECT, places("ab", "classes", [[0]]), "train of x: no boxes of 'b' in all 1 images"),
        (DETECT, places("ab", "classes", [[]] * 300, counts=[5, 0]), "no boxes of 'b' in all 300"),
        (CLASSIFY, labelled("abc", [0, 0]), ""),
    ],
)
def test_a_class_without_any_is_told(spec, source, said, capsys):
    check_seen(spec, source, "train of x")
    assert said in capsys.readouterr().err if said else not capsys.readouterr().err


def test_json_has_null_for_what_is_no_number(tmp_path):
    write_json(tmp_path / "a.json", {"map": float("nan"), "each": (1.0, float("-inf")), "n": 2})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "map": None,
        "each": [1.0, None],
        "n": 2,
    }
