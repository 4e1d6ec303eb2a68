"""Operations pinned as they were, policies and what is drawn by their invariants."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mnv2_jax.lab.data import augment
from mnv2_jax.lab.data.image import apply_pillow
from tests.lab.data.pictures import photo


def noise(height=24, width=31, channels=3, seed=0):
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def changed(operation, pixels, *numbers):
    return apply_pillow(pixels, operation, *numbers)


def assert_close(pixels, expected, tolerance):
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= tolerance


def test_operations_are_as_they_were():
    """Pinned: the sum over all operations, spaces, strengths and channels of what they give."""
    digest = hashlib.sha256()
    for space, channels in itertools.product((augment.NARROW, augment.WIDE), (1, 3)):
        pixels = noise(channels=channels) // 2 + 40
        for operation in augment.policy_operations(space).values():
            for strength in np.linspace(-1, 1, 21):
                digest.update(np.ascontiguousarray(changed(operation, pixels, strength)))
    assert digest.hexdigest() == "173079a2ea6dce11952a3f3c54904b53eeed50b3ca6b8e19b144cb3fa86c7811"


@pytest.mark.parametrize("channels", [1, 3])
@given(seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_autocontrast_is_pillows_but_for_rounding(channels, seed):
    pixels = (noise(channels=channels, seed=seed) // 3 + seed).astype(np.uint8)
    expected = changed(ImageOps.autocontrast, pixels)
    assert_close(changed(augment.autocontrast, pixels), expected, 1)


def test_flat_images_survive_every_operation():
    for space in (augment.NARROW, augment.WIDE):
        for operation in augment.policy_operations(space).values():
            for shape in ((1, 1, 3), (2, 5, 1), (8, 8, 3)):
                flat = np.full(shape, 200, np.uint8)
                for strength in (-1.0, -0.1, 0.0, 1.0):
                    assert changed(operation, flat, strength).shape == shape
    assert_close(changed(augment.autocontrast, flat), flat, 0)


def test_hue_turns_the_circle():
    pixels = np.array([[[255, 0, 0], [128, 128, 128], [0, 0, 255]]], np.uint8)
    third = changed(augment.hue, pixels, 1 / 3)
    assert_close(third, np.array([[[0, 255, 0], [128, 128, 128], [255, 0, 0]]], np.uint8), 1)
    np.testing.assert_array_equal(changed(augment.hue, noise(channels=1), 0.2), noise(channels=1))


def test_geometry_moves_the_right_way():
    pixels = noise(9, 9)
    operations = augment.policy_operations(augment.WIDE)
    np.testing.assert_array_equal(changed(augment.rotate, pixels, 90), np.rot90(pixels))
    np.testing.assert_array_equal(changed(augment.rotate, pixels, 0), pixels)
    expected = np.asarray(Image.fromarray(pixels).rotate(30, fillcolor=(128, 128, 128)))
    np.testing.assert_array_equal(changed(augment.rotate, pixels, 30), expected)
    moved = changed(operations["translate_x"], noise(4, 40), 1.0)
    np.testing.assert_array_equal(moved[:, :8], noise(4, 40)[:, 32:])
    assert (moved[:, 8:] == augment.GRAY).all()
    moved = changed(operations["translate_y"], noise(40, 4), -1.0)
    np.testing.assert_array_equal(moved[32:], noise(40, 4)[:8])
    sheared = changed(operations["shear_x"], pixels, 0.5)
    np.testing.assert_array_equal(sheared[4], pixels[4])
    assert (sheared != pixels).any()


def test_policies_list_the_fourteen_operations_of_the_papers():
    for space in (augment.NARROW, augment.WIDE):
        assert len(augment.policy_operations(space)) == 14


def test_strength_zero_changes_nothing_but_the_histogram_operations():
    pixels = noise()
    for name, operation in augment.policy_operations(augment.NARROW).items():
        if name not in ("autocontrast", "equalize"):
            np.testing.assert_array_equal(changed(operation, pixels, 0.0), pixels)


@given(seed=st.integers(0, 2**32), channels=st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_random_transforms_keep_the_kind_and_repeat_with_their_generator(seed, channels):
    pixels = noise(channels=channels)
    before = pixels.copy()
    for transform in (
        augment.rand_augment,
        augment.trivial_augment,
        augment.color_jitter,
        augment.random_erasing,
        augment.photometric_distortion,
    ):
        first, again = (transform(pixels, np.random.default_rng(seed)) for _ in range(2))
        assert first.dtype == np.uint8
        assert first.shape == pixels.shape
        np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(pixels, before)


def test_erasing_covers_its_area_and_nothing_else():
    rng = np.random.default_rng(0)
    pixels = np.zeros((100, 100, 3), np.uint8)
    for _ in range(50):
        erased = augment.random_erasing(pixels, rng, probability=1.0, area=(0.1, 0.2))
        rows, columns = np.nonzero(erased.any(axis=-1))
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert 0.09 * 100**2 < box < 0.21 * 100**2
    kept = [augment.random_erasing(pixels, rng) is pixels for _ in range(1000)]
    assert abs(np.mean(kept) - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 1000)


def test_a_smooth_photo_is_not_changed_much_by_gentle_jitter():
    pixels = photo()
    jittered = augment.color_jitter(pixels, np.random.default_rng(0), 0.05)
    assert 0 < np.abs(jittered.astype(int) - pixels).mean() < 20


def test_distortion_changes_colors_within_its_ranges():
    gray = np.full((8, 8, 3), 100, np.uint8)
    values = [
        augment.photometric_distortion(gray, np.random.default_rng(seed), 0.5).ravel()
        for seed in range(200)
    ]
    assert np.min(values) >= 67 and np.max(values) <= 133  # contrast leaves a flat picture alone
    assert 30 < sum((v == 100).all() for v in values) < 170


def test_operations_of_rand_augment_are_left_out_by_their_probability():
    """Of two operations with a chance of one half, none is made for a quarter of the images.

    With one that never does, an image stays; and what is drawn at 1 is what was drawn before.
    """
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)

    def unchanged(**options):
        made = [
            augment.rand_augment(image, np.random.default_rng(s), magnitude=25, **options)
            for s in range(400)
        ]
        return np.mean([(other == image).all() for other in made])

    always, half = unchanged(), unchanged(probability=0.5)
    assert unchanged(probability=0.0) == 1
    # P(neither is made) = 1/4; each alone leaves the image as often as when both are made, or more.
    assert 0.25 - 0.07 < half - 0.75 * always < 0.25 + 0.2
    drawn = [
        augment.rand_augment(image, np.random.default_rng(3), **o)
        for o in ({}, {"probability": 1.0})
    ]
    np.testing.assert_array_equal(*drawn)
