"""Where the shortcut goes: between bottlenecks, between expansions, nowhere (Fig. 6b).

    python main.py --config experiments/ablate_shortcut.py

The paper: between bottlenecks is best, none is worst. It does not say how expansions are connected;
here each block's expanded tensor is added to the next block's where shapes agree, which makes as
many shortcuts as there are between bottlenecks.

Measured on digits with 8 seeds: between bottlenecks 95.1 ± 0.8 %, between expansions 95.8 ± 1.3 %,
none 92.2 ± 2.7 %. Shortcuts help clearly; eight seeds do not tell bottlenecks and expansions apart.
A minute and a quarter on two CPU cores (results/ablate_shortcut). Presets are the scales of
`scales.py`.
"""

from ml_collections import ConfigDict

from experiments.imagenet import base
from experiments.scales import set_scale


def get_config(preset: str = "digits") -> ConfigDict:
    c = base()
    c.name, c.title = "ablate_shortcut", "Placement of the shortcut (Fig. 6b)"
    order = ("between_bottlenecks", "between_expansions", "none")
    c.sweep.variants = ConfigDict({name: {"model": {"shortcut": name}} for name in order})
    c.sweep.reference, c.sweep.claim = order[0], order
    set_scale(c, preset)
    return c
