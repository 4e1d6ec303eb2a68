"""ReLU6 against ReLU at low precision (Sec. 3.3: "robustness when used with low-precision").

    python main.py --config experiments/ablate_lowprecision.py

Both are trained in float32, then evaluated in bfloat16, in int8 after calibration (PTQ), and in
int8 after two more epochs with rounding in the loop (QAT), and after the same two epochs without.
Presets are the scales of `scales.py`.

Measured with `:fashion_mnist_small` and one seed, so that differences of less than about a point
say nothing: bfloat16 costs 0.1 points with ReLU6 and nothing with ReLU, int8 0.3 and nothing. Two
more epochs with rounding in the loop end 0.3 and 0.1 points above the same epochs without: QAT
costs nothing (results/ablate_lowprecision). Not measured with several seeds yet.
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
