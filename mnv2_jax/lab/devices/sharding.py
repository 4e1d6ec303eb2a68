"""Devices: meshes, the three launchers of a step, and batches that span hosts.

The same pure step runs under jit over a sharded batch (the default), `shard_map`, or pmap. Under
jit the batch is whole, so batch statistics are global; under the other two every device sees its
rows, and statistics are averaged over the mapped axis or not. Which scope is meant is an explicit
choice (`BATCH_NORM`), the same whichever launcher runs it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mnv2_jax.errors import UsageError

AXIS = "batch"
BATCH_NORM = ("global", "device")
EVERYWHERE, ROWS = PartitionSpec(), PartitionSpec(AXIS)


class Plan(NamedTuple):
    """How the devices are used."""

    mesh: Mesh  # all devices along one axis
    launcher: str  # "jit", "shard_map" or "pmap"
    batch_norm: str  # "global": statistics over the whole batch; "device": over each device's rows
    # Seeds trained together, as a leading axis of the state; above 1, that axis and not the batch
    # is spread over the devices.
    seeds_at_once: int

    @property
    def norm_axis(self) -> str | None:
        """The axis that batch norm averages its statistics over."""
        return AXIS if self.launcher != "jit" and self.batch_norm == "global" else None

    @property
    def step_axis(self) -> str | None:
        """The axis that a step sums its gradients over."""
        return None if self.launcher == "jit" else AXIS

    @property
    def groups(self) -> int:
        """Groups of rows with batch statistics of their own, where one program sees them all."""
        return self.mesh.size if self.launcher == "jit" and self.batch_norm == "device" else 1

    @property
    def rows(self) -> NamedSharding:
        """The sharding of a batch, or of the leading axis of seeds."""
        return NamedSharding(self.mesh, ROWS)

    @property
    def everywhere(self) -> NamedSharding:
        """The sharding of what every device holds whole."""
        return NamedSharding(self.mesh, EVERYWHERE)

    @property
    def state(self) -> NamedSharding:
        """The sharding of the training state, and of the keys of its seeds."""
        return self.rows if self.seeds_at_once > 1 else self.everywhere


def make_plan(
    launcher: str = "jit",
    batch_norm: str = "global",
    devices: int = 0,
    seeds_at_once: int = 1,
    batch_size: int | None = None,
    accumulate: int = 1,
    given: Sequence[Any] | None = None,
) -> Plan:
    """Lays out the devices, all (of all hosts) for 0; several seeds take as many as divide them.

    They are JAX's, or those `given`, which need not be here: programs are only compiled for them.

    `UsageError` for more devices than there are, and for a global batch whose rows do not divide
    over devices and the parts that are accumulated.
    """
    if launcher == "pmap" and jax.process_count() > 1:
        raise UsageError("the launcher pmap runs on one host: set parallel.launcher to jit.")
    here = jax.devices() if given is None else list(given)
    if not 0 <= devices <= len(here):
        raise UsageError(
            f"parallel.devices is {devices}, but {len(here)} "
            f"{here[0].platform.upper()} device(s) are here: give at most that, or 0 for all."
        )
    used = spread = devices or len(here)  # spread: devices that one batch is divided over
    if seeds_at_once > 1:
        if (launcher, batch_norm) != ("jit", "global") or jax.process_count() > 1:
            raise UsageError(
                f"{seeds_at_once} seeds at once need the launcher jit with global batch norm on "
                f"one host, not {launcher} with {batch_norm} on {jax.process_count()}: set "
                "sweep.at_once to 1."
            )
        used, spread = max(n for n in range(1, used + 1) if seeds_at_once % n == 0), 1
    parts = spread * accumulate
    if batch_size is not None and batch_size % parts:
        over = f"{spread} device(s)" + (f" × {accumulate} parts" if accumulate > 1 else "")
        raise UsageError(
            f"batch_size is {batch_size}, which does not divide over {over}: try "
            f"{max(1, round(batch_size / parts)) * parts}, or set parallel.devices."
        )
    return Plan(_mesh(here[:used]), launcher, batch_norm, seeds_at_once)


def _mesh(devices: list[Any]) -> Mesh:
    return jax.make_mesh((len(devices),), (AXIS,), (AxisType.Auto,), devices=devices)


Function = Callable[..., Any]


def launch(function: Function, plan: Plan) -> Function:
    """Compiles function(state, resident, batch, key) -> (state, metrics) for the plan's devices.

    The caller's `state` is donated; every device holds `resident` whole, and rows of `batch`.
    """
    if plan.seeds_at_once > 1:
        function = jax.vmap(function, in_axes=(0, None, 0, 0))
    return LAUNCHERS[plan.launcher](function, plan)


def _jit(function: Function, plan: Plan) -> Function:
    given = (plan.state, plan.everywhere, plan.rows, plan.state)
    return jax.jit(function, donate_argnums=0, in_shardings=given, out_shardings=plan.state)


def _shard_map(function: Function, plan: Plan) -> Function:
    shares = {"in_specs": (EVERYWHERE, EVERYWHERE, ROWS, EVERYWHERE), "out_specs": EVERYWHERE}
    # The step sums over the axis itself, as pmap needs it.
    mapped = jax.shard_map(function, mesh=plan.mesh, check_vma=False, **shares)
    return jax.jit(mapped, donate_argnums=0)


def _pmap(function: Function, plan: Plan) -> Function:
    axes = {"in_axes": (None, None, 0, None), "out_axes": (None, None)}
    mapped = jax.pmap(function, AXIS, devices=list(plan.mesh.devices.flat), **axes)
    local = len(plan.mesh.local_devices)

    def stacked(batch: Any) -> Any:
        return jax.tree.map(lambda v: v.reshape(local, -1, *v.shape[1:]), batch)

    def call(state: Any, resident: Any, batch: Any, key: Any) -> Any:
        return mapped(state, resident, stacked(batch), key)

    def lower(state: Any, resident: Any, batch: Any, key: Any) -> Any:
        return mapped.lower(state, resident, jax.eval_shape(stacked, batch), key)

    call.lower = lower  # as the functions of `jax.jit` have it
    return call


def over_rows(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Spreads function(constants, rows) -> rows over all local devices; call it under `jax.jit`.

    Every output row depends on one row, and all devices divide their number. On a CPU with a device
    for each core (`process.split_cpu`), this keeps the cores busier than one program that is spread
    over them (benchmarks/infer_cpu.py).
    """
    shares = {"in_specs": (EVERYWHERE, ROWS), "out_specs": ROWS, "check_vma": False}
    return jax.shard_map(function, mesh=_mesh(jax.local_devices()), **shares)


LAUNCHERS = {"jit": _jit, "shard_map": _shard_map, "pmap": _pmap}


def global_batch(batch: Any, plan: Plan) -> Any:
    """Places this host's rows, or with several seeds all of them, as its share of global arrays."""
    if plan.launcher == "pmap":
        return batch
    hosts = jax.process_count() if plan.seeds_at_once == 1 else 1

    def place(local: np.ndarray) -> jax.Array:
        shape = (local.shape[0] * hosts, *local.shape[1:])
        # Without the global shape, hosts of unequal batches would go unnoticed.
        return jax.make_array_from_process_local_data(plan.rows, local, shape)

    return jax.tree.map(place, batch)


def shapes_of(tree: Any, sharding: Any) -> Any:
    """Shapes and types of a tree, placed by a sharding."""
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding), tree)


def global_shapes(batch: Any, plan: Plan) -> Any:
    """Returns the shapes of what `global_batch` places, for devices that may be elsewhere."""
    hosts = jax.process_count() if plan.seeds_at_once == 1 else 1

    whole = jax.tree.map(lambda v: np.broadcast_to(v[:1], (len(v) * hosts, *v.shape[1:])), batch)
    return shapes_of(whole, None if plan.launcher == "pmap" else plan.rows)
