"""Linear against ReLU6 bottlenecks (Fig. 6a).

    python main.py --config experiments/ablate_linear.py

The paper: a non-linearity in the bottleneck hurts.

Measured on digits: linear 95.8 ± 1.8 %, ReLU6 93.3 ± 2.2 %, confirmed after 16 seeds, with a paired
difference of 2.5 points and an interval of 0.6 to 4.4 (results/ablate_linear). On two CPU cores it
takes about a minute and a half, less when started again. Presets are the scales of `scales.py`.

Measured on the Fashion-MNIST subset: linear 86.9 ± 0.7 %, ReLU6 86.2 ± 1.0 %, confirmed after 16
seeds, with 0.7 points and an interval of 0.2 to 1.2 (results/ablate_linear-fashion_mnist_small). On
all of it: 89.1 ± 0.2 and 88.7 ± 0.3 %, 0.4 points with an interval of -0.1 to 0.9 after 8 seeds, so
equivalent within a point (results/ablate_linear-fashion_mnist).
"""

from ml_collections import ConfigDict

from experiments.scales import set_scale
from mnv2_jax.lab.train.defaults import base


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
