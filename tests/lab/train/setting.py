"""Small settings that several tests of training share."""

import numpy as np
from ml_collections import ConfigDict

from mnv2_jax.lab.train.defaults import base
from mnv2_jax.models.spec import SPECS, Row, Spec


def settings(**changes) -> ConfigDict:
    """The optimizer's part of the base configuration, with a constant rate of 0.1 and changes."""
    config = base().optimizer
    config.update({"learning_rate": 0.1, "schedule": "constant", **changes})
    return config


SPEC = Spec(stem=4, stem_stride=1, rows=(Row(2, 4, 1, 1),), last=8, divisor=2)
"""One block, so that a step compiles in seconds."""


def batch(size=32, classes=3, masked=(), seed=0):
    """Random pictures, labelled by which third of their rows is brightest."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size).astype(np.int32)
    images = rng.integers(0, 120, (size, 6, 6, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 100
    mask = np.ones(size, np.float32)
    mask[list(masked)] = 0
    return {"image": images, "label": labels, "mask": mask, "row": np.arange(size, dtype=np.int32)}


def tiny(name="tiny", steps=12, seeds=(0, 1), **changes) -> ConfigDict:
    """A sweep of two variants on the digits that trains in seconds; `tiny_experiment` runs it.

    Args:
      name: of the experiment.
      steps: of the training, three for each evaluation.
      seeds: of the sweep.
      **changes: groups or keys, as a variant states them.
    """
    SPECS["one_block"] = SPEC
    c = base()
    c.name = name
    c.data.name, c.data.resolution, c.data.threads = "digits", 8, 2
    c.data.train.crop, c.data.train.pad, c.data.train.flip = "pad", 1, 0.0
    c.data.eval.crop = "none"
    c.model.spec, c.model.dropout = "one_block", 0.1
    c.batch_size, c.eval_batch_size, c.epochs, c.steps = 16, 100, 0.0, steps
    c.optimizer.name, c.optimizer.schedule, c.optimizer.learning_rate = "sgd", "cosine", 0.1
    c.ema_decay = 0.9
    c.sweep.variants = ConfigDict(
        {"linear": {"model": {"bottleneck": "linear"}}, "relu6": {"model": {"bottleneck": "relu6"}}}
    )
    c.sweep.reference, c.sweep.claim, c.sweep.seeds = "linear", ("linear", "relu6"), seeds
    c.log_every, c.eval_every_epochs, c.checkpoint_minutes = 2, 3 * 16 / 1437, 1e6
    c.lock()
    c.update(changes)
    return c
