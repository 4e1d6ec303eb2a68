"""Checkpoints of the whole training state, checked on restore; the only module that knows Orbax.

Orbax commits a step atomically but notices neither damage to array data nor a change of type, so a
SHA-256 of every array is stored with the step. A step that does not restore as it was saved is left
aside with a warning, and the next older one is tried.
"""

import copy
import gc
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from mnv2_jax.errors import UsageError

log = logging.getLogger(__name__)
# A slow disk is not a fault that a user is to be warned of: the save waits, and nothing is lost.
logging.getLogger("absl").addFilter(
    lambda record: "Waiting for previous save" not in record.getMessage()
)


class Restored(NamedTuple):
    """A training state from disk, and what was saved beside it."""

    state: Any
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run: the latest ones, and the best by the monitored metric."""

    def __init__(self, folder: Path, keep: int = 2):
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["monitor"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._manager = ocp.CheckpointManager(
            folder.resolve(),  # Orbax refuses relative paths, and only at the first save
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            ),
        )

    def save(self, state: Any, extra: dict[str, Any], monitor: float | None = None) -> None:
        """Starts saving in the background; a step that is there already is left alone.

        Args:
          state: the training state; it may be donated as soon as this returns.
          extra: JSON values to restore beside it.
          monitor: the metric that ranks checkpoints, higher is better; None if not measured.
        """
        step = int(np.max(jax.device_get(state.step)))
        if step in self._manager.all_steps():
            return
        # Orbax writes the record later, when the caller may have changed it.
        record = {"sha256": fingerprints(state), **copy.deepcopy(extra)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
        )
        metrics = None if monitor is None else {"monitor": monitor}
        try:
            self._manager.save(step, args=items, metrics=metrics)
        except OSError as error:
            raise _unwritable(self._manager.directory, error) from error

    def restore(self, like: Any) -> Restored | None:
        """Returns the newest state that is whole, or None if there is no checkpoint.

        Args:
          like: a state of the structure, shapes and shardings to restore into.

        Raises:
          UsageError: checkpoints are there, but none can be used.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        reasons = []
        for step in steps:
            found = None
            with _quiet():
                try:
                    found = self._restore_step(step, like)
                except Exception as error:  # Orbax raises whatever the damage leads it to
                    reasons.append(f"step {step}: {_first_line(error)}")
            if found is None:
                log.warning("this checkpoint cannot be used: %s", reasons[-1])
                continue
            for damaged in steps[: steps.index(step)]:
                self._manager.delete(damaged)
            return found
        if reasons:
            raise UsageError(
                f"no checkpoint in {self._manager.directory} can be used ({'; '.join(reasons)}): "
                "give another --workdir, or remove this one to start over."
            )
        return None

    def _restore_step(self, step: int, like: Any) -> Restored:
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)),
                record=ocp.args.JsonRestore(),
            ),
        )
        record = dict(found["record"])
        expected, actual = record.pop("sha256"), fingerprints(found["state"])
        damaged = [name for name in actual if expected.get(name) != actual[name]]
        if damaged or len(expected) != len(actual):
            raise ValueError(f"{len(damaged)} arrays differ from what was saved, {damaged[:1]}")
        return Restored(found["state"], record)

    def wait(self) -> None:
        """Blocks until what was started is on disk.

        Raises:
          UsageError: it could not be written; earlier steps are as they were.
        """
        try:
            self._manager.wait_until_finished()
        except OSError as error:
            raise _unwritable(self._manager.directory, error) from error

    def close(self) -> None:
        """Waits, and frees the manager's threads."""
        self.wait()
        self._manager.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Mutes what Orbax says of damage, with tracebacks: one warning of ours stands for all that."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        gc.collect()  # reads that were given up speak when they are collected
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def fingerprints(state: Any) -> dict[str, str]:
    """SHA-256 of every array of a state, by path; type and shape take part."""
    prints = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
        prints[jax.tree_util.keystr(path)] = digest.hexdigest()
    return prints


def _unwritable(folder: Any, error: OSError) -> UsageError:
    return UsageError(
        f"the checkpoint cannot be written to {folder}: {_first_line(error)}. Earlier steps are as "
        "they were; free some space, or give another --workdir."
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
