"""How often intervals of a mean of few differences hold the truth: bootstrap, t and sign flips.

    python -m docs.intervals

For docs/protocol.md. The differences are drawn from a normal distribution with mean 0.
"""

import numpy as np
from scipy import stats

from mnv2_jax.lab.train.decision import sign_flip

TIMES, SEEDS = 4000, (8, 16, 32)


def main() -> None:
    rng = np.random.default_rng(0)
    print("| seeds | BCa | Student's t | sign flips |\n|---|---|---|---|")
    for n in SEEDS:
        samples = rng.normal(size=(TIMES, n))
        bca = [
            stats.bootstrap((own,), np.mean, method="BCa", n_resamples=1999, rng=rng)
            for own in samples
        ]
        held = np.mean([b.confidence_interval.low <= 0 <= b.confidence_interval.high for b in bca])
        interval = stats.ttest_1samp(samples, 0.0, axis=1).confidence_interval()
        student = np.mean((interval.low <= 0) & (interval.high >= 0))
        flips = np.array([sign_flip(own)[1:] for own in samples])
        flipped = np.mean((flips[:, 0] <= 0) & (flips[:, 1] >= 0))
        print(f"| {n} | {held:.1%} | {student:.1%} | {flipped:.1%} |")


if __name__ == "__main__":
    main()
