"""Accuracy against cost over widths × resolutions (Fig. 5).

    python main.py --config experiments/tradeoff.py:imagenet2012 --config.data.root=...

The paper's grid: widths 0.35 to 1.0 at 96 to 224 pixels, and 1.4 at 224. Digits are shown at 8 and
16 pixels. Presets are the scales of `scales.py`.

Measured on digits with 16 seeds: from 85.5 ± 3.3 % (width 0.35 at 8 pixels) to 98.5 ± 0.7 % (width
1.4 at 16). At 16 pixels each width is confirmed above the next smaller one, but for 1.0 and 0.75,
which are equivalent (results/tradeoff).
"""

from ml_collections import ConfigDict

from experiments.scales import set_scale, until_decided
from mnv2_jax.lab.train.defaults import base

RESOLUTIONS = {
    "digits": (8, 16),
    "fashion_mnist_small": (20, 28),
    "fashion_mnist": (20, 24, 28),
    "cifar10": (20, 24, 32),
    "imagenette": (96, 128, 160),
    "imagenet2012": (96, 128, 160, 192, 224),
}
WIDTHS = (0.35, 0.5, 0.75, 1.0)


def get_config(preset: str = "digits") -> ConfigDict:
    c = base()
    c.name, c.title = "tradeoff", "Accuracy against cost (Fig. 5)"
    set_scale(c, preset)
    largest = max(RESOLUTIONS[preset])
    c.sweep.claim = tuple(f"width_{w}-size_{largest}" for w in (140, 100, 75, 50, 35))
    if preset == "digits":
        until_decided(c, 16, otherwise=8)
    grid = [(w, r) for w in WIDTHS for r in RESOLUTIONS[preset]] + [(1.4, largest)]
    c.sweep.variants = ConfigDict(
        {
            f"width_{round(100 * w)}-size_{r}": {"model": {"width": w}, "data": {"resolution": r}}
            for w, r in grid
        },
        sort_keys=False,
    )
    c.sweep.reference = f"width_100-size_{largest}"
    return c
