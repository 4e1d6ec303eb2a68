"""Which variant is better, and how sure that is: paired tests over seeds, within an error rate.

Every seed gives both variants the same initialisation, order and augmentation, so their difference
is tested, seed by seed. A claim "better above worse" ends as **confirmed** or **refuted** (the
difference is not 0), as **equivalent** (it is smaller than what is of interest) or, if neither can
be said, as **undecided**. Results may be looked at several times while seeds are added: each look
spends an equal part of alpha, which holds whatever the looks have in common, and what one decides
stands.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

ALPHA = 0.05  # of all differences of a claim together (Holm), and of each equivalence
DELTA = 0.01  # the smallest difference of interest, unless `sweep.delta` says another
POWER = 0.9  # with which the smallest detectable difference would be found
EXACT, RESAMPLES = 13, 9999  # differences of which all subsets are looked at, or so many
DRAWS, AT_ONCE = 2000, 200  # of the bootstrap
CONFIRMED, REFUTED, EQUIVALENT, UNDECIDED = "confirmed", "refuted", "equivalent", "undecided"


class Difference(NamedTuple):
    """The mean of two variants' differences, seed by seed, and its 95 % confidence interval."""

    mean: float
    low: float  # infinite where there are too few seeds
    high: float


def paired_difference(a: Sequence[float], b: Sequence[float], alpha: float = ALPHA) -> Difference:
    """Compares two variants seed by seed, which cancels what a seed does to both.

    The interval misses the true mean with probability `alpha`.

    >>> paired_difference([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    Difference(mean=2.0, low=2.0, high=2.0)
    >>> round(paired_difference([1.0, 2.0, 4.0], [0.0, 0.0, 0.0]).high, 3)
    6.128
    """
    from scipy.special import stdtrit  # a tenth of all imports, and needed only at the end

    differences = np.subtract(a, b)
    n, mean, margin = len(differences), float(differences.mean()), math.inf
    if n > 1:
        margin = float(stdtrit(n - 1, 1 - ALPHA / 2) * differences.std(ddof=1) / math.sqrt(n))
    return Difference(mean, mean - margin, mean + margin)


def planned_looks(looks: Sequence[int], seeds: int) -> list[int]:
    """The numbers of seeds at which results are looked at, of all there may be; the last is all.

    >>> planned_looks((8, 16, 32), seeds=20), planned_looks((), seeds=8)
    ([8, 16, 20], [8])
    """
    return sorted({look for look in looks if look < seeds} | {seeds})


