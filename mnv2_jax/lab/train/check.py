"""One cheap check of a whole configuration: everything that shows without its data and devices."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.lab import rules
from mnv2_jax.lab.devices.sharding import BATCH_NORM, LAUNCHERS
from mnv2_jax.lab.rules import each, flag, number, optional, rising, text
from mnv2_jax.lab.tasks import AUTO, TASKS, make_model
from mnv2_jax.lab.train.config import (
    OVERRIDE,
    Config,
    eval_resolution,
    flatten,
    unknown_key,
)
from mnv2_jax.lab.train.optimizer import OPTIMIZERS, SCHEDULES
from mnv2_jax.lab.train.precision import PRECISIONS
from mnv2_jax.models.build import DTYPES

MAX_STEPS = 2**31 - 1  # the state counts them in 32 bits
MAX_SEED = 2**32 - 1  # jax.random.key takes no more bits, and would give larger seeds' keys twice
ANY_CLASSES, ANY_CHANNELS = 2, 3  # the data's own are not known yet

DURATION = r"(\d{1,9}(\.\d{1,9})?[smhd]?)*"


def seconds_of(duration: str) -> float:
    """Returns the seconds of a time as configurations give it; 0 for none.

    >>> seconds_of(""), seconds_of("90"), seconds_of("1h30m")
    (0.0, 90.0, 5400.0)
    """
    units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum((float(n) * units[u] for n, u in re.findall(r"([\d.]+)([smhd]?)", duration)), 0.0)


def duration(value: Any) -> str:
    """A text that `seconds_of` reads."""
    good = isinstance(value, str) and re.fullmatch(DURATION, value)
    return "" if good else "a text such as '90', which is seconds, '10m' or '1h30m'"


# What every key of `defaults.base` has to be. A table holds the choices.
RULES: dict[str, rules.Rule | Mapping[str, Any]] = {
    key: rule
    for rule, keys in (
        (text, "name title data.name data.train_split data.eval_split data.train.crop "
               "data.train.policy sweep.reference"),
        (each(text), "needs low_precision init.frozen sweep.claim"),
        (optional(text), "data.root init.model teacher.model"),
        (flag, "data.on_device data.resplit optimizer.staircase optimizer.nesterov "
               "optimizer.decay_depthwise init.frozen_norm"),
        (number(0.0, 1e38), "optimizer.learning_rate optimizer.power optimizer.epsilon "
                      "optimizer.weight_decay optimizer.clip_norm loss.mixup loss.cutmix "
                      "checkpoint_minutes"),
        (number(0.0, 1.0), "data.bad_record_budget data.train.flip data.train.color "
                           "data.train.erasing optimizer.decay_rate optimizer.decay "
                           "optimizer.momentum optimizer.beta1 optimizer.beta2 "
                           "loss.label_smoothing ema_decay teacher.weight"),
        (number(0.0, 1e6), "epochs optimizer.decay_epochs optimizer.warmup_epochs "
                           "eval_every_epochs"),
        (number(1, 2**20), "batch_size eval_batch_size parallel.accumulate keep_checkpoints"),
        (number(0, 2**20), "parallel.devices parallel.steps_per_call sweep.at_once profile"),
        (number(1e-6, 1.0), "sweep.delta"),
        (number(1, MAX_STEPS), "log_every stop_after_skipped"),
    )
    for key in keys.split()
} | {
    f"{group}.{key}": rule
    for group, own in ({"model": rules.MODEL, "data.eval": rules.EVAL} | rules.HEADS_OF).items()
    for key, rule in own.items()
} | {
    "model.dtype": {**DTYPES, AUTO: None}, "task": TASKS,
    "data.resolution": number(1, rules.MAX_SIDE),
    "data.eval_resolution": number(0, rules.MAX_SIDE), "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES, "parallel.launcher": LAUNCHERS,
    "parallel.batch_norm": dict.fromkeys(BATCH_NORM),
    "data.train.area": rising(0.0001, 1.0), "segment.scale": rising(0.01, 100.0),
    "sweep.seeds": each(number(0, MAX_SEED)), "sweep.looks": each(number(2, 2**20)),
    "teacher.temperature": number(0.01, 1e38), "loss.class_weights": each(number(0.0, 1e6)),
    "data.threads": optional(number(1, 1024)), "data.train.pad": number(0, rules.MAX_SIDE),
    "time": duration, "patience": number(0, MAX_STEPS), "steps": number(0, MAX_STEPS),
}  # fmt: skip


def check(config: Any) -> None:
    """Checks the configuration of one variant, its sweep included."""
    check_sweep(config)
    given = flatten(config)
    for key, rule in RULES.items():
        rules.check_value(key, given[key], rule)
    if not config.steps and not config.epochs:
        raise UsageError("epochs and steps are both 0: set one of them to train at all.")
    _check_what_is_ignored(config)
    for precision in config.low_precision:
        if precision not in PRECISIONS:
            raise unknown("precision in low_precision", precision, PRECISIONS)
    spec = TASKS[config.task]
    spec.train_transform(config, ANY_CHANNELS)
    spec.eval_transform(eval_resolution(config), ANY_CHANNELS, spec.eval_options(config))
    make_model(config, ANY_CLASSES, ANY_CHANNELS)


def check_sweep(config: Any) -> None:
    """Checks what a sweep says of its variants and seeds, and that no key is missing."""
    given = flatten(config)
    if absent := [key for key in RULES if key not in given]:
        raise UsageError(
            f"the configuration has no key {absent[0]!r}: let its get_config begin with base() of "
            "mnv2_jax.lab.train.defaults, which defines them all."
        )
    if not issubclass(type(config), Config):  # which has refused them before
        for key in (key for key in given if key not in RULES and ".variants" not in key):
            raise unknown_key(key, RULES)
    for key in ("name", "title", "needs", *(key for key in RULES if key.startswith("sweep."))):
        rules.check_value(key, given[key], RULES[key])
    seeds, variants = config.sweep.seeds, config.sweep.variants
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"sweep.seeds is {seeds!r}: give at least one integer, each once.")
    looks = config.sweep.looks
    if sorted(set(looks)) != list(looks) or (looks and not config.sweep.claim):
        want = "give rising numbers of seeds, and a sweep.claim to decide"
        raise UsageError(f"sweep.looks is {looks!r}: {want}.")
    for key, names in (("reference", (config.sweep.reference,)), ("claim", config.sweep.claim)):
        for name in (name for name in names if name not in variants):
            raise unknown(f"variant in sweep.{key}", name, variants)
    for name in variants:
        if not name or Path(name).name != name:
            why = "cannot name a folder: leave out slashes and dots"
            raise UsageError(f"variant {name!r} of the sweep {why}.")
    for key in config.needs:
        if given.get(key) is None:
            what = f"give {OVERRIDE}{key}=VALUE; the first lines of its file say what"
            raise UsageError(f"this experiment needs {key}: {what}.")


def _check_what_is_ignored(config: Any) -> None:
    if TASKS[config.task].full_recipe:
        return
    off = {"policy": "none", "erasing": 0.0}
    ignored = [f"data.train.{key}" for key, none in off.items() if config.data.train[key] != none]
    ignored += [f"loss.{key}" for key, value in config.loss.items() if value]
    ignored += ["teacher.model"] * bool(config.teacher.model)
    ignored += ["low_precision"] * bool(config.low_precision)
    if ignored:
        why = f"is for classification, and the task is {config.task}: leave it out"
        raise UsageError(f"{ignored[0]} {why}.")
