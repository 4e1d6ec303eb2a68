"""What becomes of bad annotations: dropped and counted, or refused in one line."""

import numpy as np
import pytest

from mnv2_jax.lab.data.annotations import check_labels, clean_objects, crowd_of
from mnv2_jax.lab.data.source import BadRecord

GOOD = [0.1, 0.2, 0.5, 0.6]
NAN = float("nan")


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([0.2, 0.2, 0.2, 0.9], "no area"),
        ([0.6, 0.1, 0.3, 0.5], "no area"),  # crossed corners
        ([0.6, 0.6, 0.3, 0.3], "no area"),  # crossed both ways
        ([1.2, 0.1, 1.4, 0.5], "outside"),
        ([-0.4, 0.1, 0.0, 0.5], "outside"),  # touches the border
        ([NAN, 0.1, 0.5, 0.5], "not finite"),
        ([0.1, 0.1, np.inf, 0.5], "not finite"),
    ],
)
def test_what_is_no_box_is_dropped_and_counted(box, reason):
    found = clean_objects(np.array([GOOD, box, GOOD]), np.array([3, 1, 2]), 10, 4, "a")
    np.testing.assert_allclose(found.boxes, [GOOD, GOOD, [0] * 4, [0] * 4], rtol=1e-6)
    np.testing.assert_array_equal(found.classes, [3, 2, -1, -1])
    assert found.dropped == {reason: 1}
    assert found.boxes.dtype == np.float32 and found.classes.dtype == np.int32


def test_a_box_over_the_border_is_clipped_and_kept():
    found = clean_objects(np.array([[-0.5, 0.5, 0.5, 1.5]]), np.array([0]), 1, 1, "a")
    np.testing.assert_array_equal(found.boxes, [[0, 0.5, 0.5, 1]])
    assert found.dropped == {}


def test_of_too_many_the_largest_stay_in_their_order():
    sizes = np.array([0.1, 0.9, 0.2, 0.8, 0.3])
    boxes = np.stack([0 * sizes, 0 * sizes, sizes, sizes], 1)
    found = clean_objects(boxes, np.arange(5), 5, 3, "a")
    np.testing.assert_array_equal(found.classes, [1, 3, 4])
    assert found.dropped == {"too many": 2}


def test_crowds_are_marked_and_make_room_first():
    sizes = np.array([0.9, 0.2, 0.3])
    boxes = np.stack([0 * sizes, 0 * sizes, sizes, sizes], 1)
    crowd = np.array([True, False, False])
    found = clean_objects(boxes, np.array([4, 2, 3]), 5, 3, "a", crowd)
    np.testing.assert_array_equal(found.classes, [-6, 2, 3])
    found = clean_objects(boxes, np.array([4, 2, 3]), 5, 2, "a", crowd)
    np.testing.assert_array_equal(found.classes, [2, 3])
    assert crowd_of(found.classes).tolist() == [-4, -5]


def test_an_image_without_objects():
    found = clean_objects(np.array([]), np.array([], int), 3, 2, "a")
    np.testing.assert_array_equal(found.classes, [-1, -1])
    assert not found.boxes.any() and found.dropped == {}


def test_reasons_add_up_on_random_boxes():
    rng = np.random.default_rng(0)
    for _ in range(300):
        boxes = rng.uniform(-0.5, 1.5, (12, 4)).round(1)
        boxes[rng.random((12, 4)) < 0.03] = np.nan
        found = clean_objects(boxes, rng.integers(0, 4, 12), 4, 5, "a")
        kept = int((found.classes >= 0).sum())
        assert kept + sum(found.dropped.values()) == 12
        real = [
            b for b in boxes if np.isfinite(b).all() and (b[2:] > b[:2]).all()
            and (b[:2] < 1).all() and (b[2:] > 0).all()
        ]  # fmt: skip
        assert kept == min(5, len(real))


@pytest.mark.parametrize(
    ("boxes", "classes", "message"),
    [
        ([GOOD], [10], "image 7: class 10 where the classes are 0 to 9"),
        ([GOOD], [-2], "image 7: class -2 where"),
        ([GOOD, GOOD], [1], r"image 7: boxes of shape \(2, 4\) with classes of shape \(1,\)"),
        ([[0.1, 0.2, 0.3]], [1], r"boxes of shape \(1, 3\)"),
        (GOOD, [1], r"boxes of shape \(4,\)"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(boxes, classes, message):
    with pytest.raises(BadRecord, match=message) as caught:
        clean_objects(np.array(boxes), np.array(classes), 10, 4, "image 7")
    assert "\n" not in str(caught.value)


def test_labels_beyond_the_classes():
    check_labels(np.array([[0, 3, 255]], np.uint8), 4, "a")
    for labels, message in (
        (np.array([[0, 4]], np.uint8), "a: label 4 where the classes are 0 to 3, and 255"),
        (np.array([[-1, 0]]), "label -1 where"),
        (np.zeros((2, 2)), "float64"),
        (np.zeros((2, 2, 3), np.uint8), r"\(2, 2, 3\)"),
    ):
        with pytest.raises(BadRecord, match=message):
            check_labels(labels, 4, "a")
