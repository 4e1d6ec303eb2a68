"""The training state, fresh or from a trained model, and a step as a pure function of it.

The step runs under jit, shard_map, pmap and vmap alike.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.lab.devices.sharding import Plan
from mnv2_jax.lab.model_folder import load_model
from mnv2_jax.lab.tasks.task import Batch, Sums, Task, TrainedModel, backbone_of
from mnv2_jax.models.classes import same_classes


@flax.struct.dataclass
class TrainState:
    """Everything that a training step reads and writes."""

    step: Array  # training steps done, skipped ones included
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any  # moving averages of `params` and `batch_stats`; {} where switched off
    skipped: Array  # steps that were not finite, and changed nothing but `step`
    skipped_in_a_row: Array  # those since the last good step

    @property
    def variables(self) -> dict[str, Any]:
        """The model's variables as trained."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def new_state(variables: dict[str, Any], optimizer: Any, ema: bool) -> TrainState:
    """Returns the state before the first step."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    zero = jnp.zeros((), jnp.int32)
    average = {"params": params, "batch_stats": stats} if ema else {}
    return TrainState(zero, params, stats, optimizer.init(params), average, zero, zero)


def make_fresh(
    config: Any, task: Task, model: Any, optimizer: Any, plan: Plan, classes: Sequence[str]
) -> Callable[[Array], TrainState]:
    """Returns (keys) -> the state before the first step; a start that does not fit is refused.

    Layers that belong to classes are taken from the start only if it knows the same `classes`.
    """
    start = load_model(config.init.model) if config.init.model else None
    if start is not None:
        _check_dialect(start.model, model)

    def first(key: Array) -> TrainState:
        variables = task.init(key)
        if start is not None:
            known = same_classes(start.classes, classes)
            variables = start_from(_variables_to_start_from(start, variables), variables, known)
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


# What a network computes with other values of these is not what its weights were trained for.
TRAVELS = ("padding", "bn_epsilon", "mean", "std")
# Layers whose shape depends on the number of classes.
OF_CLASSES = ("classifier/", "/classes_")


def _check_dialect(saved: Any, configured: Any) -> None:
    """Refuses a saved model whose padding, epsilon or input range is not the configured one's."""
    theirs, ours = (backbone_of(model).dialect for model in (saved, configured))
    for field in TRAVELS:
        was, now = getattr(theirs, field), getattr(ours, field)
        if was != now:
            raise UsageError(
                f"the saved model has {field} {was} and this configuration {now}: set "
                f"model.dialect to {theirs.name!r}, or to what config.json of the saved model has."
            )


def _variables_to_start_from(saved: TrainedModel, fresh: Any) -> Any:
    """A model's variables; a classifier's become the backbone of a network that has one."""
    if "backbone" in saved.variables["params"] or "backbone" not in fresh["params"]:
        return saved.variables

    def backbone(kind: str, own: Any) -> Any:
        return {k: v for k, v in saved.variables[kind].items() if k in own["backbone"]}

    return {kind: {**own, "backbone": backbone(kind, own)} for kind, own in fresh.items()}


def start_from(saved: Any, fresh: Any, known: bool = True) -> Any:
    """Replaces fresh variables by a saved model's, all but layers of other classes.

    Where the model has not `known` these classes, their layers stay fresh whatever their shape. A
    UsageError lists what else differs in name or shape.
    """
    old: Any = flatten_dict(saved, sep="/")
    new: Any = flatten_dict(fresh, sep="/")
    fit = {name for name in old.keys() & new.keys() if old[name].shape == new[name].shape}
    lines = [
        f"{sign}{name}{side[name].shape}"
        for name in sorted((old.keys() | new.keys()) - fit)
        for sign, side in (("-", old), ("+", new))
        if name in side
    ]
    if not all(any(part in line for part in OF_CLASSES) for line in lines):
        shown = ", ".join(lines[:6]) + (", …" if len(lines) > 6 else "")
        raise UsageError(
            f"the saved model does not fit this configuration (- saved, + configured): {shown}. "
            "Set model.width, model.spec and model.expand to those of the saved model."
        )
    if not known:
        fit -= {name for name in fit if any(part in name for part in OF_CLASSES)}
    merged = {name: old[name] if name in fit else leaf for name, leaf in new.items()}
    return unflatten_dict(merged, sep="/")


Step = Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Any]]]


