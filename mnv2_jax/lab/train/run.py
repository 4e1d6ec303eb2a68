"""What a configuration describes, built: data, model, task, optimizer and the compiled step."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.lab.data import Source, open_source
from mnv2_jax.lab.devices.sharding import Plan, global_batch, launch, make_plan
from mnv2_jax.lab.model_folder import TrainedModel, load_model
from mnv2_jax.lab.tasks import TASKS, Task, TaskSpec, evaluate
from mnv2_jax.lab.tasks.augment import Augmentation
from mnv2_jax.lab.train.check import MAX_STEPS, check
from mnv2_jax.lab.train.loader import Feed, eval_feed, image_channels, lives_on_device, train_feed
from mnv2_jax.lab.train.network import (
    check_dialect,
    make_model,
    model_options,
    start_from,
    variables_to_start_from,
)
from mnv2_jax.lab.train.optimizer import make_optimizer, make_schedule
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

    spec: TaskSpec
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
    start: TrainedModel | None


def make_run(config: Any, seeds_at_once: int) -> Run:
    """Builds a run; everything that can be wrong with a configuration is found here.

    Raises:
      UsageError: whatever part of the configuration cannot be used, before anything is trained.
    """
    ready = prepare(config, seeds_at_once)
    plan, accumulate = ready.plan, config.parallel.accumulate
    feed = train_feed(ready.spec, config, ready.source, ready.channels)
    task = _task(config, ready, feed.augmentations)
    train_step = make_step(
        task, ready.optimizer, config.ema_decay, accumulate, plan.step_axis, plan.groups
    )

    def step(state: TrainState, resident: Any, rows: Any, key: Any) -> Any:
        return train_step(state, feed.fetch(resident, rows), key)

    spread = plan.mesh.size if seeds_at_once == 1 else 1
    held_out = eval_feed(
        ready.spec, config, ready.held_out, ready.on_device, ready.channels, spread
    )
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
    spec, data, parallel = TASKS[config.task], config.data, config.parallel
    source = open_source(data.name, data.train_split, data.root)
    held_out = open_source(data.name, data.eval_split, data.root)
    on_device = lives_on_device(spec, config, source)
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
    channels = image_channels(spec, source, data.name)
    image_channels(spec, held_out, f"the {data.eval_split} split of {data.name}")
    epoch_steps = len(source) / config.batch_size
    steps = config.steps or max(1, round(config.epochs * epoch_steps))
    if steps > MAX_STEPS:
        raise UsageError(f"epochs is {config.epochs}, which makes {steps} steps: shorten it.")
    schedule = make_schedule(config.optimizer, steps, epoch_steps)
    classes = spec.classes(source)
    model = make_model(config, len(classes), channels, plan.norm_axis)
    start = load_model(config.init.model) if config.init.model else None
    if start is not None:
        check_dialect(start.model, model)
    return Prepared(
        spec=spec,
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
    teacher = load_model(config.teacher.model) if config.teacher.model else None
    return ready.spec.task(config, ready.model, size, augmentations, teacher)


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

    def sums(variables: Any, rows: Any) -> Any:
        placed = rows if many else global_batch(rows, plan._replace(launcher="jit"))
        return compiled(variables, resident, placed)

    def summarize(total: Any) -> dict[str, np.ndarray]:
        seeds = [total]
        if many:
            seeds = [jax.tree.map(lambda v, i=i: v[i], total) for i in range(plan.seeds_at_once)]
        scores = [task.summarize(sums) for sums in seeds]
        return {name: np.array([metrics[name] for metrics in scores]) for name in scores[0]}

    return lambda variables, stopped=lambda: False: evaluate(
        partial(sums, variables), feed.batches((), 0), summarize, stopped
    )
