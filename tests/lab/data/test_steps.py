"""Steps that move boxes and labels along with the image."""

import numpy as np

from mnv2_jax.lab.data import steps
from tests.lab.data.pictures import photo

BOXES = np.array([[0.125, 0.25, 0.5, 0.5], [0.625, 0.5, 0.875, 1.0], [0.0, 0.75, 0.25, 0.9375]])


def test_a_crop_keeps_only_boxes_of_which_it_holds_enough():
    """The share of every kept box that was in the crop, against the smallest that was drawn."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        covered = np.random.default_rng(seed).choice(steps.COVERED)
        record = {"image": np.zeros((80, 120, 3), np.uint8), "boxes": BOXES}
        pixels, boxes, classes = steps.ssd_crop(record | {"classes": np.arange(3)}, rng).values()
        if len(pixels) == 80 and pixels.shape[1] == 120:
            continue
        assert len(boxes) == len(classes) >= 1 and boxes.min() > -1e-9 and boxes.max() < 1 + 1e-9
        whole = np.array([(b[2] - b[0]) * 80 * (b[3] - b[1]) * 120 for b in BOXES])[classes]
        size = np.array(pixels.shape[:2])
        held = ((boxes[:, 2:] - boxes[:, :2]) * size).prod(1)
        assert (held >= covered * whole * (1 - 1e-6) - 1e-6).all()
        assert 0.05 * 9600 <= size.prod() <= 9600


def test_an_image_without_objects_is_cropped_too():
    rng, sizes = np.random.default_rng(0), set()
    for _ in range(20):
        record = {"image": np.zeros((60, 60, 3), np.uint8), "boxes": np.zeros((0, 4))}
        pixels, boxes, classes = steps.ssd_crop(
            record | {"classes": np.zeros(0, int)}, rng
        ).values()
        sizes.add(pixels.shape)
        assert boxes.shape == (0, 4) and classes.shape == (0,)
    assert len(sizes) > 5


def test_flips_are_fair_and_mirror_all_that_a_record_has():
    pixels = photo(6, 8)
    label = np.arange(48, dtype=np.uint8).reshape(6, 8)
    record = {"image": pixels, "boxes": BOXES, "label": label}
    rng = np.random.default_rng(0)
    flipped = [steps.flip(record, rng, 0.5) is not record for _ in range(1000)]
    assert abs(np.mean(flipped) - 0.5) < 4 * 0.5 / np.sqrt(1000)
    assert steps.flip(record, rng, 0.0) is record
    mirror = steps.flip(record, rng, 1.0)
    np.testing.assert_array_equal(mirror["image"], pixels[:, ::-1])
    np.testing.assert_array_equal(mirror["label"], label[:, ::-1])
    np.testing.assert_allclose(mirror["boxes"][0], [0.125, 0.5, 0.5, 0.75])
    assert steps.flip({"image": pixels, "label": 3}, rng, 1.0)["label"] == 3
