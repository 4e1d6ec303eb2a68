"""Transforms: shapes, repetition, what moves with the image, and every value that is refused."""

import hashlib
import pickle

import numpy as np
import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import (
    detection_eval,
    detection_train,
    eval_transform,
    image,
    open_source,
    segmentation_eval,
    segmentation_train,
    train_batches,
    train_transform,
)
from mnv2_jax.lab.data.annotations import IGNORED
from tests.lab.data.pictures import photo

EVERYTHING = {
    "color": 0.4,
    "policy": "rand_augment",
    "erasing": 1.0,
}


@pytest.mark.parametrize("crop", ["inception", "pad", "none"])
@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("more", [{}, EVERYTHING, {"policy": "trivial_augment", "flip": 0.0}])
def test_training_transforms_give_their_size_and_repeat(crop, channels, more):
    transform = train_transform(24, crop=crop, channels=channels, **more)
    for pixels in (photo(), photo(channels=1), photo(1, 1), photo(24, 24)):
        record = {"image": pixels, "label": 3, "other": "kept"}
        first, again = (transform(record, np.random.default_rng(5)) for _ in range(2))
        assert first["image"].shape == (24, 24, channels or pixels.shape[2])
        assert first["image"].dtype == np.uint8
        np.testing.assert_array_equal(first["image"], again["image"])
        assert (first["label"], first["other"]) == (3, "kept")
        assert record["image"] is pixels


def test_evaluation_transforms_are_their_functions():
    pixels = photo()
    record = {"image": pixels, "label": 0}
    for crop, expected in (
        ("center", image.center_crop(pixels, 16, 0.8, method="bicubic")),
        ("stretch", image.stretch_crop(pixels, 16, 0.8, method="bicubic")),
        ("none", image.resize(pixels, 16, 16, "bicubic")),
    ):
        transform = eval_transform(16, crop=crop, fraction=0.8, method="bicubic")
        np.testing.assert_array_equal(transform(record, None)["image"], expected)


def test_nothing_to_do_changes_nothing():
    record = {"image": photo(8, 8), "label": 0}
    for transform in (train_transform(8, crop="none", flip=0.0), eval_transform(8, crop="none")):
        np.testing.assert_array_equal(transform(record, None)["image"], record["image"])


def test_digits_train_with_a_small_shift():
    batches = train_batches(
        open_source("digits", "train"),
        batch_size=16,
        seed=0,
        steps=2,
        transform=train_transform(8, crop="pad", pad=1, flip=0.0, channels=3),
    )
    assert [batch["image"].shape for batch in batches] == [(16, 8, 8, 3)] * 2


def test_a_transform_pickles():
    for transform in (train_transform(8, **EVERYTHING), eval_transform(8)):
        record = {"image": photo(), "label": 0}
        copy = pickle.loads(pickle.dumps(transform))
        np.testing.assert_array_equal(
            copy(record, np.random.default_rng(1))["image"],
            transform(record, np.random.default_rng(1))["image"],
        )


@pytest.mark.parametrize(
    ("name", "make", "sha256"),
    [
        (
            "digits",
            lambda: train_transform(8, crop="pad", pad=1, flip=0.0),
            "e421f0b09e4eeff01145b1f90d6027d1f8265686d9af73f1f7f57eb0ceebe819",
        ),
        (
            "fashion_mnist_small",
            lambda: train_transform(
                28, "none", color=0.4, policy="rand_augment", erasing=0.5, channels=3
            ),
            "07229da1c5a6f6225c980bd02471147571b142b0077f324997e1d75411147b12",
        ),
        (
            "scenes",
            lambda: detection_train(96, 2, crop="none", color=0.5),
            "8b8137b5b64d7867dc2e20ede75b95991710b7d664541c524ca48c7350a4a0dd",
        ),
    ],
)
def test_batches_are_as_they_were(name, make, sha256):
    """Pinned: results and checkpoints depend on the order of examples and on their augmentation.

    Nothing is resized here, where OpenCV and what stands in for it round differently.
    """
    digest = hashlib.sha256()
    batches = train_batches(
        open_source(name, "train"),
        batch_size=32,
        seed=3,
        start_step=5,
        steps=4,
        transform=make(),
        threads=1,
    )
    for batch in batches:
        for key in sorted(batch):
            digest.update(f"{key} {batch[key].dtype} {batch[key].shape}".encode())
            digest.update(np.ascontiguousarray(batch[key]))
    assert digest.hexdigest() == sha256


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
    transform = detection_train(96, 5, crop=crop, area=(0.1, 1.0))
    record = {"image": picture(BOXES), "boxes": BOXES, "classes": np.arange(3)}
    changed, counts = 0, []
    for seed in range(60):
        after = transform(record, np.random.default_rng(seed))
        assert after["image"].shape == (96, 96, 3) and after["boxes"].shape == (5, 4)
        assert after["image"].flags["C_CONTIGUOUS"]
        counts.append((after["classes"] >= 0).sum())
        for box, label in zip(after["boxes"], after["classes"], strict=True):
            if label < 0:
                assert (box == 0).all()
                continue
            seen = extent(after["image"], COLORS[label])
            if min(box[2:] - box[:2]) > 0.1:
                np.testing.assert_allclose(box, seen, atol=0.05)
        changed += not np.allclose(after["boxes"][:3], BOXES)
    assert min(counts) >= 1 and changed > 20
    assert (min(counts) < 3) == (crop == "ssd")


