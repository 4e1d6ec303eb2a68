"""Decisions against enumeration, scipy's distributions, and simulations whose truth is known."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mnv2_jax.lab.train import decision
from mnv2_jax.lab.train.decision import (
    crossed,
    decide,
    detectable,
    equivalence,
    over_images,
    paired_difference,
    sign_flip,
)


def draw(seed, n, mean=0.0, std=1.0):
    return np.random.default_rng(seed).normal(mean, std, n)


@pytest.mark.parametrize("n", [2, 3, 8, 30])
def test_intervals_are_those_of_a_paired_t_test(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.8, 0.02, n), rng.normal(0.78, 0.03, n)
    found = paired_difference(a, b)
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose(found, (np.mean(a - b), interval.low, interval.high), rtol=1e-9)


def test_pairing_cancels_what_a_seed_does_to_both():
    seeds = np.random.default_rng(0).normal(size=8)
    found = paired_difference(seeds + 0.01, seeds)
    np.testing.assert_allclose(found, (0.01, 0.01, 0.01), rtol=1e-9)


def test_one_seed_has_no_interval():
    assert paired_difference([0.5], [0.25]) == (0.25, -math.inf, math.inf)


@pytest.mark.parametrize("n", [2, 5, 8, 11])
def test_sign_flips_are_those_that_enumeration_finds(n):
    differences = draw(n, n, 0.4)
    signs = np.array(list(itertools.product((-1, 1), repeat=n)))
    means = np.abs((signs * differences).mean(axis=1))
    share = np.mean(means >= abs(differences.mean()) - 1e-12)
    assert math.isclose(sign_flip(differences)[0], share)


@pytest.mark.parametrize("n", [8, 30])
def test_intervals_hold_the_means_that_sign_flips_do_not_reject(n):
    differences, alpha = draw(n, n, 0.4), 0.0625
    _, low, high = sign_flip(differences, alpha)
    for shift, rejected in ((low - 1e-6, True), (low + 1e-6, False), (high + 1e-6, True)):
        assert (sign_flip(differences - shift)[0] <= alpha) == rejected


def test_intervals_hold_the_mean_as_often_as_they_say():
    """Of a distribution that is symmetric and not normal, at 8 seeds, exactly 1 - alpha."""
    rng, times = np.random.default_rng(7), 2000
    samples = rng.choice((-1.0, 1.0), (times, 8)) * rng.exponential(1.0, (times, 8)) ** 2
    ends = np.array([sign_flip(sample, 0.0625)[1:] for sample in samples])
    held = np.mean((ends[:, 0] <= 0) & (ends[:, 1] >= 0))
    assert abs(held - 0.9375) <= 3 * math.sqrt(0.0625 * 0.9375 / times)


def test_few_seeds_reject_no_mean():
    assert sign_flip(np.full(5, 0.5)) == (2 / 2**5, -math.inf, math.inf)


def test_equivalence_is_two_one_sided_t_tests():
    differences, delta = draw(0, 12, 0.2), 0.9
    error = differences.std(ddof=1) / math.sqrt(12)
    t = np.array([differences.mean() + delta, delta - differences.mean()]) / error
    assert math.isclose(equivalence(differences, delta), stats.t.sf(t, df=11).max())


def test_what_is_detectable_is_found_in_nine_of_ten():
    rng = np.random.default_rng(1)
    spread = rng.normal(0.0, 1.0, 16)
    effect = detectable(spread) / spread.std(ddof=1)
    samples = rng.normal(effect, 1.0, (4000, 16))
    found = stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05
    assert 0.88 <= found.mean() <= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("looks", [1, 4])
def test_equal_variants_are_told_apart_in_no_more_than_alpha(looks):
    """With looks at 4, 6, 8 and 10 seeds, which stop at the first that decides."""
    rng, wrong, times = np.random.default_rng(2), 0, 200
    for differences in rng.normal(0.0, 1.0, (times, 10)):
        ends = (10,) if looks == 1 else (4, 6, 8, 10)
        (found,) = decide("ab", {"a": differences, "b": np.zeros(10)}, 1e-9, ends)
        wrong += found.outcome in ("confirmed", "refuted")
    assert wrong / times <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / times)


CLEAR = [0.9, 0.91, 0.92, 0.9, 0.93, 0.9, 0.92, 0.91, 0.9, 0.92]


@pytest.mark.parametrize(
    ("shift", "spread", "outcome"),
    [
        (0.05, 0.01, "confirmed"), (-0.05, 0.01, "refuted"), (0.0, 0.001, "equivalent"),
        (0.0, 0.05, "undecided"),
    ],
)  # fmt: skip
def test_what_comes_out(shift, spread, outcome):
    noise = draw(3, 10, 0.0, spread)
    scores = {"a": np.add(CLEAR, shift) + noise - noise.mean(), "b": np.array(CLEAR)}
    (found,) = decide(("a", "b"), scores, delta=0.01)
    assert (found.outcome, found.n) == (outcome, 10)
    assert math.isclose(found.difference.mean, shift, abs_tol=1e-12)


def test_several_differences_share_alpha_as_holm_has_it():
    """With 6 seeds the smallest p is 1/32 = 0.031: enough for one difference, not for two."""
    up, noise = np.full(6, 0.1) + np.arange(6) / 1000, draw(4, 6, 0.0, 0.1)
    alone = decide("ab", {"a": up, "b": np.zeros(6)}, 0.01)
    both = decide("abc", {"a": up + noise, "b": noise, "c": np.zeros(6)}, 0.01)
    assert alone[0].p == both[0].p == 1 / 32
    assert (alone[0].outcome, both[0].outcome) == ("confirmed", "undecided")


def test_one_seed_decides_nothing():
    (found,) = decide("ab", {"a": [0.75], "b": [0.25]}, 0.01)
    assert found[2:5] == ("undecided", 0, 1)
    assert found[6:] == ((0.5, -math.inf, math.inf), 1.0, 1.0, math.inf)


def test_what_a_look_decides_stands_and_its_seeds_alone_decided_it():
    """Eight seeds confirm; eight more that say the contrary change the numbers, not the word."""
    first, later = np.full(8, 0.05) + np.arange(8) / 1000, np.full(8, -0.06)
    scores = {"a": np.concatenate((first, later)), "b": np.zeros(16)}
    (early,) = decide("ab", {name: own[:8] for name, own in scores.items()}, 0.01, (8, 16))
    (late,) = decide("ab", scores, 0.01, (8, 16))
    assert (early.outcome, early.at, early.n) == (late.outcome, late.at, 8) == ("confirmed", 8, 8)
    assert (late.n, late.wins) == (16, 8)
    assert late.difference.mean < 0
    (at_the_end,) = decide("ab", scores, 0.01, (16,))
    assert at_the_end.outcome == "undecided"


def test_looks_share_alpha():
    """Six of one sign have p = 1/32, which one look takes for a difference, and two do not."""
    scores = {"a": np.full(6, 0.05) + np.arange(6) / 1000, "b": np.zeros(6)}
    outcomes = [decide("ab", scores, 0.001, looks)[0].outcome for looks in ((6,), (3, 6))]
    assert outcomes == ["confirmed", "undecided"]


def test_the_same_scores_give_the_same_numbers():
    scores = {"a": draw(5, 20, 0.3), "b": draw(6, 20)}
    assert decide("ab", scores, 0.1) == decide("ab", scores, 0.1)


def of_variants(rng, seeds, images, per_image, per_seed):
    """Differences whose mean is 0.05: an image favours the first in 30 %, the second in 20 %.

    What it favours gets it right alone in half of the cases, more or less for every seed and image.
    """
    favours = rng.choice([1, -1, 0], images, p=[0.3, 0.2, 0.5])
    how_often = 0.5 + per_image * rng.uniform(-1, 1, images)
    how_often = how_often + per_seed * rng.uniform(-1, 1, (seeds, 1))
    return favours * (rng.random((seeds, images)) < how_often)


def test_the_error_over_seeds_and_images_by_hand():
    """Two seeds, three images: 1 1 0 and 1 0 -2, whose mean is 1/6.

    The seeds' means are 2/3 and -1/3, the images' 1, 1/2 and -1. Of all squares around the mean,
    41/6, they take 3/2 and 13/3, which leaves 1. So the variance is 1/4 + 13/36 - 1/12 = 19/36.
    """
    apart = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, -2.0]])
    found = crossed(apart, np.ones((1, 2)), np.ones((1, 3)))
    np.testing.assert_allclose(np.ravel(found), (1 / 6, math.sqrt(19 / 36)), rtol=1e-12)


def test_samples_of_seeds_and_images_are_those_that_are_written_out():
    rng = np.random.default_rng(0)
    apart = of_variants(rng, 4, 30, 0.3, 0.2).astype(float)
    seeds, images = rng.integers(0, 4, 4), rng.integers(0, 30, 30)
    drawn = apart[np.ix_(seeds, images)]
    times = np.bincount(seeds, minlength=4)[None], np.bincount(images, minlength=30)[None]
    rows, columns, mean = drawn.mean(1), drawn.mean(0), drawn.mean()
    rest = drawn - rows[:, None] - columns + mean
    a, b, rest = rows.var(ddof=1) / 4, columns.var(ddof=1) / 30, np.square(rest).sum() / 87 / 120
    variance = max(a, b, rest, a + b - rest)
    found = np.ravel(crossed(apart, *times))
    np.testing.assert_allclose(found, (mean, variance**0.5), rtol=1e-12)


def test_the_interval_over_images_of_seeds_that_agree_is_nearly_that_of_one():
    apart = np.tile(of_variants(np.random.default_rng(3), 1, 4000, 0.5, 0.0), (5, 1))
    found = over_images(apart)
    interval = stats.ttest_1samp(apart[0], 0.0).confidence_interval()
    np.testing.assert_allclose(found[1:], interval, rtol=0.1)
    assert found == over_images(apart) and found.mean == pytest.approx(apart.mean())
    assert over_images(-apart)[1:] == pytest.approx((-found.high, -found.low), rel=0.1)


def test_too_few_seeds_or_images_have_no_interval_over_both():
    for shape in ((1, 9), (9, 1), (2, 2)):
        assert over_images(np.eye(*shape)) == (np.eye(*shape).mean(), -math.inf, math.inf)
    assert over_images(np.zeros((3, 4))) == (0.0, 0.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "images", "per_image", "per_seed"),
    [(8, 200, 0.5, 0.0), (8, 200, 0.1, 0.4), (4, 300, 0.3, 0.1)],
)
def test_intervals_over_seeds_and_images_hold_the_truth(
    monkeypatch, seeds, images, per_image, per_seed
):
    """Nearly as often as they say; those over seeds alone are of these images only."""
    monkeypatch.setattr(decision, "DRAWS", 600)
    rng, times, hits = np.random.default_rng(0), 150, np.zeros(2)
    for _ in range(times):
        apart = of_variants(rng, seeds, images, per_image, per_seed)
        alone = paired_difference(apart.mean(1), np.zeros(seeds))
        hits += [found.low <= 0.05 <= found.high for found in (over_images(apart), alone)]
    assert 0.92 <= hits[0] / times <= 0.99
    assert hits[1] / times < 0.85
