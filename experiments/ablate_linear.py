"""Linear against ReLU6 bottlenecks (Fig. 6a).

    python main.py --config experiments/ablate_linear.py

The paper: a non-linearity in the bottleneck hurts.

Measured on digits with 8 seeds: linear 95.1 ± 0.8 %, ReLU6 92.2 ± 2.8 %, a paired difference of 2.9
points with a 95 % confidence interval of 0.5 to 5.4 (results/ablate_linear). On two CPU cores it
takes about a minute and a half, less when started again. Presets are the scales of `scales.py`.
"""

from ml_collections import ConfigDict

from experiments.imagenet import base
from experiments.scales import set_scale


def get_config(preset: str = "digits") -> ConfigDict:
    c = base()
    c.name, c.title = "ablate_linear", "Linear or ReLU6 bottleneck (Fig. 6a)"
    c.sweep.variants = ConfigDict(
        {
            "linear": {"model": {"bottleneck": "linear"}},
            "relu6": {"model": {"bottleneck": "relu6"}},
        }
    )
    c.sweep.reference, c.sweep.claim = "linear", ("linear", "relu6")
    set_scale(c, preset)
    return c
