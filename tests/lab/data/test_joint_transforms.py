"""Images move together with their boxes and labels: checked on pictures that show both."""

import numpy as np
import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import joint_transforms as paired
from mnv2_jax.lab.data.annotations import IGNORED


def picture(boxes, size=64):
    """Black, with each box filled in a color of its own."""
    pixels = np.zeros((size, size, 3), np.uint8)
    for i, (top, left, bottom, right) in enumerate(np.rint(np.array(boxes) * size).astype(int)):
        pixels[top:bottom, left:right] = COLORS[i]
    return pixels


COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
BOXES = np.array([[0.125, 0.25, 0.5, 0.5], [0.625, 0.5, 0.875, 1.0], [0.0, 0.75, 0.25, 0.9375]])


def extent(pixels, color):
    """The box of a color, in fractions."""
    where = (np.abs(pixels.astype(int) - color) < 100).all(-1)
    if not where.any():
        return None
    rows, columns = (np.flatnonzero(where.any(axis)) for axis in (1, 0))
    size = pixels.shape[0]
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]) / size


@pytest.mark.parametrize("crop", ["ssd", "none"])
def test_boxes_stay_on_their_objects(crop):
    """Whatever is cropped and mirrored; what is dropped has left, or too little of it is seen."""
    transform = paired.detection_train(96, 5, crop=crop, area=(0.1, 1.0))
    record = {"image": picture(BOXES), "boxes": BOXES, "classes": np.arange(3)}
    changed, counts = 0, []
    for seed in range(60):
        found = transform(record, np.random.default_rng(seed))
        assert found["image"].shape == (96, 96, 3) and found["boxes"].shape == (5, 4)
        assert found["image"].flags["C_CONTIGUOUS"]
        counts.append((found["classes"] >= 0).sum())
        for box, label in zip(found["boxes"], found["classes"], strict=True):
            if label < 0:
                assert (box == 0).all()
                continue
            seen = extent(found["image"], COLORS[label])
            if min(box[2:] - box[:2]) > 0.1:
                np.testing.assert_allclose(box, seen, atol=0.05)
        changed += not np.allclose(found["boxes"][:3], BOXES)
    assert min(counts) >= 1 and changed > 20
    assert (min(counts) < 3) == (crop == "ssd")


def test_a_crop_keeps_only_boxes_of_which_it_holds_enough():
    """The share of every kept box that was in the crop, against the smallest that was drawn."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        covered = np.random.default_rng(seed).choice(paired.COVERED)
        pixels, boxes, classes = paired.ssd_crop(
            np.zeros((80, 120, 3), np.uint8), BOXES, np.arange(3), rng
        )
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
        pixels, boxes, classes = paired.ssd_crop(
            np.zeros((60, 60, 3), np.uint8), np.zeros((0, 4)), np.zeros(0, int), rng
        )
        sizes.add(pixels.shape)
        assert boxes.shape == (0, 4) and classes.shape == (0,)
    assert len(sizes) > 5


def test_of_too_many_objects_the_largest_are_kept():
    record = {"image": picture(BOXES), "boxes": BOXES, "classes": np.array([7, 8, 9])}
    found = paired.detection_eval(32, 2)(record, None)
    assert found["classes"].tolist() == [7, 8]  # 0.094 and 0.125 of the image; 9 has 0.047
    assert found["image"].shape == (32, 32, 3)
    assert paired.detection_eval(32, 2, channels=1)(record, None)["image"].shape == (32, 32, 1)


def test_crowds_are_for_evaluation_only():
    classes = np.array([7, 8, -2 - 9])
    record = {"image": picture(BOXES), "boxes": BOXES, "classes": classes}
    found = paired.detection_eval(32, 4)(record, None)
    assert found["classes"].tolist() == [7, 8, -11, -1]
    np.testing.assert_allclose(found["boxes"][:3], BOXES, rtol=1e-6)
    train = paired.detection_train(32, 4, crop="none", flip=0.0)
    found = train(record, np.random.default_rng(0))
    assert found["classes"].tolist() == [7, 8, -1, -1] and not found["boxes"][2:].any()


def test_distortion_changes_colors_within_its_ranges():
    gray = np.full((8, 8, 3), 100, np.uint8)
    values = [
        paired.photometric_distortion(gray, np.random.default_rng(seed), 0.5).ravel()
        for seed in range(200)
    ]
    assert np.min(values) >= 67 and np.max(values) <= 133  # contrast leaves a flat picture alone
    assert 30 < sum((v == 100).all() for v in values) < 170


def labelled(height=30, width=50):
    """Pixels of value 10 v where the label is v, so that one shows the other."""
    label = (np.add.outer(np.arange(height) // 10, np.arange(width) // 10) % 20).astype(np.uint8)
    return {"image": np.repeat(label[..., None] * 10, 3, 2), "label": label}


@pytest.mark.parametrize("crop", ["scale", "none"])
def test_labels_stay_on_their_pixels(crop):
    transform = paired.segmentation_train(40, crop, (0.5, 2.0))
    padded = 0
    for seed in range(40):
        found = transform(labelled(), np.random.default_rng(seed))
        image, label = found["image"], found["label"]
        assert image.shape == (40, 40, 3) and label.shape == (40, 40)
        ignored = label == IGNORED
        padded += ignored.any()
        assert (image[ignored] == paired.MEAN_PIXEL).all()
        same = np.abs(image[..., 0].astype(int) - 10 * label.astype(int))[~ignored] < 6
        assert same.mean() > 0.85  # but where pixels are interpolated between two classes
    assert (padded > 5) == (crop == "scale")


def test_evaluation_pads_and_shrinks_to_fit():
    found = paired.segmentation_eval(64, "pad")(labelled(), None)
    np.testing.assert_array_equal(found["label"][:30, :50], labelled()["label"])
    np.testing.assert_array_equal(found["image"][:30, :50], labelled()["image"])
    assert (found["label"][30:] == IGNORED).all() and (found["label"][:, 50:] == IGNORED).all()
    small = paired.segmentation_eval(25, "pad")(labelled(), None)
    assert (small["label"] != IGNORED).sum() == 15 * 25
    assert (paired.segmentation_eval(25, "none")(labelled(), None)["label"] != IGNORED).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: paired.detection_train(8, 1, crop="sdd"), "did you mean 'ssd'"),
        (lambda: paired.detection_eval(8, 1, crop="center"), "unknown evaluation crop"),
        (lambda: paired.segmentation_train(8, crop="inception"), "choices are none, scale"),
        (lambda: paired.segmentation_train(8, scale=(2.0, 0.5)), "must be two numbers that rise"),
        (lambda: paired.detection_train(8, 1, area=(0.0, 1.0)), "must be two numbers that rise"),
        (lambda: paired.detection_train(8, 1, flip=2.0), "flip 2.0"),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(UsageError, match=message):
        make()