def make_step(
    task: Task, optimizer: optax.GradientTransformation, ema_decay: float = 0.0,
    accumulate: int = 1, axis: str | None = None, groups: int = 1,
) -> Step:  # fmt: skip
    """Builds step(state, batch, key) -> (state, metrics).

    Gradients are those of the summed loss over all rows of all devices, divided by their count, so
    a masked row weighs nothing wherever it lies. A step whose loss, gradient, statistics or new
    parameters are not finite changes nothing but the counters.

    Args:
      ema_decay: of the moving averages of parameters and statistics; 0 for none. It warms up as
        min(decay, (1 + step) / (10 + step)), TensorFlow's rule.
      accumulate: parts of the batch, one after the other, each with batch statistics of its own.
      axis: the mapped device axis (`shard_map`, `pmap`); None where the batch is whole.
      groups: of rows of a whole batch, each with batch statistics of its own, as on so many
        devices; their running averages are averaged.
    """

    def gradients(params: Any, stats: Any, batch: Batch, key: Array) -> tuple[Any, Any, Sums]:
        def objective(params: Any) -> tuple[Array, tuple[Any, Sums]]:
            variables = {"params": params, "batch_stats": stats}
            if groups == 1:
                sums, new_stats = task.loss(variables, batch, key)
            else:
                of_each = jax.vmap(task.loss, in_axes=(None, 0, None))
                sums, new_stats = of_each(variables, _fold(batch, groups), key)
                sums = jax.tree.map(lambda v: v.sum(0), sums)
                new_stats = jax.tree.map(lambda v: v.mean(0), new_stats)
            return sums["loss"][0], (new_stats, sums)

        (_, (stats, sums)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return grads, stats, sums

    def accumulated(params: Any, stats: Any, batch: Batch, key: Array) -> tuple[Any, Any, Sums]:
        def part(carry: Any, item: tuple[Batch, Array]) -> tuple[Any, None]:
            grads, stats, sums = carry
            more_grads, stats, more_sums = gradients(params, stats, *item)
            add = jax.tree.map(jnp.add, (grads, sums), (more_grads, more_sums))
            return (add[0], stats, add[1]), None

        parts = _unfold(batch, accumulate), jax.random.split(key, accumulate)
        first = jax.tree.map(lambda v: v[0], parts)
        shapes = jax.eval_shape(gradients, params, stats, *first)
        grads, _, sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return lax.scan(part, (grads, stats, sums), parts)[0]

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(key, state.step)
        compute = gradients if accumulate == 1 else accumulated
        grads, stats, sums = compute(state.params, state.batch_stats, batch, key)
        if axis is not None:
            grads, sums = lax.psum((grads, sums), axis)
            stats = lax.pmean(stats, axis)
        count = jnp.maximum(sums["loss"][1], 1.0)
        grads = jax.tree.map(lambda g: g / count, grads)
        norm = tree_norm(grads)
        with jax.numpy_dtype_promotion("standard"):  # Optax's schedules mix their count with floats
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = _average(state, {"params": params, "batch_stats": stats}, ema_decay)
        sane = jnp.isfinite(sums["loss"][0]) & jnp.isfinite(norm)
        sane &= jnp.isfinite(tree_norm((params, stats)))
        new = (params, stats, opt_state, ema)
        old = (state.params, state.batch_stats, state.opt_state, state.ema)
        params, stats, opt_state, ema = choose(sane, new, old)
        skip = 1 - sane.astype(jnp.int32)
        skipped, in_a_row = state.skipped + skip, (state.skipped_in_a_row + 1) * skip
        state = TrainState(state.step + 1, params, stats, opt_state, ema, skipped, in_a_row)
        told = {"skipped": skipped, "skipped_in_a_row": in_a_row}
        return state, {"sums": sums, "gradient_norm": norm, **told}

    return step


def tree_norm(tree: Any) -> Array:
    """The root of the sum of squares, in a fifth of what `optax.tree.norm` has to trace."""
    return jnp.sqrt(sum(jnp.sum(lax.square(leaf)) for leaf in jax.tree.leaves(tree)))


def choose(sane: Array, new: Any, old: Any) -> Any:
    """The new tree, or all of the old one."""
    return jax.tree.map(lambda n, o: lax.select(sane, n, o), new, old)


def _average(state: TrainState, new: dict[str, Any], decay: float) -> Any:
    if not decay:
        return {}
    done = state.step.astype(jnp.float32)
    rate = jnp.minimum(decay, (1 + done) / (10 + done))
    # In this form, TensorFlow's, the average of what never changes stays equal to it.
    return jax.tree.map(lambda a, n: a - (1 - rate) * (a - n), state.ema, new)


def _fold(batch: Batch, groups: int) -> Batch:
    """Cuts rows into `groups` runs of neighbours: (b, ...) to (groups, b / groups, ...)."""
    return jax.tree.map(lambda v: v.reshape(groups, -1, *v.shape[1:]), batch)


def _unfold(batch: Batch, parts: int) -> Batch:
    """Deals rows out to `parts` batches, so that rows stay on the device that holds them."""
    return jax.tree.map(lambda v: jnp.moveaxis(v.reshape(-1, parts, *v.shape[1:]), 1, 0), batch)