def test_of_too_many_objects_the_largest_are_kept():
    record = {"image": picture(BOXES), "boxes": BOXES, "classes": np.array([7, 8, 9])}
    after = detection_eval(32, 2)(record, None)
    assert after["classes"].tolist() == [7, 8]  # 0.094 and 0.125 of the image; 9 has 0.047
    assert after["image"].shape == (32, 32, 3)
    assert detection_eval(32, 2, channels=1)(record, None)["image"].shape == (32, 32, 1)


def test_crowds_are_for_evaluation_only():
    classes = np.array([7, 8, -2 - 9])
    record = {"image": picture(BOXES), "boxes": BOXES, "classes": classes}
    after = detection_eval(32, 4)(record, None)
    assert after["classes"].tolist() == [7, 8, -11, -1]
    np.testing.assert_allclose(after["boxes"][:3], BOXES, rtol=1e-6)
    train = detection_train(32, 4, crop="none", flip=0.0)
    after = train(record, np.random.default_rng(0))
    assert after["classes"].tolist() == [7, 8, -1, -1] and not after["boxes"][2:].any()


def labelled(height=30, width=50):
    """Pixels of value 10 v where the label is v, so that one shows the other."""
    label = (np.add.outer(np.arange(height) // 10, np.arange(width) // 10) % 20).astype(np.uint8)
    return {"image": np.repeat(label[..., None] * 10, 3, 2), "label": label}


@pytest.mark.parametrize("crop", ["scale", "none"])
def test_labels_stay_on_their_pixels(crop):
    transform = segmentation_train(40, crop, (0.5, 2.0))
    padded = 0
    for seed in range(40):
        after = transform(labelled(), np.random.default_rng(seed))
        pixels, label = after["image"], after["label"]
        assert pixels.shape == (40, 40, 3) and label.shape == (40, 40)
        ignored = label == IGNORED
        padded += ignored.any()
        assert (pixels[ignored] == image.MEAN_PIXEL).all()
        same = np.abs(pixels[..., 0].astype(int) - 10 * label.astype(int))[~ignored] < 6
        assert same.mean() > 0.85  # but where pixels are interpolated between two classes
    assert (padded > 5) == (crop == "scale")


def test_evaluation_pads_and_shrinks_to_fit():
    after = segmentation_eval(64, "pad")(labelled(), None)
    np.testing.assert_array_equal(after["label"][:30, :50], labelled()["label"])
    np.testing.assert_array_equal(after["image"][:30, :50], labelled()["image"])
    assert (after["label"][30:] == IGNORED).all() and (after["label"][:, 50:] == IGNORED).all()
    small = segmentation_eval(25, "pad")(labelled(), None)
    assert (small["label"] != IGNORED).sum() == 15 * 25
    assert (segmentation_eval(25, "none")(labelled(), None)["label"] != IGNORED).all()


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (train_transform, {"crop": "incepton"}, "did you mean 'inception'"),
        (train_transform, {"policy": "randaugment"}, "did you mean 'rand_augment'"),
        (detection_train, {"max_objects": 1, "crop": "sdd"}, "did you mean 'ssd'"),
        (detection_eval, {"max_objects": 1, "crop": "center"}, "unknown evaluation crop"),
        (segmentation_train, {"crop": "inception"}, "choices are none, scale"),
        (segmentation_eval, {"crop": "padd"}, "did you mean 'pad'"),
        (eval_transform, {"crop": "centre"}, "did you mean 'center'"),
        (eval_transform, {"method": "cubic"}, "did you mean 'bicubic'"),
    ],
)
def test_unknown_names_are_refused(make, values, message):
    with pytest.raises(UsageError, match=message) as error:
        make(**({"size": 8} | values))
    assert "\n" not in str(error.value)
