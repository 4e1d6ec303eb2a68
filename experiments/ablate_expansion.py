"""The expansion factor t = 1, 2, 3, 6, 10 (Sec. 3.3, Sec. 5).

    python main.py --config experiments/ablate_expansion.py

The paper: factors between 5 and 10 give nearly the same curves; smaller networks fare better with
slightly smaller ones. Unlike the ablations of Fig. 6, the variants differ in parameters and cost.

Measured on digits with 8 seeds, for t = 1, 2, 3, 6, 10: 91.2, 91.9, 94.0, 96.1 and 96.8 %; the last
two are within noise of each other, the others below t = 6 (results/ablate_expansion). Presets are
the scales of `scales.py`.
"""

from ml_collections import ConfigDict

from experiments.imagenet import base
from experiments.scales import set_scale


def get_config(preset: str = "digits") -> ConfigDict:
    c = base()
    c.name, c.title = "ablate_expansion", "Expansion factor t"
    c.sweep.variants = ConfigDict(
        {f"t_{t}": {"model": {"expansion": t}} for t in (1, 2, 3, 6, 10)}, sort_keys=False
    )
    c.sweep.reference = "t_6"
    set_scale(c, preset)
    return c
