"""The expansion factor t = 1, 2, 3, 6, 10 (Sec. 3.3, Sec. 5).

    python main.py --config experiments/ablate_expansion.py

The paper: factors between 5 and 10 give nearly the same curves; smaller networks fare better with
slightly smaller ones. Unlike the ablations of Fig. 6, the variants differ in parameters and cost.

Measured on digits with 64 seeds, for t = 1, 2, 3, 6, 10: 90.8, 91.4, 93.6, 95.7, 96.5 %. Each is
confirmed to be above the next smaller one, but t = 2 above 1; t = 10 is 0.8 points above t = 6,
with an interval of 0.2 to 1.4 (results/ablate_expansion). A quarter of an hour on two CPU cores.
Presets are the scales of `scales.py`.
"""

from ml_collections import ConfigDict

from experiments.scales import set_scale
from mnv2_jax.lab.train.defaults import base


def get_config(preset: str = "digits") -> ConfigDict:
    c = base()
    c.name, c.title = "ablate_expansion", "Expansion factor t"
    variants = {f"t_{t}": {"model": {"expansion": t}} for t in (1, 2, 3, 6, 10)}
    c.sweep.variants = ConfigDict(variants, sort_keys=False)
    c.sweep.reference, c.sweep.claim = "t_6", tuple(variants)[::-1]
    set_scale(c, preset)
    return c
