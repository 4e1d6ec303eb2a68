"""Where the shortcut goes: between bottlenecks, between expansions, nowhere (Fig. 6b).

    python main.py --config experiments/ablate_shortcut.py

The paper: between bottlenecks is best, none is worst. It does not say how expansions are connected;
here each block's expanded tensor is added to the next block's where shapes agree, which makes as
many shortcuts as there are between bottlenecks.

Measured on digits with 64 seeds: between bottlenecks 95.7 ± 1.4 %, between expansions 95.3 ± 1.6 %,
none 91.3 ± 2.8 %. Shortcuts help, which 16 seeds confirmed; where they go stays undecided, at +0.5
points with an interval of -0.3 to 1.2 (results/ablate_shortcut). Nine minutes on two CPU cores.

On all of Fashion-MNIST, with the first 8 of up to 32 seeds: 89.3 ± 0.3, 88.7 ± 0.6, 88.5 ± 0.4 %.
Expansions and none are equivalent within a point; bottlenecks over expansions, +0.6 points with an
interval of 0.1 to 1.2, is undecided so far (results/ablate_shortcut-fashion_mnist). On the subset
of 6,000 images neither is decided with as many (results/ablate_shortcut-fashion_mnist_small).
Presets are the scales of `scales.py`.
"""

from ml_collections import ConfigDict

from experiments.scales import set_scale
from mnv2_jax.lab.train.defaults import base


def get_config(preset: str = "digits") -> ConfigDict:
    c = base()
    c.name, c.title = "ablate_shortcut", "Placement of the shortcut (Fig. 6b)"
    order = ("between_bottlenecks", "between_expansions", "none")
    c.sweep.variants = ConfigDict({name: {"model": {"shortcut": name}} for name in order})
    c.sweep.reference, c.sweep.claim = order[0], order
    set_scale(c, preset)
    return c
