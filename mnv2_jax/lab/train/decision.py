"""Which variant is better, and how sure that is: paired tests over seeds, within an error rate.

Every seed gives both variants the same initialisation, order and augmentation, so their difference
is tested, seed by seed. A claim "better above worse" ends as **confirmed** or **refuted** (the
difference is not 0), as **equivalent** (it is smaller than what is of interest) or, if neither can
be said, as **undecided**. Results may be looked at several times while seeds are added: each of
`looks` looks spends an equal part of alpha, which holds whatever the looks have in common.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

ALPHA = 0.05  # of all differences of a claim together (Holm), and of each equivalence
DELTA = 0.01  # the smallest difference of interest, unless `sweep.delta` says another
POWER = 0.9  # with which the smallest detectable difference would be found
RESAMPLES = 9999
CONFIRMED, REFUTED, EQUIVALENT, UNDECIDED = "confirmed", "refuted", "equivalent", "undecided"


class Difference(NamedTuple):
    """The mean of two variants' differences, seed by seed, and its 95 % confidence interval."""

    mean: float
    low: float  # Student's t; infinite for one seed
    high: float


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Compares two variants seed by seed, which cancels what a seed does to both.

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


class Decision(NamedTuple):
    """What seeds say of one variant against another, whose scores are shares of 1."""

    better: str  # as the claim has it
    worse: str
    outcome: str  # confirmed, refuted, equivalent or undecided
    n: int  # seeds that both have
    difference: Difference  # of better less worse
    p: float  # two-sided, of no difference: sign flips, exact for up to 13 seeds
    p_equivalent: float  # of a difference of at least delta: two one-sided t-tests
    detectable: float  # the smallest mean that as many seeds would find in nine of ten sweeps


def decide(
    claim: Sequence[str], scores: Mapping[str, Sequence[float]], delta: float, looks: int = 1
) -> list[Decision]:
    """Judges each two neighbours of a claim, best first, on the scores of common seeds.

    Differences are judged together: the smallest p first, against alpha over as many as are left
    (Holm). Equivalence asks two one-sided tests (TOST) for a difference within ±`delta`, alone.
    `looks` is how often the results are looked at, from the first seeds to the last.
    """
    found = []
    for better, worse in pairwise(claim):
        apart = np.subtract(scores[better], scores[worse])
        difference = paired_difference(scores[better], scores[worse])
        tests = sign_flip(apart), equivalence(apart, delta), detectable(apart)
        found.append(Decision(better, worse, UNDECIDED, len(apart), difference, *tests))
    alpha, left = ALPHA / looks, len(found)
    for i in sorted(range(len(found)), key=lambda i: found[i].p):
        if found[i].p > alpha / left:
            break
        found[i] = found[i]._replace(outcome=CONFIRMED if found[i].difference.mean > 0 else REFUTED)
        left -= 1
    return [
        d._replace(outcome=EQUIVALENT) if d.outcome == UNDECIDED and d.p_equivalent <= alpha else d
        for d in found
    ]


def sign_flip(differences: np.ndarray) -> float:
    """The two-sided p of a mean of 0 if every difference might as well have the other sign.

    >>> sign_flip(np.array([0.1, 0.3, 0.2, 0.1, 0.2, 0.1, 0.4, 0.2])) == 2 / 2**8
    True
    """
    from scipy.stats import permutation_test  # with all of scipy.stats it takes a second

    if len(differences) < 2 or not differences.any():
        return 1.0

    def statistic(x: np.ndarray, axis: int) -> np.ndarray:
        return np.mean(x, axis=axis).round(12)  # what is equal but for rounding is equal

    options = {"n_resamples": RESAMPLES, "permutation_type": "samples", "vectorized": True}
    rng = np.random.default_rng(0)
    return float(permutation_test((differences,), statistic, rng=rng, **options).pvalue)


def equivalence(differences: np.ndarray, delta: float) -> float:
    """The p of a mean that is not within ±delta: the larger of two one-sided t-tests (TOST)."""
    from scipy.stats import ttest_1samp

    if len(differences) < 2:
        return 1.0
    if np.ptp(differences) == 0:
        return float(abs(differences[0]) >= delta)
    above: Any = ttest_1samp(differences, -delta, alternative="greater")
    below: Any = ttest_1samp(differences, delta, alternative="less")
    return float(max(above.pvalue, below.pvalue))


def detectable(differences: np.ndarray) -> float:
    """The smallest mean that a t-test of as many differences, as spread, finds with `POWER`."""
    from scipy.special import stdtrit

    n = len(differences)
    if n < 2:
        return math.inf
    quantiles = stdtrit(n - 1, [1 - ALPHA / 2, POWER])
    return float(quantiles.sum() * differences.std(ddof=1) / math.sqrt(n))
