"""Models of what a training has saved so far: the newest checkpoint, the best, or one of them."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.train.checkpoint import Checkpoints, attempt
from mnv2_jax.lab.train.record import OF, identity_of, read_config, write_model

AT = "at_{}"  # the folder of a model in that of its seed, by its step
log = logging.getLogger(__name__)


def finish(workdir: Path, best: bool = False, at: int | None = None) -> Iterator[dict[str, Any]]:
    """Makes the models of a training as far as it is; it is left as it was, and can go on.

    Takes the newest checkpoints that are sound, those that the monitored metric ranks highest, or
    those of a step; a UsageError says where there is none. Yields, for each variant and seed, the
    folder of the model, its step and its scores there.
    """
    identity, folders = identity_of(read_config(workdir)), sorted(workdir.glob("*/checkpoints_*"))
    if not folders:
        raise UsageError(f"{workdir} holds no checkpoint yet: train for longer.")
    for folder in folders:
        state, record = _choose(folder, best, at)
        of, rows = record[OF], record["rows"] or [[]]
        if (of["run"], of["variant"]) != (identity.run, folder.parent.name):
            raise UsageError(f"{folder} belongs to {of['variant']!r} of {of['run']!r}: remove it.")
        for i, seed in enumerate(seeds := of["seeds"]):
            own = jax.tree.map(lambda v, i=i: v[i], state) if len(seeds) > 1 else state
            metrics = {
                f"{row['split']}/{name}": value
                for _, row in rows[i]
                if row["step"] == of["step"] and row["split"] != "train"
                for name, value in row.items()
                if name not in ("step", "split")
            }
            result = {
                "seed": seed, "steps": of["step"], "metrics": metrics,
                "seconds": round(record["seconds"] / len(seeds), 1),
                "skipped": int(np.asarray(own["skipped"])),
            }  # fmt: skip
            place = folder.parent / f"seed_{seed}" / AT.format(of["step"])
            variables = own.get("ema") or {k: own[k] for k in ("params", "batch_stats")}
            whose = identity._replace(variant=folder.parent.name, seeds=(seed,))
            write_model(place, variables, record["model"], result, whose)
            yield {"model": str(place), "step": of["step"], "metrics": metrics}


def _choose(folder: Path, best: bool, at: int | None) -> tuple[Any, dict[str, Any]]:
    """Reads the checkpoint that is asked for."""
    checkpoints, read, reasons = Checkpoints(folder, keep=0), [], []
    try:
        there = checkpoints.steps()
        for step in [step for step in there[::-1] if at in (None, step)]:
            found, reason = attempt(checkpoints.read, step)
            if reason:
                reasons.append(f"; step {step}: {reason}")
                log.warning("this checkpoint of %s cannot be used%s", folder, reasons[-1])
                continue
            read.append(found)
            if not best:
                break
    finally:
        checkpoints.close()
    if best:
        ranked = [pair for pair in read if pair[1].get("monitor") is not None]
        read = sorted(ranked, key=lambda pair: pair[1]["monitor"])[-1:]
    if not read:
        listed = ", ".join(map(str, there)) or "none"
        raise UsageError(
            f"{folder} has no such checkpoint that can be used, of steps {listed}"
            f"{''.join(reasons)}: give another --at, or none."
        )
    if not read[0][1].get("model"):
        raise UsageError(
            f"{folder} is of release 0.1.0, which did not save what describes its models: give "
            "the command of the training with a smaller --config.steps."
        )
    return read[0]
