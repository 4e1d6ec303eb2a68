"""A learning rate for each variant of an ablation, from seeds that its comparison does not use.

    python main.py --config experiments/rates.py:ablate_linear
    python -m experiments.rates runs/rates_ablate_linear

A rate that suits one variant better would decide a comparison. So each variant gets the best of one
grid, at the length of training that it is compared at. The first command trains every variant at
every rate, the second chooses: its line belongs to `RATES` in `scales.py`. Presets are the
ablations on digits, and `ABLATION.SCALE` for the other scales of `scales.py`.
"""

import sys
from collections.abc import Mapping, Sequence
from math import log, sqrt
from pathlib import Path
from statistics import mean, stdev

from ml_collections import ConfigDict

from experiments import ablate_expansion, ablate_linear, ablate_sandglass, ablate_shortcut
from mnv2_jax.errors import UsageError, unknown

ABLATIONS = {
    "ablate_linear": ablate_linear, "ablate_shortcut": ablate_shortcut,
    "ablate_expansion": ablate_expansion, "ablate_sandglass": ablate_sandglass,
}  # fmt: skip
PARTS = ablate_sandglass.PARTS
# In thousandths, as variants are named, whose names have no dots.
GRID = ("25e-3", "50e-3", "100e-3", "200e-3", "400e-3")
SEEDS = tuple(range(1000, 1008))


def get_config(preset: str = "ablate_linear") -> ConfigDict:
    ablation, _, scale = preset.partition(".")
    if ablation not in ABLATIONS:
        raise unknown("preset", preset, ABLATIONS)
    c = ABLATIONS[ablation].get_config(scale or "digits")
    c.name, c.title = f"rates_{c.name}", f"Learning rates for: {c.title}"
    c.sweep.variants = ConfigDict(
        {
            f"{name}@{rate}": {**changes, "optimizer": {"learning_rate": float(rate)}}
            for name, changes in c.sweep.variants.to_dict().items()
            for rate in GRID
        },
        sort_keys=False,
    )
    c.sweep.reference, c.sweep.claim, c.sweep.seeds = f"{c.sweep.reference}@100e-3", (), SEEDS
    c.sweep.looks = ()
    return c


def choose(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns the rate of each variant, from the scores of `VARIANT@RATE` with several seeds.

    It is the one with the highest mean. Those within that one's standard error are ties, of which
    the nearest to 0.1 in ratio is taken, and of two that are as near the better one.
    """
    found: dict[str, dict[float, Sequence[float]]] = {}
    for variant, own in scores.items():
        name, at, rate = variant.rpartition("@")
        if not at:
            want = "give the folder of a training of experiments/rates.py"
            raise UsageError(f"variant {variant!r} names no learning rate: {want}.")
        found.setdefault(name, {})[float(rate)] = own
    chosen = {}
    for name, rates in found.items():
        best = max(rates.values(), key=mean)
        least = mean(best) - (stdev(best) / sqrt(len(best)) if len(best) > 1 else 0.0)
        ties = [rate for rate, own in rates.items() if mean(own) >= least]
        chosen[name] = min(ties, key=lambda r: (round(abs(log(r / 0.1)), 6), -mean(rates[r])))
    return chosen


def main(folders: Sequence[str]) -> None:
    from mnv2_jax.lab.paper.results import read  # which the presets do without

    ends = {float(GRID[0]), float(GRID[-1])}
    for folder in map(Path, folders):
        chosen = choose(read(folder).scores)
        print(f'"{folder.name.removeprefix("rates_")}": {chosen},')
        for name in (name for name, rate in chosen.items() if rate in ends):
            print(f"note: {name} is at an end of the grid", file=sys.stderr)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UsageError as error:
        sys.exit(str(error))
