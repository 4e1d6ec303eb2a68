"""ReLU6 against ReLU at low precision (Sec. 3.3: "robustness when used with low-precision").

    python main.py --config experiments/ablate_lowprecision.py

Both are trained in float32, then evaluated in bfloat16, in int8 after calibration (PTQ), and in
int8 after two more epochs with rounding in the loop (QAT), and after the same two epochs without.
Presets are the scales of `scales.py`.

Measured with `:fashion_mnist_small` and eight seeds: int8 changes ReLU6 by -0.1 points and ReLU by
+0.1, so that ReLU6 is the worse one by 0.2 [0.0, 0.4], which is little, and against the paper. In
bfloat16, and after two more epochs with rounding in the loop, the two are equivalent: QAT gains 0.5
points with both, the same epochs without rounding 0.5 and 0.7
(results/ablate_lowprecision-fashion_mnist_small).
"""

from ml_collections import ConfigDict

from experiments.scales import set_scale
from mnv2_jax.lab.train.defaults import base


def get_config(preset: str = "digits") -> ConfigDict:
    c = base()
    c.name, c.title = "ablate_lowprecision", "ReLU6 or ReLU at low precision (Sec. 3.3)"
    c.low_precision = ("bfloat16", "int8", "int8_trained", "float32_trained")
    c.sweep.variants = ConfigDict(
        {
            "relu6": {"model": {"activation": "relu6"}},
            "relu": {"model": {"activation": "relu"}},
        }
    )
    c.sweep.reference = "relu6"
    set_scale(c, preset)
    return c
