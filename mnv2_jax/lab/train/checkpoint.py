"""Checkpoints of the whole training state, checked on restore; the only module that knows Orbax.

Orbax commits a step atomically but notices neither damage to array data nor a change of type, so a
record is stored with the step: whose it is, and a SHA-256 of every array. A step that does not
restore as it was saved is left aside with a warning, and the next older one is tried.
"""

import gc
import hashlib
import logging
import operator
import os
import re
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers as policies

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.lab.devices.hosts import agree, gather
from mnv2_jax.lab.devices.sharding import shapes_of
from mnv2_jax.lab.train.log import say_no_more
from mnv2_jax.lab.train.record import Identity, check_seal, sealed

log = logging.getLogger(__name__)
LOGGERS = ("absl", "asyncio")  # where Orbax logs
# Bytes of a file of Orbax: of arrays, of which it reads what it needs; and of all others.
MAX_DATA, MAX_METADATA = 1 << 34, 1 << 26


@cache
def mute_orbax() -> None:
    """Leaves out what Orbax says, for the rest of the process, that is no user's concern."""

    def concerns_users(record: logging.LogRecord) -> bool:
        # What it logs with a traceback it raises as well; on a slow disk nothing is lost.
        return not record.exc_info and "Waiting for previous save" not in record.getMessage()

    for name in LOGGERS:
        logging.getLogger(name).addFilter(concerns_users)
    # A write that fails gives up those that were to follow it; the failure itself is raised.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    tell = sys.unraisablehook

    def tell_but_of_closed_loops(unraisable: Any) -> None:
        # Reads and writes that it has given up call back into an event loop that is gone.
        if str(unraisable.exc_value) != "Event loop is closed":
            tell(unraisable)

    sys.unraisablehook = tell_but_of_closed_loops


class Progress(NamedTuple):
    """What a training knows besides its state.

    Of `seconds` are all attempts; `evaluated` is false where that is due. None as `rows` is release
    0.1.0's, which did not keep them.
    `end` has the best result so far, evaluations since, and why the training ends here, if it does.
    """

    seconds: float = 0.0
    sums: dict[str, Any] = {}  # noqa: RUF012 - of the metrics since the last row of the log
    losses: list[float] | None = None  # of that row, for each seed
    evaluated: bool = True
    rows: list[list[Any]] | None = None  # of each seed's log, each after its time
    end: dict[str, Any] = {}  # noqa: RUF012 - never changed in place
    origins: list[Any] = []  # noqa: RUF012 - of the code and machines that trained until here


class Restored(NamedTuple):  # noqa: D101
    state: Any
    progress: Progress


