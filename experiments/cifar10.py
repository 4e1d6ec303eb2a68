"""CIFAR-10 at width 1.0, total stride 8.

    python main.py --config experiments/cifar10.py --config.data.root=/folder/of/the/archive

The archive is cifar-10-binary.tar.gz. Published beside it: about 94 % for MobileNetV2 with plain
augmentation. Not run here: the archive is not at hand.
"""

from ml_collections import ConfigDict

from experiments.scales import cifar10
from mnv2_jax.lab.train.defaults import base


def get_config() -> ConfigDict:
    c = base()
    cifar10(c)
    c.name, c.title = "cifar10", "CIFAR-10"
    c.epochs, c.ema_decay, c.loss.label_smoothing = 200.0, 0.999, 0.1
    c.sweep.seeds = (0, 1, 2)
    return c
