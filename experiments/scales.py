"""The scales that an ablation runs at: data, network, length of training. Each ablation takes all.

`experiments/ablate_linear.py:fashion_mnist` is the ablation on full Fashion-MNIST, and so on; the
default, `digits`, needs no files and takes a minute on two cores.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from mnv2_jax.errors import unknown


def digits(c: ConfigDict) -> None:
    """The 1,797 embedded 8×8 digits, eight very thin blocks."""
    c.data.name, c.data.resolution = "digits", 8
    c.data.train.crop, c.data.train.pad, c.data.train.flip = "pad", 1, 0.0
    c.data.eval.crop, c.data.resplit = "none", True
    c.model.spec, c.model.dialect, c.model.dropout = "tiny_8", "torchvision", 0.0
    c.batch_size, c.eval_batch_size, c.steps = 64, 360, 300
    c.optimizer.name, c.optimizer.schedule = "sgd", "cosine"
    c.optimizer.learning_rate, c.optimizer.warmup_epochs = 0.1, 1.0
    c.sweep.at_once = 8
    until_decided(c, 64, otherwise=8)
    c.log_every, c.eval_every_epochs = 20, 1.0


def fashion_mnist_small(c: ConfigDict) -> None:
    """The embedded 8,000 images of Fashion-MNIST, 6,000 of them to train on."""
    fashion_mnist(c)
    c.data.name, c.data.resplit, c.epochs = "fashion_mnist_small", True, 20.0


def fashion_mnist(c: ConfigDict) -> None:
    """Full Fashion-MNIST from its IDX files, eight thin blocks: a minute or two a run."""
    small_images(c)
    c.data.name, c.data.resolution, c.data.train.pad = "fashion_mnist", 28, 2
    c.model.spec, c.model.width = "small_96", 0.5
    c.epochs = 4.0
    until_decided(c, 32, otherwise=8)


def cifar10(c: ConfigDict) -> None:
    """CIFAR-10 from its archive in `data.root`, full width; for an accelerator."""
    small_images(c)
    c.data.name, c.data.resolution, c.data.train.pad = "cifar10", 32, 4
    c.model.spec, c.epochs = "small_32", 100.0
    c.optimizer.weight_decay = 4e-5  # of the published 95.1 % with 2.2 M parameters
    until_decided(c, 32, otherwise=5)


def small_images(c: ConfigDict) -> None:
    """What sets of images of about 32×32 have in common."""
    c.data.train.crop, c.data.train.flip = "pad", 0.5
    c.data.eval.crop, c.model.dialect = "none", "torchvision"
    c.batch_size, c.eval_batch_size = 128, 1000
    c.optimizer.name, c.optimizer.schedule = "sgd", "cosine"
    c.optimizer.learning_rate, c.optimizer.warmup_epochs = 0.1, 1.0
    c.optimizer.weight_decay, c.optimizer.decay_depthwise = 5e-4, True


def imagenette(c: ConfigDict) -> None:
    """Ten classes of ImageNet at 160 pixels, prepared by `mnv2 prepare imagenette/160px-v2`."""
    c.data.name, c.data.resolution = "tfds:imagenette/160px-v2", 128
    c.data.eval_split = "validation"
    c.model.dialect = "torchvision"
    c.batch_size, c.eval_batch_size, c.epochs = 64, 256, 60.0
    c.optimizer.name, c.optimizer.schedule = "sgd", "cosine"
    c.optimizer.learning_rate, c.optimizer.warmup_epochs = 0.05, 2.0
    c.sweep.seeds = tuple(range(5))


def imagenet2012(c: ConfigDict) -> None:
    """ImageNet from the official archives in `data.root`, with the base's recipe, one seed."""
    c.sweep.seeds = (0,)


def until_decided(c: ConfigDict, most: int, otherwise: int) -> None:
    """Adds seeds, 8 at first, twice as many at each look, up to `most` until the claim is decided.

    An experiment that claims nothing has `otherwise` seeds.
    """
    looks = tuple(n for n in (8, 16, 32, 64) if n <= most and c.sweep.claim)
    c.sweep.looks, c.sweep.seeds = looks, tuple(range(most if looks else otherwise))


SCALES: dict[str, Callable[[ConfigDict], None]] = {
    "digits": digits,
    "fashion_mnist_small": fashion_mnist_small,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "imagenette": imagenette,
    "imagenet2012": imagenet2012,
}


# By experiment and variant, the learning rates that `rates.py` chose; without one, the scale's.
RATES: dict[str, dict[str, float]] = {
    "ablate_linear": {"linear": 0.1, "relu6": 0.1},
    "ablate_shortcut": {"between_bottlenecks": 0.1, "between_expansions": 0.05, "none": 0.1},
    "ablate_sandglass": {"inverted_residual": 0.1, "sandglass": 0.2},
    "ablate_expansion": {"t_1": 0.1, "t_2": 0.1, "t_3": 0.2, "t_6": 0.1, "t_10": 0.2},
}


def set_scale(config: ConfigDict, preset: str) -> None:
    """Changes a configuration to one of the scales; its name tells all but the default.

    Variants get their own learning rate where one was chosen.
    """
    if preset not in SCALES:
        raise unknown("preset", preset, SCALES)
    SCALES[preset](config)
    if preset != "digits":
        config.name += f"-{preset}"
    for variant, rate in RATES.get(config.name, {}).items():
        if rate != config.optimizer.learning_rate:  # which an override may change for the others
            config.sweep.variants[variant].optimizer = {"learning_rate": rate}
