"""Full Fashion-MNIST (70,000 images of 28×28) at width 1.0, total stride 8.

    apt-get install dataset-fashion-mnist    # or the four IDX files in --config.data.root
    python main.py --config experiments/fashion_mnist.py

Published beside it: 95.0 % for "MobileNet with flips", 96.3 % for WRN-28-10. The default is for an
accelerator and not measured yet. `:laptop` is a network of width 0.35 trained for 8 epochs, and
`:record` one of half the width (0.70 M parameters) for 16 epochs with three seeds. `:tricks` shows
what each part of that recipe adds, and what mixup or stochastic depth would: with and without it,
on the scales' thin network for 4 epochs, so that a run takes two minutes.

Measured with `:laptop`, one seed: 92.2 % in 35 minutes on two busy CPU cores
(results/fashion_mnist).
"""

from ml_collections import ConfigDict

from experiments.scales import small_images
from mnv2_jax.errors import unknown
from mnv2_jax.lab.train.defaults import base

SGD = {
    "name": "sgd", "learning_rate": 0.2, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4,
}  # fmt: skip
TRICKS = {
    "recipe": {},
    "no_flip": {"data": {"train": {"flip": 0.0}}},
    "no_shift": {"data": {"train": {"crop": "none"}}},
    "no_smoothing": {"loss": {"label_smoothing": 0.0}},
    "no_averaging": {"ema_decay": 1e-6},  # nearly 0, so that it is scored as the others are
    "sgd": {"optimizer": SGD},
    "sgd_of_half_the_batch": {"optimizer": SGD | {"learning_rate": 0.1}, "batch_size": 64},
    "twice_the_rate": {"optimizer": {"learning_rate": 0.1}},
    "no_dropout": {"model": {"dropout": 0.0}},
    "and_mixup": {"loss": {"mixup": 0.2}},
    "and_stochastic_depth": {"model": {"stochastic_depth": 0.1}},
}


def get_config(preset: str = "accelerator") -> ConfigDict:
    c = base()
    small_images(c)
    c.data.name, c.data.resolution, c.data.train.pad = "fashion_mnist", 28, 2
    c.name, c.title = "fashion_mnist", "Fashion-MNIST"
    c.model.spec = "small_32"
    c.model.width, c.epochs, c.ema_decay = 1.0, 100.0, 0.999
    c.loss.label_smoothing = 0.1
    if preset == "laptop":
        c.name = "fashion_mnist-laptop"
        c.model.width, c.epochs, c.ema_decay, c.sweep.seeds = 0.35, 8.0, 0.995, (0,)
    elif preset == "record":
        c.name = "fashion_mnist-record"
        c.model.width, c.epochs, c.ema_decay, c.sweep.seeds = 0.5, 16.0, 0.998, (0, 1, 2)
        muon(c)
        c.eval_every_epochs = 4.0  # an evaluation takes a tenth of an epoch's time
    elif preset == "tricks":
        c.name, c.title = "fashion_mnist-tricks", "What each trick adds on Fashion-MNIST"
        c.model.spec, c.model.width, c.epochs, c.ema_decay = "small_96", 0.5, 4.0, 0.995
        muon(c)
        c.sweep.variants, c.sweep.reference = ConfigDict(TRICKS, sort_keys=False), "recipe"
        c.sweep.seeds = (0, 1, 2, 3)
    elif preset != "accelerator":
        raise unknown("preset", preset, ["accelerator", "laptop", "record", "tricks"])
    return c


def muon(c: ConfigDict) -> None:
    """Is further than SGD after as many steps: see `:tricks`."""
    c.optimizer.name, c.optimizer.learning_rate, c.optimizer.weight_decay = "muon", 0.05, 0.02
