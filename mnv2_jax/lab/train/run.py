"""What a configuration describes, built: data, model, task, optimizer and the compiled step."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.lab.data import Source, open_source
from mnv2_jax.lab.devices.sharding import Plan, global_batch, launch, make_plan
from mnv2_jax.lab.model_folder import load_model
from mnv2_jax.lab.tasks import TASKS, Task, evaluate
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


def make_run(config: Any, seeds_at_once: int, sources: dict[Any, Source] | None = None) -> Run:
    """Builds a run; everything that can be wrong with a configuration is found here.

    Nothing is compiled yet, and data that lives on the device is read when it is trained on.

    Args:
      config: of one variant.
      seeds_at_once: seeds to train at once.
      sources: data sets that are open, by name, split and root; those opened here are added.

    Raises:
      UsageError: whatever part of the configuration cannot be used, before anything is trained.
    """
    check(config)
    spec, data = TASKS[config.task], config.data
    source, held_out = _open(data, sources if sources is not None else {})
    on_device = lives_on_device(spec, config, source)
    if seeds_at_once > 1 and not on_device:
        raise UsageError(
            f"{seeds_at_once} seeds at once need a data set that lives on the device, and "
            f"{data.name} with this augmentation does not: set sweep.at_once to 1."
        )
    plan = make_plan(**config.parallel, seeds_at_once=seeds_at_once, batch_size=config.batch_size)
    channels = image_channels(spec, source, data.name)
    image_channels(spec, held_out, f"the {data.eval_split} split of {data.name}")
    steps, epoch_steps = _length(config, len(source))
    schedule = make_schedule(config.optimizer, steps, epoch_steps)
    optimizer = make_optimizer(config.optimizer, schedule, config.init.frozen)
    classes = spec.classes(source)
    model = make_model(config, len(classes), channels, plan.norm_axis)
    feed = train_feed(spec, config, source, channels)
    teacher = load_model(config.teacher.model) if config.teacher.model else None
    size = (data.resolution, data.resolution, channels)
    task = spec.task(config, model, size, feed.augmentations, teacher)
    train_step = make_step(
        task, optimizer, config.ema_decay, config.parallel.accumulate, plan.step_axis, plan.groups
    )

    def step(state: TrainState, resident: Any, rows: Any, key: Any) -> Any:
        return train_step(state, feed.fetch(resident, rows), key)

    spread = plan.mesh.size if seeds_at_once == 1 else 1
    return Run(
        seeds_at_once=seeds_at_once,
        steps=steps,
        epoch_steps=epoch_steps,
        fresh=_make_fresh(config, task, model, optimizer, plan),
        step=launch(step, plan),
        evaluate=make_evaluate(
            task, eval_feed(spec, config, held_out, on_device, channels, spread), plan
        ),
        train=feed,
        schedule=schedule,
        model=model,
        description=model_options(config, len(classes), channels),
        images={"train_images": len(source), "eval_images": len(held_out)},
        classes=classes,
        plan=plan,
        monitor=task.monitor,
    )


def _length(config: Any, images: int) -> tuple[int, float]:
    """Steps of the whole training, and of an epoch."""
    epoch_steps = images / config.batch_size
    steps = config.steps or max(1, round(config.epochs * epoch_steps))
    if steps > MAX_STEPS:
        raise UsageError(f"epochs is {config.epochs}, which makes {steps} steps: shorten it.")
    return steps, epoch_steps


def _open(data: Any, sources: dict[Any, Source]) -> list[Source]:
    """Opens the training and the evaluation set, unless they are open."""
    keys = [(data.name, split, data.root) for split in (data.train_split, data.eval_split)]
    for key in keys:
        if key not in sources:
            sources[key] = open_source(*key)
    return [sources[key] for key in keys]


def _make_fresh(
    config: Any, task: Task, model: Any, optimizer: optax.GradientTransformation, plan: Plan
) -> Callable[[Array], TrainState]:
    """Returns (keys) -> the state before the first step; a start that does not fit is refused."""
    start = load_model(config.init.model) if config.init.model else None
    if start is not None:
        check_dialect(start.model, model)

    def first(key: Array) -> TrainState:
        variables = task.init(key)
        if start is not None:
            variables = start_from(variables_to_start_from(start, variables), variables)
        return new_state(variables, optimizer, config.ema_decay > 0)

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
    resident = cache(lambda: jax.device_put(feed.resident(), plan.everywhere))

    def sums(variables: Any, rows: Any) -> Any:
        placed = rows if many else global_batch(rows, plan._replace(launcher="jit"))
        return compiled(variables, resident(), placed)

    def summarize(total: Any) -> dict[str, np.ndarray]:
        seeds = [total]
        if many:
            seeds = [jax.tree.map(lambda v, i=i: v[i], total) for i in range(plan.seeds_at_once)]
        scores = [task.summarize(sums) for sums in seeds]
        return {name: np.array([metrics[name] for metrics in scores]) for name in scores[0]}

    return lambda variables, stopped=lambda: False: evaluate(
        partial(sums, variables), feed.batches((), 0), summarize, stopped
    )
