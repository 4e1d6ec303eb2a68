"""What a configuration describes, built: data, model, task, optimizer and the compiled step."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.lab.data import Source, open_source
from mnv2_jax.lab.devices.sharding import Plan, global_batch, launch, make_plan
from mnv2_jax.lab.model_folder import Saved, load_model
from mnv2_jax.lab.tasks.augment import Augmentation
from mnv2_jax.lab.tasks.task import Task
from mnv2_jax.lab.train.check import MAX_STEPS, check
from mnv2_jax.lab.train.loader import Feed, eval_feed, image_channels, lives_on_device, train_feed
from mnv2_jax.lab.train.optimizer import make_optimizer, make_schedule
from mnv2_jax.lab.train.problem import PROBLEMS, make_model, model_options
from mnv2_jax.lab.train.step import TrainState, make_step, new_state


class Run(NamedTuple):
    """One variant, ready to train with any seeds.

    Where several seeds are trained at once, every array of the state has them as its first axis.

    Attributes:
      seeds_at_once: seeds trained at once.
      steps: of the whole training.
      epoch_steps: steps in an epoch, not always whole.
      fresh: (keys) -> the state before the first step.
      step: (state, resident, rows, keys) -> (state, metrics), compiled.
      evaluate: (variables[, stopped]) -> {metric: value on the evaluation set, for each seed}; None
        once `stopped()` is true.
      train: the training data.
      schedule: step -> learning rate.
      description: what builds the network again, from plain values.
      images: how many there are to train on and to evaluate on.
      classes, plan, monitor: what was built for it.
    """

    seeds_at_once: int
    steps: int
    epoch_steps: float
    fresh: Callable[[Array], TrainState]
    step: Callable[..., tuple[TrainState, dict[str, Any]]]
    evaluate: Callable[..., Any]
    train: Feed
    schedule: optax.Schedule
    model: Any
    description: dict[str, Any]
    images: dict[str, int]
    classes: tuple[str, ...]
    plan: Plan
    monitor: str

    def keys(self, seeds: tuple[int, ...]) -> Array:
        """What the steps of these seeds draw from."""
        keys = [jax.random.key(seed) for seed in seeds]
        return jnp.stack(keys) if self.seeds_at_once > 1 else keys[0]

    def rows(self, seeds: tuple[int, ...], start: int) -> Iterator[Any]:
        """Batches from step `start` on, placed on the devices."""
        for rows in self.train.batches(seeds, start):
            yield global_batch(rows, self.plan)


class Prepared(NamedTuple):
    """What a configuration, its data and the devices determine, before anything is traced."""

    source: Source
    held_out: Source
    on_device: bool
    plan: Plan
    steps: int
    epoch_steps: float
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    classes: tuple[str, ...]
    channels: int
    model: Any
    start: Saved | None


def make_run(config: Any, seeds_at_once: int) -> Run:
    """Builds a run; everything that can be wrong with a configuration is found here.

    Raises:
      UsageError: whatever part of the configuration cannot be used, before anything is trained.
    """
    ready = prepare(config, seeds_at_once)
    plan, accumulate = ready.plan, config.parallel.accumulate
    feed = train_feed(config, ready.source, ready.channels)
    task = _task(config, ready, feed.augmentations)
    train_step = make_step(
        task, ready.optimizer, config.ema_decay, accumulate, plan.step_axis, plan.groups
    )

    def step(state: TrainState, resident: Any, rows: Any, key: Any) -> Any:
        return train_step(state, feed.fetch(resident, rows), key)

    spread = plan.mesh.size if seeds_at_once == 1 else 1
    held_out = eval_feed(config, ready.held_out, ready.on_device, ready.channels, spread)
    return Run(
        seeds_at_once=seeds_at_once,
        steps=ready.steps,
        epoch_steps=ready.epoch_steps,
        fresh=_fresh(config, ready, task),
        step=launch(step, plan),
        evaluate=make_evaluate(task, held_out, plan),
        train=feed,
        schedule=ready.schedule,
        model=ready.model,
        description=model_options(config, len(ready.classes), ready.channels),
        images={"train_images": len(ready.source), "eval_images": len(ready.held_out)},
        classes=ready.classes,
        plan=plan,
        monitor=task.monitor,
    )


def check_run(config: Any, seeds_at_once: int) -> None:
    """Finds what only the data, saved models and the devices can tell; compiles nothing.

    Raises:
      UsageError: as `make_run` does.
    """
    ready = prepare(config, seeds_at_once)
    _fresh(config, ready, _task(config, ready))


def prepare(config: Any, seeds_at_once: int) -> Prepared:
    """Opens the data of a configuration, and lays out devices, schedule and network for them."""
    check(config)
    data, parallel = config.data, config.parallel
    source = open_source(data.name, data.train_split, data.root)
    held_out = open_source(data.name, data.eval_split, data.root)
    on_device = lives_on_device(config, source)
    if seeds_at_once > 1 and not on_device:
        raise UsageError(
            f"{seeds_at_once} seeds at once need a data set that lives on the device, and "
            f"{data.name} with this augmentation does not: set sweep.at_once to 1."
        )
    plan = make_plan(
        parallel.launcher,
        parallel.batch_norm,
        parallel.devices,
        seeds_at_once,
        config.batch_size,
        parallel.accumulate,
    )
    channels = image_channels(source, data.name, config.task)
    image_channels(held_out, f"the {data.eval_split} split of {data.name}", config.task)
    epoch_steps = len(source) / config.batch_size
    steps = config.steps or max(1, round(config.epochs * epoch_steps))
    if steps > MAX_STEPS:
        raise UsageError(f"epochs is {config.epochs}, which makes {steps} steps: shorten it.")
    schedule = make_schedule(config.optimizer, steps, epoch_steps)
    classes = PROBLEMS[config.task].classes(source)
    model = make_model(config, len(classes), channels, plan.norm_axis)
    start = load_model(config.init.model) if config.init.model else None
    if start is not None:
        check_dialect(start.model, model)
    return Prepared(
        source=source,
        held_out=held_out,
        on_device=on_device,
        plan=plan,
        steps=steps,
        epoch_steps=epoch_steps,
        schedule=schedule,
        optimizer=make_optimizer(config.optimizer, schedule, config.init.frozen),
        classes=classes,
        channels=channels,
        model=model,
        start=start,
    )


def _task(config: Any, ready: Prepared, augmentations: tuple[Augmentation, ...] = ()) -> Task:
    size = (config.data.resolution, config.data.resolution, ready.channels)
    return PROBLEMS[config.task].task(config, ready.model, size, augmentations)


def _fresh(config: Any, ready: Prepared, task: Task) -> Callable[[Array], TrainState]:
    """Returns (keys) -> the state before the first step; a start that does not fit is refused."""
    plan, start = ready.plan, ready.start

    def first(key: Array) -> TrainState:
        variables = task.init(key)
        if start is not None:
            variables = start_from(variables_to_start_from(start, variables), variables)
        return new_state(variables, ready.optimizer, config.ema_decay > 0)

    many = plan.seeds_at_once
    fresh = jax.jit(jax.vmap(first) if many > 1 else first, out_shardings=plan.state)
    keys = jax.random.split(jax.random.key(0), many) if many > 1 else jax.random.key(0)
    # Under jit, so that training need not trace it again.
    modules = jax.eval_shape(fresh, keys).params
    for name in config.init.frozen:
        if not any(module.startswith(name) for module in modules):
            raise unknown("module in init.frozen", name, modules)
    return fresh


def make_evaluate(task: Task, feed: Feed, plan: Plan) -> Callable[..., Any]:
    """Compiles the evaluation over a whole set, as exact sums."""

    def metrics(variables: Any, resident: Any, rows: Any) -> Any:
        return task.metrics(variables, feed.fetch(resident, rows))

    many = plan.seeds_at_once > 1
    compiled = jax.jit(jax.vmap(metrics, in_axes=(0, None, None)) if many else metrics)
    resident = jax.device_put(feed.resident, plan.everywhere)

    def evaluate(
        variables: Any, stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, np.ndarray] | None:
        total: Any = None
        for rows in feed.batches((), 0):
            if stopped():
                return None
            placed = rows if many else global_batch(rows, plan._replace(launcher="jit"))
            sums = compiled(variables, resident, placed)
            if jax.process_count() > 1:
                # CPU hosts may run two programs at once, each its own first, and then wait for one
                # another's sums for ever; the steps of a training depend on each other anyway.
                jax.block_until_ready(sums)
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        total = jax.device_get(total)
        seeds = [total]
        if many:
            seeds = [jax.tree.map(lambda v, i=i: v[i], total) for i in range(plan.seeds_at_once)]
        found = [task.summarize(sums) for sums in seeds]
        return {name: np.array([metrics[name] for metrics in found]) for name in found[0]}

    return evaluate


def variables_to_start_from(saved: Saved, fresh: Any) -> Any:
    """Returns a saved model's variables; a classifier's as the backbone of a detector or segmenter.

    Its classification layer is left out, and so is what the segmenter's backbone leaves out.
    """
    if saved.task != "classify" or "backbone" not in fresh["params"]:
        return saved.variables
    found = {}
    for kind, own in fresh.items():
        backbone = {k: v for k, v in saved.variables[kind].items() if k in own["backbone"]}
        found[kind] = {**own, "backbone": backbone}
    return found


# Layers whose shape depends on the number of classes.
OF_CLASSES = ("classifier/", "/classes_")


def start_from(saved: Any, fresh: Any) -> Any:
    """Replaces fresh variables by a saved model's, all but layers of other classes.

    Raises:
      UsageError: anything else differs in name or shape; the message lists what.
    """
    old: Any = flatten_dict(saved, sep="/")
    new: Any = flatten_dict(fresh, sep="/")
    lines = [
        f"{sign}{name}{side[name].shape}"
        for name in sorted(old.keys() | new.keys())
        for sign, side in (("-", old), ("+", new))
        if name in side and not _fits(name, old, new)
    ]
    if any(not any(part in line for part in OF_CLASSES) for line in lines):
        shown = ", ".join(lines[:6]) + (", …" if len(lines) > 6 else "")
        raise UsageError(
            f"the saved model does not fit this configuration (- saved, + configured): {shown}. "
            "Set model.width and model.spec to those of the saved model."
        )
    merged = {name: old[name] if _fits(name, old, new) else leaf for name, leaf in new.items()}
    return unflatten_dict(merged, sep="/")


def _fits(name: str, old: Any, new: Any) -> bool:
    return name in old and name in new and old[name].shape == new[name].shape


# What a network computes with other values of these is not what its weights were trained for.
TRAVELS = ("padding", "bn_epsilon", "mean", "std")


def check_dialect(saved: Any, configured: Any) -> None:
    """Refuses a saved model whose padding, epsilon or input range is not the configured one's."""
    theirs, ours = (getattr(model, "backbone", model).dialect for model in (saved, configured))
    for field in TRAVELS:
        was, now = getattr(theirs, field), getattr(ours, field)
        if was != now:
            raise UsageError(
                f"the saved model has {field} {was} and this configuration {now}: set "
                f"model.dialect to {theirs.name!r}, which it was trained with."
            )
