"""What a configuration describes, built: data, model, task, optimizer and the compiled step."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.devices.sharding import Plan, global_batch, launch, make_plan
from mnv2_jax.lab.model_folder import Saved, load_model
from mnv2_jax.lab.tasks.task import Task
from mnv2_jax.lab.train.config import check_keys, flatten
from mnv2_jax.lab.train.loader import Feed, eval_feed, image_channels, lives_on_device, train_feed
from mnv2_jax.lab.train.optimizer import make_optimizer, make_schedule
from mnv2_jax.lab.train.precision import check_precisions
from mnv2_jax.lab.train.problem import PROBLEMS, check_augmentation, make_model, model_options
from mnv2_jax.lab.train.state import TrainState, new_state
from mnv2_jax.lab.train.step import make_step
from mnv2_jax.models.build import look_up

MAX_STEPS = 2**31 - 1  # the state counts them in 32 bits
ASKED = (
    "asked"  # beside the rows of a batch and the metrics of a step, where there are several hosts
)
ASKS = SAVE, STOP = 1, 2  # what a host may ask of all


class Run(NamedTuple):
    """One variant, ready to train with any seeds.

    Where several seeds are trained at once, every array of the state has them as its first axis.

    Attributes:
      replicas: seeds trained at once.
      steps: of the whole training.
      epoch_steps: steps in an epoch, not always whole.
      fresh: (keys) -> the state before the first step.
      step: (state, resident, rows, keys) -> (state, metrics), compiled.
      evaluate: (variables[, stopped]) -> {metric: value on the evaluation set, for each seed}; None
        once `stopped()` is true.
      train: the training data.
      schedule: step -> learning rate.
      description: what builds the network again, from plain values.
      classes, plan, monitor: what was built for it.
    """

    replicas: int
    steps: int
    epoch_steps: float
    fresh: Callable[[Array], TrainState]
    step: Callable[..., tuple[TrainState, dict[str, Any]]]
    evaluate: Callable[..., Any]
    train: Feed
    schedule: optax.Schedule
    model: Any
    description: dict[str, Any]
    classes: tuple[str, ...]
    plan: Plan
    monitor: str

    def keys(self, seeds: tuple[int, ...]) -> Array:
        """What the steps of these seeds draw from."""
        keys = [jax.random.key(seed) for seed in seeds]
        return jnp.stack(keys) if self.replicas > 1 else keys[0]

    def rows(
        self, seeds: tuple[int, ...], start: int, ask: Callable[[], int] = lambda: 0
    ) -> Iterator[Any]:
        """Batches from step `start` on, placed on the devices.

        Args:
          seeds: that are trained.
          start: steps done.
          ask: what this host asks of all hosts, as bits; asked for each batch. The step's metric
            "asked" has what any host asked, the same on all of them at the same step.
        """
        for rows in self.train.batches(seeds, start):
            if jax.process_count() > 1:
                rows = {**rows, ASKED: np.full(len(rows["row"]), ask(), np.int32)}
            yield global_batch(rows, self.plan)


def make_run(config: Any, replicas: int) -> Run:
    """Builds a run; everything that can be wrong with a configuration is found here.

    Raises:
      UsageError: whatever part of the configuration cannot be used, before anything is trained.
    """
    check_numbers(config)
    problem = look_up("task", config.task, PROBLEMS)
    check_augmentation(config)
    check_precisions(config)
    data, parallel = config.data, config.parallel
    source = open_source(data.name, data.train_split, data.root)
    held_out = open_source(data.name, data.eval_split, data.root)
    on_device = lives_on_device(config, source)
    if replicas > 1 and not on_device:
        raise UsageError(
            f"{replicas} seeds at once need a data set that lives on the device, and {data.name} "
            "with this augmentation does not: set sweep.at_once to 1."
        )
    plan = make_plan(
        parallel.launcher,
        parallel.batch_norm,
        parallel.devices,
        replicas,
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
    frozen = tuple(map(str, config.init.frozen))  # what is no name is refused below
    optimizer = make_optimizer(config.optimizer, schedule, frozen)
    classes = problem.classes(source)
    model = make_model(config, len(classes), channels, plan.norm_axis)
    feed = train_feed(config, source, channels)
    size = (data.resolution, data.resolution, channels)
    task = problem.task(config, model, size, feed.augmentations)
    spread = plan.mesh.size if replicas == 1 else 1
    held_out_feed = eval_feed(config, held_out, on_device, channels, spread)
    averaged = config.ema_decay > 0
    start = load_model(config.init.model) if config.init.model else None
    if start is not None:
        check_dialect(start.model, model)
    train_step = make_step(
        task, optimizer, config.ema_decay, parallel.accumulate, plan.step_axis, plan.groups
    )

    def step(state: TrainState, resident: Any, rows: Any, key: Any) -> Any:
        asked = rows.get(ASKED)
        batch = feed.fetch(resident, {name: v for name, v in rows.items() if name != ASKED})
        state, metrics = train_step(state, batch, key)
        return state, metrics if asked is None else metrics | {ASKED: _any_bits(asked, plan)}

    def first(key: Array) -> TrainState:
        variables = task.init(key)
        if start is not None:
            variables = start_from(variables_to_start_from(start, variables), variables)
        return new_state(variables, optimizer, averaged)

    fresh = jax.jit(jax.vmap(first) if replicas > 1 else first, out_shardings=plan.state)
    # Finds a start that does not fit; traced under jit, so that training need not trace it again.
    keys = jax.random.split(jax.random.key(0), replicas) if replicas > 1 else jax.random.key(0)
    check_frozen(config.init.frozen, jax.eval_shape(fresh, keys).params)
    return Run(
        replicas=replicas,
        steps=steps,
        epoch_steps=epoch_steps,
        fresh=fresh,
        step=launch(step, plan),
        evaluate=make_evaluate(task, held_out_feed, plan),
        train=feed,
        schedule=schedule,
        model=model,
        description=model_options(config, len(classes), channels),
        classes=classes,
        plan=plan,
        monitor=task.monitor,
    )


def _any_bits(asked: Array, plan: Plan) -> Array:
    """The bits that are set in any row, of any device."""
    bits = jnp.stack([asked & bit for bit in ASKS]).max(1)
    if plan.step_axis is not None:
        bits = jax.lax.pmax(bits, plan.step_axis)
    return bits.sum()


def make_evaluate(task: Task, feed: Feed, plan: Plan) -> Callable[..., Any]:
    """Compiles the evaluation over a whole set, as exact sums."""

    def metrics(variables: Any, resident: Any, rows: Any) -> Any:
        return task.metrics(variables, feed.fetch(resident, rows))

    many = plan.replicas > 1
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
            seeds = [jax.tree.map(lambda v, i=i: v[i], total) for i in range(plan.replicas)]
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


def check_frozen(frozen: Any, modules: Any) -> None:
    """Refuses names of frozen modules that the network does not have."""
    for name in frozen:
        if not isinstance(name, str) or not any(module.startswith(name) for module in modules):
            raise unknown("module in init.frozen", name, modules)


MAY_BE_NONE = ("model.bn_decay", "data.threads")
# What a training can use, both ends included; None is no limit but for infinity.
RANGES: dict[str, tuple[float, float | None]] = {
    "batch_size": (1, 2**20), "eval_batch_size": (1, 2**20), "steps": (0, MAX_STEPS),
    "epochs": (0, 10**6), "ema_decay": (0, 1), "log_every": (1, None),
    "eval_every_epochs": (0, 10**6), "checkpoint_minutes": (0, None),
    "keep_checkpoints": (1, None), "stop_after_skipped": (1, None),
    "model.width": (0, 64), "model.dropout": (0, 1), "model.bn_decay": (0, 1),
    "data.resolution": (1, 2**13), "data.threads": (1, 1024), "data.bad_record_budget": (0, 1),
    "data.train.pad": (0, 2**13),
    "optimizer.learning_rate": (0, None), "optimizer.decay_rate": (0, 1),
    "optimizer.decay_epochs": (0, 10**6), "optimizer.power": (0, None),
    "optimizer.warmup_epochs": (0, 10**6), "optimizer.decay": (0, 1),
    "optimizer.momentum": (0, 1), "optimizer.epsilon": (0, None), "optimizer.beta1": (0, 1),
    "optimizer.beta2": (0, 1), "optimizer.weight_decay": (0, None),
    "optimizer.clip_norm": (0, None),
    "loss.label_smoothing": (0, 1), "loss.mixup": (0, None), "loss.cutmix": (0, None),
    "teacher.weight": (0, 1), "teacher.temperature": (0.01, None),
    "detect.max_objects": (1, 1024), "segment.channels": (1, 2**13),
    "parallel.accumulate": (1, 2**20), "sweep.at_once": (0, None),
}  # fmt: skip


def check_numbers(config: Any) -> None:
    """Refuses numbers that no training can use."""
    check_keys(config, RANGES)
    given = flatten(config)
    for key, (low, high) in RANGES.items():
        value: Any = given[key]
        if value is None and key in MAY_BE_NONE:
            continue
        top = math.inf if high is None else high
        # Infinity and NaN are the numbers whose difference with themselves is not 0.
        if not isinstance(value, (int, float)) or value - value != 0 or not low <= value <= top:
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise UsageError(f"{key} is {value}: it must be {bounds}.")
    if not config.steps and not config.epochs:
        raise UsageError("epochs and steps are both 0: set one of them to train at all.")
    if len(config.data.train.area) != 2:
        raise UsageError(f"data.train.area is {config.data.train.area}: give two shares.")
