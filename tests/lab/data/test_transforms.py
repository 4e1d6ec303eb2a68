"""Transforms by name: shapes, repetition, and every value that is refused."""

import pickle

import numpy as np
import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import eval_transform, image, open_source, train_batches, train_transform
from tests.lab.data.pictures import photo

EVERYTHING = {
    "color": 0.4,
    "hue": 0.1,
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
        ("center", image.center_crop(pixels, 16, 0.8, "bicubic")),
        ("stretch", image.stretch_crop(pixels, 16, 0.8, "bicubic")),
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
    ("make", "values", "message"),
    [
        (train_transform, {"crop": "incepton"}, "did you mean 'inception'"),
        (train_transform, {"policy": "randaugment"}, "did you mean 'rand_augment'"),
        (train_transform, {"method": "cubic"}, "did you mean 'bicubic'"),
        (train_transform, {"area": (0.5, 0.1)}, "area"),
        (train_transform, {"area": (0.0, 0.1)}, "area"),
        (train_transform, {"aspect": (2, 1)}, "aspect"),
        (train_transform, {"flip": 1.5}, "flip 1.5 must lie between 0 and 1"),
        (train_transform, {"erasing": -0.1}, "erasing"),
        (train_transform, {"hue": 0.6}, "hue"),
        (train_transform, {"color": -1}, "color"),
        (train_transform, {"pad": -1}, "pad"),
        (train_transform, {"policy_magnitude": 31}, "policy_magnitude 31"),
        (train_transform, {"channels": 4}, "channels"),
        (train_transform, {"size": 0}, "size 0"),
        (eval_transform, {"size": 0}, "size 0"),
        (eval_transform, {"crop": "centre"}, "did you mean 'center'"),
        (eval_transform, {"method": "cubic"}, "did you mean 'bicubic'"),
        (eval_transform, {"fraction": 0.0}, "fraction"),
    ],
)
def test_values_out_of_range_are_refused(make, values, message):
    with pytest.raises(UsageError, match=message) as error:
        make(**({"size": 8} | values))
    assert "\n" not in str(error.value)
