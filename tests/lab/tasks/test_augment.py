"""Augmentation on the device: what may come out, who draws what, and mixing against numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mnv2_jax.lab.tasks.augment import cutmix, each, mixup, random_flip, random_shift


def pictures(b=16, h=6, w=5, c=3, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (b, h, w, c), np.uint8)


@pytest.mark.slow
def test_a_shift_is_a_window_of_the_padded_image_and_every_window_comes():
    image, pad = pictures(1)[0], 1
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    windows = {padded[t : t + 6, s : s + 5].tobytes() for t in range(3) for s in range(3)}
    keys = jax.random.split(jax.random.key(0), 200)
    found = np.asarray(jax.jit(jax.vmap(random_shift(pad), (0, None)))(keys, image))
    assert {view.tobytes() for view in found} == windows


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (0.3, 0.3), (1.0, 1.0)])
def test_a_flip_mirrors_columns_with_its_probability(probability, share):
    image = pictures(1)[0]
    keys = jax.random.split(jax.random.key(0), 2000)
    found = np.asarray(jax.jit(jax.vmap(random_flip(probability), (0, None)))(keys, image))
    flipped = (found == image[:, ::-1]).all(axis=(1, 2, 3))
    assert (flipped | (found == image).all(axis=(1, 2, 3))).all()
    assert abs(flipped.mean() - share) < 0.04


BOTH = (random_shift(2), random_flip(0.5))


@pytest.mark.slow
def test_every_example_draws_for_itself():
    images, rows = pictures(32), np.arange(32, dtype=np.int32)
    augment = jax.jit(partial(each, BOTH))
    whole = augment(jax.random.key(0), images, rows)
    order = np.random.default_rng(0).permutation(32)
    np.testing.assert_array_equal(
        augment(jax.random.key(0), images[order], rows[order]), whole[order]
    )
    for i in (0, 7, 31):
        alone = augment(jax.random.key(0), images[i : i + 1], rows[i : i + 1])
        np.testing.assert_array_equal(alone[0], whole[i])
    same = augment(jax.random.key(0), np.broadcast_to(images[:1], images.shape), rows)
    assert len({view.tobytes() for view in np.asarray(same)}) > 16
    other = augment(jax.random.key(1), images, rows)
    assert (np.asarray(other) != np.asarray(whole)).any()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_number_of_devices_changes_no_draw(devices):
    mesh = jax.make_mesh((devices,), ("batch",), (AxisType.Auto,), devices=jax.devices()[:devices])
    sharded = NamedSharding(mesh, PartitionSpec("batch"))
    images, rows = pictures(32), np.arange(32, dtype=np.int32)
    found = jax.jit(partial(each, BOTH))(
        jax.random.key(3), jax.device_put(images, sharded), jax.device_put(rows, sharded)
    )
    expected = jax.jit(partial(each, BOTH))(jax.random.key(3), images, rows)
    np.testing.assert_array_equal(found, expected)


def test_without_augmentations_nothing_happens():
    images = jnp.asarray(pictures(4))
    assert each((), jax.random.key(0), images, jnp.arange(4)) is images


def batch(b=8, h=8, w=6, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    targets = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, b)]
    return rng.normal(size=(b, h, w, 2)).astype(np.float32), targets


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_is_one_convex_combination_of_images_and_targets(alpha):
    images, targets = batch()
    here = np.ones(8, np.float32)
    shares, mix = [], jax.jit(partial(mixup, alpha=alpha))
    for seed in range(20):
        mixed, soft = mix(jax.random.key(seed), images, targets, here)
        np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
        # The share that the images tell, by least squares, must be the targets'.
        direction = (images - images[::-1]).ravel()
        share = (np.asarray(mixed) - images[::-1]).ravel() @ direction / (direction @ direction)
        assert 0.5 <= share <= 1
        expected = share * images + (1 - share) * images[::-1]
        np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)
        expected = share * targets + (1 - share) * targets[::-1]
        np.testing.assert_allclose(soft, expected, rtol=1e-4, atol=1e-5)
        shares.append(share)
    assert np.std(shares) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_cutmix_pastes_one_rectangle_and_counts_its_pixels(alpha):
    images, targets = batch()
    here = np.ones(8, np.float32)
    areas, mix = [], jax.jit(partial(cutmix, alpha=alpha))
    for seed in range(20):
        mixed, soft = mix(jax.random.key(seed), images, targets, here)
        mixed = np.asarray(mixed)
        pasted = (mixed != images).any(-1)  # (b, h, w)
        assert (pasted == pasted[0]).all()
        np.testing.assert_array_equal(mixed[pasted], images[::-1][pasted])
        rows, columns = np.nonzero(pasted[0])
        if len(rows):
            box = pasted[0][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all()
        kept = 1 - pasted[0].mean()
        np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
        np.testing.assert_allclose(soft, kept * targets + (1 - kept) * targets[::-1], atol=1e-6)
        areas.append(1 - kept)
    assert min(areas) < 0.3 < max(areas)


@pytest.mark.slow
@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_a_row_is_not_mixed_with_one_that_is_masked(mix):
    images, targets = batch()
    images[[1, 3]] = np.nan
    here = np.ones(8, np.float32)
    here[[1, 3]] = 0
    changed, mix = 0, jax.jit(partial(mix, alpha=1.0))
    for seed in range(5):
        mixed, soft = map(np.asarray, mix(jax.random.key(seed), images, targets, here))
        for lonely in (6, 4):  # the partners of 1 and 3
            np.testing.assert_array_equal(mixed[lonely], images[lonely])
            np.testing.assert_array_equal(soft[lonely], targets[lonely])
        assert np.isfinite(mixed[here > 0]).all()
        changed += (mixed[0] != images[0]).any()
    assert changed
