"""How often intervals of a mean of few differences hold the truth: bootstrap, t and sign flips.

    python -m docs.intervals

For docs/protocol.md. The differences are drawn from a normal distribution with mean 0; those on
test images are of two classifiers of which seeds, images and both together move the logits.
"""

import numpy as np
from scipy import stats

from mnv2_jax.lab.train.decision import over_images, paired_difference, sign_flip

TIMES, SEEDS = 4000, (8, 16, 32)
# Of comparisons on images: seeds, images, and how far a seed and an image favour one classifier.
SETTINGS = (
    (8, 300, 0.0, 0.0), (8, 2000, 0.1, 0.3), (8, 2000, 0.5, 0.3), (8, 300, 0.0, 1.5),
    (4, 300, 0.3, 0.3), (16, 1000, 0.05, 0.3),
)  # fmt: skip
COMPARISONS = 400


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
    print("\n| seeds | images | by seed | by image | seeds and images | Student's t, seeds |")
    print("|---|---|---|---|---|---|")
    for setting in SETTINGS:
        truth = np.mean([draw(rng, 50, 20000, *setting[2:]).mean() for _ in range(40)])
        held = np.zeros(2)
        for _ in range(COMPARISONS):
            apart = draw(rng, *setting)
            alone = paired_difference(apart.mean(1), np.zeros(len(apart)))
            held += [own.low <= truth <= own.high for own in (over_images(apart), alone)]
        shares = " | ".join(f"{share:.1%}" for share in held / COMPARISONS)
        print(f"| {' | '.join(map(str, setting))} | {shares} |", flush=True)


def draw(
    rng: np.random.Generator, seeds: int, images: int, by_seed: float, by_image: float
) -> np.ndarray:
    """What two classifiers of about 90 % get right, the first less the second: (seeds, images)."""
    logit, favour = rng.normal(2.5, 1.5, images), rng.normal(0.15, by_image, images)
    favour = (favour + rng.normal(0, by_seed, (seeds, 1))) / 2
    noise = rng.normal(size=(2, seeds, images))
    return (logit + favour + noise[0] > 0).astype(int) - (logit - favour + noise[1] > 0)


if __name__ == "__main__":
    main()
