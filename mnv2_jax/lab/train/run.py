"""What a configuration describes, built: data on its way to the devices, model, task and step."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import Source, Transform, batch_ids, open_source, train_transform
from mnv2_jax.lab.data.catalog import pooled
from mnv2_jax.lab.data.pipeline import eval_batches, first_record, train_batches
from mnv2_jax.lab.data.source import resplit
from mnv2_jax.lab.devices.sharding import (
    Plan,
    global_batch,
    global_shapes,
    launch,
    make_plan,
    shapes_of,
)
from mnv2_jax.lab.model_folder import load_model
from mnv2_jax.lab.tasks import AUTO, TASKS, Task, TaskSpec, evaluate, make_model, model_options
from mnv2_jax.lab.tasks.augment import Augmentation, random_flip, random_shift
from mnv2_jax.lab.tasks.classes import by_name, check_seen
from mnv2_jax.lab.tasks.task import Batch
from mnv2_jax.lab.train.check import MAX_STEPS, check
from mnv2_jax.lab.train.config import eval_resolution
from mnv2_jax.lab.train.optimizer import make_optimizer, make_schedule
from mnv2_jax.lab.train.step import TrainState, make_fresh, make_step
from mnv2_jax.models.classes import same_classes

Rows = dict[str, np.ndarray]
# What the training transform may do for its work to be done on the device.
DEVICE_CROPS = ("pad", "none")
HOST_ONLY = {"color": 0.0, "policy": "none", "erasing": 0.0}


class Feed(NamedTuple):
    """One split of a data set, ready for a step."""

    resident: Callable[[], Rows]  # arrays that every device holds; {} for a streamed set
    # (seeds, first step[, folder of the variant]) -> this host's rows of every batch from there on.
    # Several seeds are stacked, each in its own order.
    batches: Callable[..., Iterator[Rows]]
    fetch: Callable[[dict[str, Array], Batch], Batch]  # (resident, rows) -> batch, on the device
    augmentations: tuple[Augmentation, ...] = ()  # left for the device to do to a training image
    by_seed: bool = False  # whether each of several seeds evaluates on images of its own


# Of a seed, the indices of the records that are its own; None where all seeds have all of a set.
Own = Callable[[int], np.ndarray] | None


class Lowered(NamedTuple):
    """The programs of a run, not compiled yet, and what they are given."""

    programs: dict[str, Any]  # of the state before the first step, the step, the evaluation
    state: Any  # shapes, with their shardings
    batches: list[Rows]  # the first one of training and of evaluation, and what they are made of


class Run(NamedTuple):
    """One variant, ready to train with any seeds."""

    seeds_at_once: int  # where several, they are the first axis of all arrays
    steps: int
    epoch_steps: float  # which need not be whole
    fresh: Callable[[Array], TrainState]  # (keys) -> the state before the first step
    # (state, resident, rows, keys) -> (state, metrics), compiled
    step: Callable[..., tuple[TrainState, dict[str, Any]]]
    advance: Callable[..., tuple[TrainState, dict[str, Any]]]  # see `make_advance`
    # (variables[, seeds, stopped]) -> {metric: value for each seed}; None once `stopped()` is true
    evaluate: Callable[..., Any]
    # (variables, seeds) -> the program of its first batch, lowered, and what that is made of
    first_evaluation: Callable[..., tuple[Any, list[Rows]]]
    train: Feed
    schedule: optax.Schedule
    model: Any
    description: dict[str, Any]  # what builds the network again, from plain values
    images: dict[str, int]  # how many there are to train on and to evaluate on
    classes: tuple[str, ...]
    plan: Plan
    monitor: str

    def keys(self, seeds: tuple[int, ...]) -> Array:
        """What the steps of these seeds draw from."""
        keys = [jax.random.key(seed) for seed in seeds]
        return jnp.stack(keys) if self.seeds_at_once > 1 else keys[0]

    def rows(self, seeds: tuple[int, ...], start: int, folder: Path | None = None) -> Iterator[Any]:
        """Batches from step `start` on, on the devices; `folder` keeps which records are bad."""
        return (global_batch(rows, self.plan) for rows in self.train.batches(seeds, start, folder))

    def lowered(self, seeds: tuple[int, ...], folder: Path | None = None) -> Lowered:
        """Lowers what training calls first; of shapes alone, so that devices may be elsewhere."""
        keys, resident = shapes_of(self.keys(seeds), None), self.train.resident()
        rows = next(self.train.batches(seeds, 0, folder))
        state = shapes_of(jax.eval_shape(self.fresh, keys), self.plan.state)
        evaluation, held_out = self.first_evaluation(state.variables, seeds)
        everywhere = shapes_of(resident, self.plan.everywhere)
        step = self.step.lower(state, everywhere, global_shapes(rows, self.plan), keys)
        programs = {"fresh": self.fresh.lower(keys), "step": step, "evaluation": evaluation}
        batches = [{name: array[rows["id"]] for name, array in resident.items()}, rows, *held_out]
        return Lowered(programs, state, batches)


def settle(config: Any, devices: Sequence[Any] | None = None) -> None:
    """Writes in place of a `model.dtype` of auto what suits the devices; JAX's, unless given.

    It is bfloat16 on TPUs and on GPUs but NVIDIA's below capability 8.0, which do not compute with
    it.
    """
    if config.model.dtype == AUTO:
        device = (jax.devices() if devices is None else devices)[0]
        old = re.match(r"[1-7]\.", str(getattr(device, "compute_capability", "")))
        config.model.dtype = "float32" if device.platform == "cpu" or old else "bfloat16"


def make_run(
    config: Any, seeds_at_once: int, sources: dict[Any, Source] | None = None,
    devices: Sequence[Any] | None = None,
) -> Run:  # fmt: skip
    """Builds a run; everything that can be wrong with one variant's configuration is found here.

    Nothing is compiled yet, and data that lives on the device is read when it is trained on. Data
    sets are taken from `sources`, by name, split and root, and those opened here are added. With
    `devices` that are not here it can only be lowered.
    """
    settle(config, devices)
    check(config)
    spec, data = TASKS[config.task], config.data
    source, held_out = open_data(data, sources if sources is not None else {})
    on_device = lives_on_device(spec, config, source)
    if seeds_at_once > 1 and not on_device:
        raise UsageError(
            f"{seeds_at_once} seeds at once need a data set that lives on the device, and "
            f"{data.name} with this augmentation does not: set sweep.at_once to 1."
        )
    parallel = config.parallel.to_dict()
    most = parallel.pop("steps_per_call")
    plan = make_plan(
        **parallel, seeds_at_once=seeds_at_once, batch_size=config.batch_size, given=devices
    )
    if most > 1 and (not on_device or plan.launcher == "pmap" or jax.process_count() > 1):
        raise UsageError(
            f"parallel.steps_per_call is {most}, which needs data that lives on the device, one "
            "host, and the launcher jit or shard_map: set it to 0."
        )
    place = data.root or data.name
    parts = {f"{data.train_split} of {place}": source, f"{data.eval_split} of {place}": held_out}
    records = {name: first_record(part) for name, part in parts.items()}
    for name, record in records.items():  # what is learned from has to be there
        spec.check_record(record, name)
    channels = np.shape(next(iter(records.values()))["image"])[-1]
    classes, (_, held) = spec.classes(source), parts
    for name, part in parts.items():
        check_seen(spec, part, name)
    held_out = by_name(spec, held_out, classes, len(classes), held, "Name them as in train.")
    epoch_steps = len(source) / config.batch_size
    steps = config.steps or max(1, round(config.epochs * epoch_steps))
    if steps > MAX_STEPS:
        raise UsageError(f"epochs is {config.epochs}, which makes {steps} steps: shorten it.")
    schedule = make_schedule(config.optimizer, steps, epoch_steps)
    optimizer = make_optimizer(config.optimizer, schedule, config.init.frozen)
    model = make_model(config, len(classes), channels, plan.norm_axis)
    images = {"train_images": len(source), "eval_images": len(held_out)}
    own: tuple[Own, Own] = (None, None)
    if data.resplit:
        if not on_device:
            raise UsageError(
                f"{data.name} with this augmentation does not live on the device, so it cannot be "
                "split anew for each seed: set data.resplit to False."
            )
        both = pooled(source, held_out, place)
        labels = both.arrays()["label"]
        split = cache(partial(resplit, labels[: len(source)], labels[len(source) :]))
        own = (lambda seed: split(seed)[0], lambda seed: split(seed)[1])
        source = held_out = both
    feed = train_feed(spec, config, source, channels, own[0])
    teacher = load_model(config.teacher.model) if config.teacher.model else None
    size = (data.resolution, data.resolution, channels)
    task = spec.task(config, model, size, feed.augmentations, teacher)
    if teacher is not None and not same_classes(teacher.classes, classes):
        raise UsageError(
            f"teacher {config.teacher.model} knows other classes than the data has, or numbers "
            "them otherwise: train a teacher on the same classes."
        )
    train_step = make_step(
        task, optimizer, config.ema_decay, config.parallel.accumulate, plan.step_axis, plan.groups
    )

    def step(state: TrainState, resident: Any, rows: Any, key: Any) -> Any:
        return train_step(state, feed.fetch(resident, rows), key)

    launched = launch(step, plan)
    spread = plan.mesh.size if seeds_at_once == 1 else 1
    eval_set = eval_feed(spec, config, held_out, on_device, channels, spread, own[1])
    evaluate, first_evaluation = make_evaluate(task, eval_set, plan)
    return Run(
        seeds_at_once=seeds_at_once, steps=steps, epoch_steps=epoch_steps, train=feed, model=model,
        schedule=schedule, classes=classes, plan=plan, monitor=task.monitor,
        fresh=make_fresh(config, task, model, optimizer, plan, classes),
        step=launched, advance=make_advance(launched, plan, most), evaluate=evaluate,
        first_evaluation=first_evaluation,
        description=model_options(config, len(classes), channels), images=images,
    )  # fmt: skip


def make_advance(step: Callable[..., Any], plan: Plan, most: int) -> Callable[..., Any]:
    """Returns (state, resident, batches, keys, count) -> (state, metrics), after `count` steps.

    With `most` above 1 that is one call of the devices for any count up to it, by one program, so
    that a host that takes longer to call a step than a device to compute it holds nothing up; the
    metrics are stacked, `most` of them. Otherwise `count` is 1.
    """

    def single(state: Any, resident: Any, batches: Iterator[Rows], keys: Any, _: int) -> Any:
        return step(state, resident, global_batch(next(batches), plan), keys)

    def loop(state: Any, resident: Any, stacked: Any, keys: Any, count: Any) -> Any:
        def one(i: Any, carry: Any) -> Any:
            rows = jax.tree.map(lambda v: v[i], stacked)
            state, metrics = step(carry[0], resident, rows, keys)
            return state, jax.tree.map(lambda told, v: told.at[i].set(v), carry[1], metrics)

        first = jax.tree.map(lambda v: v[0], stacked)
        _, shapes = jax.eval_shape(step, state, resident, first, keys)
        told = jax.tree.map(lambda v: jnp.zeros((most, *v.shape), v.dtype), shapes)
        return lax.fori_loop(0, count, one, (state, told))

    compiled = jax.jit(loop, donate_argnums=0)

    def several(state: Any, resident: Any, batches: Iterator[Rows], keys: Any, count: int) -> Any:
        rows = list(islice(batches, count))
        rows += rows[-1:] * (most - count)  # to one shape; these are not computed
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        return compiled(state, resident, stacked, keys, count)

    return several if most > 1 else single


def open_data(data: Any, sources: dict[Any, Source]) -> list[Source]:
    """Opens the training and the evaluation set, unless they are open."""
    keys = [(data.name, split, data.root) for split in (data.train_split, data.eval_split)]
    for key in keys:
        if key not in sources:
            sources[key] = open_source(*key)
    return [sources[key] for key in keys]


def make_evaluate(
    task: Task, feed: Feed, plan: Plan
) -> tuple[Callable[..., Any], Callable[..., tuple[Any, list[Rows]]]]:
    """Compiles the evaluation over a whole set, as exact sums; see `Run` for both functions."""

    def metrics(variables: Any, resident: Any, rows: Any) -> Any:
        return task.metrics(variables, feed.fetch(resident, rows))

    many = plan.seeds_at_once > 1
    axes = (0, None, 0 if feed.by_seed else None)
    compiled = jax.jit(jax.vmap(metrics, in_axes=axes) if many else metrics)
    held = cache(feed.resident)
    resident = cache(lambda: jax.device_put(held(), plan.everywhere))

    def placed(rows: Any) -> Any:
        return rows if many else global_batch(rows, plan._replace(launcher="jit"))

    def sums(variables: Any, rows: Any) -> Any:
        return compiled(variables, resident(), placed(rows))

    def first(variables: Any, seeds: tuple[int, ...]) -> tuple[Any, list[Rows]]:
        rows = next(feed.batches(seeds, 0))
        shapes = rows if many else global_shapes(rows, plan._replace(launcher="jit"))
        everywhere = shapes_of(held(), plan.everywhere)
        return compiled.lower(variables, everywhere, shapes), [rows, held()]

    def summarize(total: Any) -> dict[str, np.ndarray]:
        seeds = [total]
        if many:
            seeds = [jax.tree.map(lambda v, i=i: v[i], total) for i in range(plan.seeds_at_once)]
        scores = [task.summarize(sums) for sums in seeds]
        return {name: np.array([metrics[name] for metrics in scores]) for name in scores[0]}

    def whole(variables: Any, seeds: Any = (), stopped: Callable[..., Any] = bool) -> Any:
        return evaluate(partial(sums, variables), feed.batches(seeds, 0), summarize, stopped)

    return whole, first


def lives_on_device(spec: TaskSpec, config: Any, source: Source) -> bool:
    """Whether a set fits the device and its augmentation can be done there."""
    off = all(config.data.train[key] == value for key, value in HOST_ONLY.items())
    # Boxes and label maps move with their images, which is done on the host.
    possible = off and config.data.train.crop in DEVICE_CROPS and not any(spec.fields.values())
    return config.data.on_device and possible and source.arrays() is not None


def train_feed(spec: TaskSpec, config: Any, source: Source, channels: int, own: Own = None) -> Feed:
    """Opens a training set."""
    transform = spec.train_transform(config, channels)  # checks its options in any case
    train, size, local = config.data.train, config.batch_size, _share(config.batch_size)
    row = np.arange(local.start, local.stop, dtype=np.int32)
    if not lives_on_device(spec, config, source):

        def stream(seeds: tuple[int, ...], start: int, folder: Any = None) -> Iterator[Rows]:
            (seed,) = seeds
            bad = folder and folder / f"bad_records_{seed}_{jax.process_index()}.json"
            options = {"seed": seed, "start_step": start, **_pipeline(config, transform)}
            options |= {"bad_record_budget": config.data.bad_record_budget, "bad_records": bad}
            for rows in train_batches(source, batch_size=size, **options):
                yield {key: rows[key] for key in ("image", *spec.fields, "mask")} | {"row": row}

        return Feed(dict, stream, lambda _, rows: rows)
    resize = train_transform(config.data.resolution, crop="none", flip=0.0, channels=channels)
    augmentations = (
        *((random_shift(train.pad),) if train.crop == "pad" else ()),
        *((random_flip(train.flip),) if train.flip else ()),
    )

    def batches(seeds: tuple[int, ...], start: int, folder: Any = None) -> Iterator[Rows]:
        everything = np.arange(len(source))
        parts = [own(seed) if own else everything for seed in seeds]
        for step in count(start):
            ids = [
                part[batch_ids(len(part), size, seed, step)[local]]
                for part, seed in zip(parts, seeds, strict=True)
            ]
            ids = np.stack(ids).astype(np.int32)
            both = {"id": ids, "row": np.broadcast_to(row, ids.shape)}
            yield both if len(seeds) > 1 else {name: v[0] for name, v in both.items()}

    return Feed(partial(_resident, source, resize), batches, _gather, augmentations)


def eval_feed(
    spec: TaskSpec, config: Any, source: Source, on_device: bool, channels: int, devices: int,
    own: Own = None,
) -> Feed:  # fmt: skip
    """Opens an evaluation set: every example once, the last batch padded with masked rows.

    The batch, `eval_batch_size`, is rounded up to a multiple of the devices that it is spread over.
    """
    size = -(-config.eval_batch_size // devices) * devices
    options = spec.eval_options(config)
    transform = spec.eval_transform(eval_resolution(config), channels, options)

    def stream(seeds: tuple[int, ...], start: int) -> Iterator[Rows]:
        for rows in eval_batches(source, batch_size=size, **_pipeline(config, transform)):
            yield {key: rows[key] for key in ("image", *spec.fields, "mask")}

    def batches(seeds: tuple[int, ...], start: int) -> Iterator[Rows]:
        parts = [own(seed) for seed in seeds] if own else [np.arange(len(source))]
        for first in range(0, len(parts[0]), size):
            inside = [part[first : first + size] for part in parts]
            ids = np.stack([np.pad(i, (0, size - len(i)), constant_values=-1) for i in inside])
            ids = ids[:, _share(size)].astype(np.int32)
            yield {"id": ids if len(ids) > 1 else ids[0]}

    if not on_device or source.arrays() is None:
        return Feed(dict, stream, lambda _, rows: rows)
    return Feed(partial(_resident, source, transform), batches, _gather_padded, (), bool(own))


def _share(size: int) -> slice:
    """This host's rows of a batch."""
    local = size // jax.process_count()
    return slice(jax.process_index() * local, (jax.process_index() + 1) * local)


def _pipeline(config: Any, transform: Transform) -> dict[str, Any]:
    shard = (jax.process_index(), jax.process_count())
    return {"transform": transform, "shard": shard, "threads": config.data.threads}


def _resident(source: Source, transform: Transform) -> Rows:
    """All images of a set, through a transform that draws nothing."""
    arrays = source.arrays()
    assert arrays is not None
    rng = np.random.default_rng(0)
    images = [transform({"image": image}, rng)["image"] for image in arrays["image"]]
    return {"image": np.stack(images), "label": arrays["label"]}


def _gather(resident: dict[str, Array], rows: Batch) -> Batch:
    """Looks examples up by id. The mask is a constant, which XLA folds away wherever it acts."""
    ids = rows["id"]
    found = {name: jnp.take(array, ids, axis=0, mode="clip") for name, array in resident.items()}
    return rows | found | {"mask": jnp.ones(ids.shape, jnp.float32)}


def _gather_padded(resident: dict[str, Array], rows: Batch) -> Batch:
    """Looks examples up by id, where -1 stands for a padding row."""
    return _gather(resident, rows) | {"mask": (rows["id"] >= 0).astype(jnp.float32)}
