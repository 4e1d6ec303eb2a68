"""Models of what a training has saved so far: the newest checkpoint, the best, or one of them."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.lab.model_folder import CARD, DESCRIPTION, TENSORS, save_model
from mnv2_jax.lab.train.checkpoint import Checkpoints
from mnv2_jax.lab.train.record import (
    OF,
    Identity,
    hash_file,
    identity_of,
    read_config,
    write_result,
)

AT = "at_{}"  # the folder of a model in that of its seed, by its step
log = logging.getLogger(__name__)


def finish(workdir: Path, best: bool = False, at: int | None = None) -> Iterator[dict[str, Any]]:
    """Makes the models of a training as far as it is; it is left as it was, and can go on.

    Args:
      workdir: of the training.
      best: take the checkpoint that the monitored metric ranks highest, not the newest.
      at: take the checkpoint of this step.

    Yields:
      For each variant and seed, the folder of the model, its step and its scores there.

    Raises:
      UsageError: there is no such checkpoint.
    """
    identity, found = identity_of(read_config(workdir)), False
    for folder in sorted(workdir.glob("*/checkpoints_*")):
        checkpoints = Checkpoints(folder, keep=0)
        try:
            state, record = _choose(checkpoints, folder, best, at)
        finally:
            checkpoints.close()
        whose = Identity(**{k: record[OF][k] for k in ("run", "variant")})
        if whose != identity._replace(variant=folder.parent.name, sealed=False):
            raise UsageError(
                f"{folder} belongs to run {whose.run!r}, {whose.variant!r}: remove it."
            )
        found = True
        for i, seed in enumerate(record[OF]["seeds"]):
            several = len(record[OF]["seeds"]) > 1
            own = jax.tree.map(lambda v, i=i, several=several: v[i] if several else v, state)
            place = folder.parent / f"seed_{seed}" / AT.format(record[OF]["step"])
            yield _write(place, own, record, i, whose._replace(seeds=(seed,)))
    if not found:
        raise UsageError(f"{workdir} holds no checkpoint yet: train for longer.")


def _choose(
    checkpoints: Checkpoints, folder: Path, best: bool, at: int | None
) -> tuple[Any, dict[str, Any]]:
    """Reads the newest checkpoint that is sound, or the one that is asked for."""
    there, steps = ", ".join(map(str, checkpoints.steps())), checkpoints.steps()[::-1]
    if at is not None:
        steps = [step for step in steps if step == at]
    read, reasons = [], []
    for step in steps:
        try:
            read.append(checkpoints.read(step))
            if not best:
                break
        except Exception as error:  # Orbax raises whatever the damage leads it to
            reasons.append(f"step {step}: {first_line(error)}")
            log.warning("this checkpoint of %s cannot be used: %s", folder, reasons[-1])
    if best:
        ranked = [pair for pair in read if pair[1].get("monitor") is not None]
        read = sorted(ranked, key=lambda pair: pair[1]["monitor"])[-1:]
    if not read:
        raise UsageError(
            f"{folder} has no such checkpoint that can be used, of steps {there or 'none'}"
            f"{'; ' if reasons else ''}{'; '.join(reasons)}: give another --at, or none."
        )
    if not read[0][1].get("model"):
        raise UsageError(
            f"{folder} is of release 0.1.0, which did not save what describes its models: give "
            "the command of the training with a smaller --config.steps."
        )
    return read[0]


def _write(
    place: Path, state: Any, record: dict[str, Any], index: int, whose: Identity
) -> dict[str, Any]:
    step, rows = record[OF]["step"], (record["rows"] or [[]])[index]
    variables = state.get("ema") or {k: state[k] for k in ("params", "batch_stats")}
    save_model(place, variables, record["model"] | {OF: whose.of(step=step)})
    metrics = {
        f"{row['split']}/{name}": value
        for _, row in rows
        if row["step"] == step and row["split"] != "train"
        for name, value in row.items()
        if name not in ("step", "split")
    }
    result = {
        "seed": whose.seeds[0],
        "steps": step,
        "seconds": round(record["seconds"] / len(record[OF]["seeds"]), 1),
        "metrics": metrics,
        "model_sha256": hash_file(place / TENSORS),
        "skipped": int(np.asarray(state["skipped"])),
    }
    write_result(place, result, whose, [place / n for n in (TENSORS, DESCRIPTION, CARD)])
    return {"model": str(place), "step": step, "metrics": metrics}