class Checkpoints:
    """The checkpoints of one run: the latest `keep`, and the best by the monitored metric.

    With `keep` 0 they are only read, and a run that is under way is not disturbed. Those of another
    identity are never restored. `model` describes the network, as a model folder does. A UsageError
    names a pipe, a device or a file of no sensible size among them.
    """

    def __init__(
        self, folder: Path, keep: int = 2, identity: Identity | None = None, model: Any = None
    ):
        mute_orbax()
        if found := _irregular(folder):
            raise UsageError(f"{folder / found}: put back what was there, or remove that step.")
        self._identity, self._model = identity or Identity(), model
        ranked: dict[str, Any] = {"get_metric_fn": operator.itemgetter("monitor"), "n": 1}
        best = policies.BestN(keep_checkpoints_without_metrics=False, **ranked)
        kept = policies.AnyPreservationPolicy([policies.LatestN(keep), best])
        given: dict[str, Any] = {"read_only": True}
        if keep:
            given = {"cleanup_tmp_directories": True, "preservation_policy": kept}
        with _quiet():
            options = ocp.CheckpointManagerOptions(**given)
            # Orbax refuses relative paths, and only at the first save.
            self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def save(self, state: Any, progress: Progress, monitor: float | None = None) -> None:
        """Starts saving in the background; a step that is there already is left alone.

        The state may be donated as soon as this returns. `monitor` is the metric that ranks
        checkpoints, higher is better; None if it was not measured.
        """
        step = step_of(state)
        if step in self._manager.all_steps():
            return
        record = {"sha256": fingerprints(state), "arrays": arrays_of(state), "monitor": monitor}
        record |= {"model": self._model, **progress._asdict()}
        # Orbax writes the record later, when the caller may have changed it; this is a copy.
        record = sealed(record, self._identity.of(step=step))
        save = {"state": ocp.args.StandardSave(state), "record": ocp.args.JsonSave(record)}
        metrics = None if monitor is None else {"monitor": monitor}
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**save), metrics=metrics)

    def restore(self, like: Any) -> Restored | None:
        """Returns the newest state that is whole, or None if there is no checkpoint.

        `like` is a state of the structure, shapes and shardings to restore into. A UsageError says
        that checkpoints are there, but none can be used.
        """
        steps = self.steps()[::-1]
        agree({f"steps in {self._manager.directory}": steps})
        reasons = []
        for step in steps:
            restored, reason = attempt(partial(self._restore_step, like=like), step)
            # What one host cannot read, none goes on from.
            reason = next(filter(None, gather(reason)), "")
            if restored is None or reason:
                reasons.append(f"step {step}: {reason}")
                log.warning("this checkpoint cannot be used: %s", reasons[-1])
                continue
            for damaged in steps[: steps.index(step)]:
                self._manager.delete(damaged)
            return restored
        if reasons:
            raise UsageError(
                f"no checkpoint in {self._manager.directory} can be used ({'; '.join(reasons)}): "
                "give another --workdir, or remove this one to start over."
            )
        return None

    def _restore_step(self, step: int, like: Any) -> Restored:
        record = self.record(step)
        if "arrays" in record and (changes := _changes(record["arrays"], arrays_of(like))):
            raise ValueError(f"saved (-) and configured (+) arrays differ, {changes}")
        state = self._state(step, like)
        actual, expected = fingerprints(state), record["sha256"]
        damaged = [k for k in actual.keys() | expected if expected.get(k) != actual.get(k)]
        if damaged:
            raise ValueError(f"{len(damaged)} arrays differ from what was saved, {damaged[:1]}")
        if step_of(state) != step:
            raise ValueError(f"it is of step {step_of(state)}")
        return Restored(state, _progress(record))

    def record(self, step: int) -> dict[str, Any]:
        """What was saved beside a step's arrays, unless it was changed or is another's."""
        items = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
        record = dict(items["record"])
        known = self._identity.run != ""
        check_seal(record, self._identity.sealed, self._identity.of(step=step) if known else None)
        return record

    def _state(self, step: int, like: Any) -> Any:
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        state = ocp.args.StandardRestore(wanted)
        return self._manager.restore(step, args=ocp.args.Composite(state=state))["state"]

    def read(self, step: int) -> tuple[Any, dict[str, Any]]:
        """Reads a step without its configuration: the state as dictionaries, and its record.

        Raises whatever the damage to it leads Orbax to.
        """
        record, place = self.record(step), SingleDeviceSharding(jax.local_devices()[0])
        # The manager knows no handler of the state before it has restored one.
        folder = self._manager.directory / str(step) / "state"
        saved: Any = ocp.StandardCheckpointHandler().metadata(folder)
        state = self._state(step, shapes_of(getattr(saved, "tree", saved), place))
        # Without a configuration, tuples and dataclasses are read as dictionaries.
        ours = {_plain(path): value for path, value in fingerprints(state).items()}
        for path, value in record["sha256"].items():
            if ours.get(_plain(path)) != value:
                raise ValueError(f"{_plain(path)} is not what was saved")
        return state, record

    def steps(self) -> list[int]:
        """The steps that are there, oldest first."""
        return sorted(self._manager.all_steps())

    def inspect(self) -> dict[int, tuple[str, dict[str, Any]]]:
        """Reads every step, and returns what is wrong with it, or "", and its record."""
        found = {step: attempt(self.read, step) for step in self.steps()}
        return {step: (reason, {} if reason else read[1]) for step, (read, reason) in found.items()}

    def wait(self) -> None:
        """Blocks until what was started is on disk, or a UsageError says that it is not."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            say_no_more()
            raise UsageError(
                f"the checkpoint cannot be written to {self._manager.directory}: "
                f"{first_line(error)}. Earlier steps are as they were; free some space, or give "
                "another --workdir."
            ) from error

    def close(self) -> None:
        """Waits, and frees the manager's threads."""
        self.wait()
        self._manager.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Mutes what Orbax says of damage: one warning of ours stands for it."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before, hook = [logger.disabled for logger in loggers], sys.unraisablehook
    for logger in loggers:
        logger.disabled = True
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _irregular(folder: Path) -> str:
    """Names a file that Orbax is not to open, for it may never end or answer, and why; or ""."""
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            with suppress(OSError):  # of a training under way, files come and go
                status, limit = path.stat(), MAX_DATA if path.parent.name == "d" else MAX_METADATA
                if not stat.S_ISREG(status.st_mode):
                    return f"{path.relative_to(folder)} is not a regular file"
                if status.st_size > limit:
                    return f"{path.relative_to(folder)} has {status.st_size:,} bytes"
    return ""


def attempt(read: Callable[[int], Any], step: int) -> tuple[Any, str]:
    """Returns what is read of a step, or None and why it cannot be."""
    with _quiet():
        try:
            return read(step), ""
        except Exception as error:  # Orbax raises whatever the damage leads it to
            reason = first_line(error)
        gc.collect()  # reads that were given up speak when they are collected
        return None, reason


def _progress(record: dict[str, Any]) -> Progress:
    """Reads what was saved beside a state, under the names of version 0.1.0 too."""
    given = {"sums": record.get("window") or {}, "evaluated": not record.get("due"), **record}
    return Progress(**{name: given[name] for name in Progress._fields if name in given})


def step_of(state: Any) -> int:
    """The number of steps that a state has behind it."""
    return int(np.max(jax.device_get(state.step)))


def fingerprints(state: Any) -> dict[str, str]:
    """SHA-256 of every array of a state, by path; type and shape take part."""
    prints = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
        prints[jax.tree_util.keystr(path)] = digest.hexdigest()
    return prints


def arrays_of(state: Any) -> dict[str, str]:
    """Type and shape of every array of a state, by path, such as "float32(3, 3)"."""
    return {
        jax.tree_util.keystr(path): f"{jnp.dtype(leaf.dtype).name}{tuple(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _changes(saved: dict[str, str], wanted: dict[str, str]) -> str:
    """What two sets of arrays do not have in common, in one line; "" if that is nothing."""
    names = [n for n in sorted(saved.keys() | wanted.keys()) if saved.get(n) != wanted.get(n)]
    sides = ("-", saved), ("+", wanted)
    lines = [f"{sign}{n} {side[n]}" for n in names for sign, side in sides if n in side]
    return ", ".join(lines[:6]) + (f" and {len(lines) - 6} more" if len(lines) > 6 else "")


def _plain(path: str) -> str:
    """A path of names and numbers, however they are accessed: `.params['a'][0]` is params/a/0."""
    return "/".join(a or b or c for a, b, c in re.findall(r"\.(\w+)|\['(.*?)'\]|\[(\d+)\]", path))
