"""Distillation: a small network learns from a larger one trained here, beside the same without.

    python main.py --config experiments/fashion_mnist.py:laptop
    python main.py --config experiments/distill.py \
        --config.teacher.model=runs/fashion_mnist-laptop/default/seed_0

The teacher is any saved model of this project on the same classes and input range. Presets are the
scales of `scales.py`.
"""

from ml_collections import ConfigDict

from experiments.scales import set_scale
from mnv2_jax.lab.train.defaults import base


def get_config(preset: str = "fashion_mnist_small") -> ConfigDict:
    c = base()
    c.name, c.title = "distill", "Distillation"
    set_scale(c, preset)
    c.name, c.needs = f"distill-{preset}", ("teacher.model",)
    c.sweep.variants = ConfigDict(
        {"distilled": {"teacher": {"weight": 0.7}}, "alone": {"teacher": {"weight": 0.0}}}
    )
    c.sweep.reference = "alone"
    return c
