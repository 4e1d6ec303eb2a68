"""The expansion factor t = 1, 2, 3, 6, 10 (Sec. 3.3, Sec. 5).

    python main.py --config experiments/ablate_expansion.py

The paper: factors between 5 and 10 give nearly the same curves; smaller networks fare better with
slightly smaller ones. Unlike the ablations of Fig. 6, the variants differ in parameters and cost.

Measured on digits with 8 seeds, for t = 1, 2, 3, 6, 10: 89.7, 92.0, 93.4, 95.1, 96.5 %; t = 10 is
1.4 points above t = 6, with an interval that touches 0, the others are below (results/
ablate_expansion). Presets are the scales of `scales.py`.
"""

from ml_collections import ConfigDict

from experiments.imagenet import base
from experiments.scales import set_scale


def get_config(preset: str = "digits") -> ConfigDict:
    c = base()
    c.name, c.title = "ablate_expansion", "Expansion factor t"
    variants = {f"t_{t}": {"model": {"expansion": t}} for t in (1, 2, 3, 6, 10)}
    c.sweep.variants = ConfigDict(variants, sort_keys=False)
    c.sweep.reference, c.sweep.claim = "t_6", tuple(variants)[::-1]
    set_scale(c, preset)
    return c