def over_images(apart: Shaped[np.ndarray, "s n"]) -> Difference:
    """The mean of two variants' differences over s seeds and n test images, and its interval.

    `apart` is 1 where only the first gets an image right with a seed, -1 where only the second
    does, else 0. The 95 % interval is a two-level bootstrap: seeds and images are drawn anew
    together (Owen, *The pigeonhole bootstrap*, Annals of Applied Statistics 1, 2007), and how far
    the mean of a draw is from the real one is told in standard errors of that draw (bootstrap-t),
    for a few seeds spread more than they show. It holds Student's interval over the seeds alone,
    which is about fewer images, is the same each time, and infinite where there are too few seeds
    or images to say.

    >>> over_images(np.zeros((2, 3)))
    Difference(mean=0.0, low=0.0, high=0.0)
    """
    (s, n), rng, far = apart.shape, np.random.default_rng(0), []
    alone = paired_difference(apart.mean(axis=1).tolist(), [0.0] * s)
    # Images of which all seeds say the same need not be told apart.
    apart, times = np.unique(np.asarray(apart, float), axis=1, return_counts=True)
    (mean,), (error,) = crossed(apart, np.ones((1, s)), times[None])
    if min(s, n) < 2:
        return Difference(float(mean), -math.inf, math.inf)
    if not error:
        return Difference(float(mean), float(mean), float(mean))
    for _ in range(DRAWS // AT_ONCE):
        seeds = rng.multinomial(s, np.full(s, 1 / s), AT_ONCE)
        means, errors = crossed(apart, seeds, rng.multinomial(n, times / n, AT_ONCE))
        # Where all that was drawn is alike, any distance is infinite.
        beyond = np.where(means == mean, 0.0, np.copysign(math.inf, means - mean))
        far.append(np.divide(means - mean, errors, out=beyond, where=errors > 0))
    far, outside = np.sort(np.concatenate(far)), int(ALPHA / 2 * DRAWS)
    low, high = (mean - far[[-outside, outside - 1]] * error).tolist()
    low, high = min(low, alone.low), max(high, alone.high)
    if not math.isfinite(high - low):
        low, high = -math.inf, math.inf
    return Difference(float(mean), low, high)


def crossed(
    apart: Float[np.ndarray, "s k"], seeds: Shaped[np.ndarray, "r s"],
    images: Shaped[np.ndarray, "r k"],
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:  # fmt: skip
    """Means over seeds and images that stand in r samples so many times, and standard errors.

    Both have effects of their own, so the mean's variance is that of the seeds' means, and that of
    the images' means, less what both contain of the rest (Cameron, Gelbach and Miller, *Robust
    Inference with Multiway Clustering*, JBES 29, 2011), and at least the largest of the three.

    >>> crossed(np.array([[1.0, 0.0], [0.0, 0.0]]), np.ones((1, 2)), np.ones((1, 2)))
    (array([0.25]), array([0.25]))
    """
    s, n = seeds[0].sum(), images[0].sum()
    of_seeds, of_images = images @ apart.T / n, seeds @ apart / s  # (r, s), (r, k)
    mean = (seeds * of_seeds).sum(1) / s
    total = (seeds * (images @ np.square(apart).T)).sum(1) - s * n * mean**2
    by_seed = n * (seeds * np.square(of_seeds - mean[:, None])).sum(1)
    by_image = s * (images * np.square(of_images - mean[:, None])).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):  # one seed, or one image
        a, b = by_seed / (s * n * (s - 1)), by_image / (s * n * (n - 1))
        rest = (total - by_seed - by_image) / (s * n * (s - 1) * (n - 1))
    return mean, np.sqrt(np.maximum.reduce([a, b, rest, a + b - rest]))


class Decision(NamedTuple):
    """What seeds say of one variant against another, whose scores are shares of 1."""

    better: str  # as the claim has it
    worse: str
    outcome: str  # confirmed, refuted, equivalent or undecided
    at: int  # seeds of the look that decided; 0 where none did
    n: int  # seeds that both have, which the following is of
    wins: int  # seeds of which `better` scores higher
    difference: Difference  # of better less worse, and what `sign_flip` leaves, at all looks
    p: float  # two-sided, of no difference: sign flips, exact for up to 13 seeds
    p_equivalent: float  # of a difference of at least delta: two one-sided t-tests
    detectable: float  # the smallest mean that as many seeds would find in nine of ten sweeps


def decide(
    claim: Sequence[str], scores: Mapping[str, Sequence[float]], delta: float,
    looks: Sequence[int] = (),
) -> list[Decision]:  # fmt: skip
    """Judges each two neighbours of a claim, best first, on the scores of common seeds.

    `looks` are the numbers of seeds at which the results are looked at, as planned before the first
    was trained, of which those there are count; () is one look at all seeds. At each, differences
    are judged together: the smallest p first, against alpha over as many as are left (Holm).
    Equivalence asks two one-sided tests (TOST) for a difference within ±`delta`, alone.
    """
    n = min(len(scores[name]) for name in claim) if claim else 0
    planned = sorted({*looks, n})  # all n seeds are looked at, planned or not
    alpha, found = ALPHA / len(planned), list[Decision]()
    for at in planned[: planned.index(n) + 1]:
        now = _judge(claim, {name: own[:at] for name, own in scores.items()}, delta, alpha)
        stands = [(d.outcome, d.at) if d.at else None for d in found] or [None] * len(now)
        found = [
            d if earlier is None else d._replace(outcome=earlier[0], at=earlier[1])
            for d, earlier in zip(now, stands, strict=True)
        ]
    return found


def _judge(
    claim: Sequence[str], scores: Mapping[str, Sequence[float]], delta: float, alpha: float
) -> list[Decision]:
    """Judges the differences at one look, which spends `alpha`."""
    found = []
    for better, worse in pairwise(claim):
        apart = np.subtract(scores[better], scores[worse])
        counts = (0, len(apart), int((apart > 0).sum()))
        p, *interval = sign_flip(apart, alpha)
        tests = p, equivalence(apart, delta), detectable(apart, alpha)
        difference = Difference(float(apart.mean()), *interval)
        found.append(Decision(better, worse, UNDECIDED, *counts, difference, *tests))
    left = len(found)
    for i in sorted(range(len(found)), key=lambda i: found[i].p):
        if found[i].p > alpha / left:
            break
        outcome = CONFIRMED if found[i].difference.mean > 0 else REFUTED
        found[i] = found[i]._replace(outcome=outcome, at=found[i].n)
        left -= 1
    return [
        d._replace(outcome=EQUIVALENT, at=d.n) if not d.at and d.p_equivalent <= alpha else d
        for d in found
    ]


def sign_flip(differences: np.ndarray, alpha: float = ALPHA) -> tuple[float, float, float]:
    """Tests a mean of 0 by flipping signs: were it true, each might as well be the other.

    Returns the two-sided p, and the interval of all means that the same test does not reject at
    `alpha`, which is infinite where n is too small to reject any. For a mean to be rejected, few of
    the subsets of differences may have their own mean on its other side (Hartigan 1969). Up to
    `EXACT` differences, all subsets count; of more, `RESAMPLES` random ones.

    >>> p, low, high = sign_flip(np.array([0.1, 0.3, 0.2, 0.1, 0.2, 0.1, 0.4, 0.2]), alpha=1 / 64)
    >>> p == 2 / 2**8, low, high
    (True, 0.1, 0.35)
    """
    n = len(differences)
    if n <= EXACT:
        chosen = np.arange(1, 2**n)[:, None] >> np.arange(n) & 1
    else:
        chosen = np.random.default_rng(0).integers(0, 2, (RESAMPLES, n))
    # What is equal but for rounding is equal.
    means = np.sort((chosen @ differences / chosen.sum(1)).round(12))
    total, beyond = len(means) + 1, min((means <= 0).sum(), (means >= 0).sum())
    outside = int(alpha / 2 * total + 1e-9)
    low, high = (means[outside - 1], means[-outside]) if outside else (-math.inf, math.inf)
    return min(1.0, 2 * (1 + int(beyond)) / total), float(low), float(high)


def equivalence(differences: np.ndarray, delta: float) -> float:
    """The p of a mean that is not within ±delta: the larger of two one-sided t-tests (TOST)."""
    n = len(differences)
    if n < 2:
        return 1.0
    if np.ptp(differences) == 0:
        return float(abs(differences[0]) >= delta)
    from scipy.special import stdtr  # scipy.stats has the whole test, and takes seconds to import

    mean, error = differences.mean(), differences.std(ddof=1) / math.sqrt(n)
    return float(max(stdtr(n - 1, np.array([-mean - delta, mean - delta]) / error)))


def detectable(differences: np.ndarray, alpha: float = ALPHA) -> float:
    """The smallest mean that a t-test of as many differences, as spread, finds with `POWER`."""
    n = len(differences)
    if n < 2:
        return math.inf
    from scipy.special import stdtrit

    quantiles = stdtrit(n - 1, [1 - alpha / 2, POWER])
    return float(quantiles.sum() * differences.std(ddof=1) / math.sqrt(n))
