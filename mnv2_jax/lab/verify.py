"""Is what a training left on disk sound? Every checkpoint, log, model and result is read."""

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.model_folder import TENSORS, load_model
from mnv2_jax.lab.train.checkpoint import Checkpoints
from mnv2_jax.lab.train.log import METRICS, RESULT
from mnv2_jax.lab.train.sweep import CONFIG
from mnv2_jax.weights.readers.crc32c import crc32c, unmask


class Checked(NamedTuple):
    """One thing that was read.

    Attributes:
      what: it is, e.g. "checkpoint of step 300".
      path: relative to the folder of the sweep.
      problem: what is wrong with it; empty if it is sound.
    """

    what: str
    path: str
    problem: str


def verify(workdir: Path) -> Iterator[Checked]:
    """Reads all that a sweep wrote.

    Args:
      workdir: of the sweep.

    Yields:
      One for each checkpoint, log, model and result, as they are read.

    Raises:
      UsageError: the folder holds no sweep.
    """
    if not (workdir / CONFIG).is_file():
        raise UsageError(
            f"{str(workdir)!r} is not the folder of a training, for it has no {CONFIG}: give the "
            "--workdir of one, such as runs/ablate_linear."
        )
    config, problem = _json(workdir / CONFIG)
    yield Checked("configuration", CONFIG, problem)
    for folder in sorted(workdir.glob("*/checkpoints_*")):
        checkpoints = Checkpoints(folder, keep=0)
        try:
            for step, problem in checkpoints.inspect().items():
                path = str((folder / str(step)).relative_to(workdir))
                yield Checked(f"checkpoint of step {step}", path, problem)
        finally:
            checkpoints.close()
    for seed in sorted(workdir.glob("*/seed_*")):
        for what, path, problem in _of_a_seed(seed, config or {}):
            yield Checked(what, str(path.relative_to(workdir)), problem)


def _of_a_seed(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, Path, str]]:
    finished = (folder / RESULT).is_file()
    yield "log", folder / METRICS, _log_problem(folder / METRICS, config, finished)
    for path in sorted((folder / "tensorboard").glob("events*")):
        yield "events", path, _events_problem(path.read_bytes())
    if finished:
        result, problem = _json(folder / RESULT)
        yield "result", folder / RESULT, problem
        yield "model", folder / TENSORS, _model_problem(folder, (result or {}).get("model_sha256"))


def _json(path: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return None, f"cannot be read: {error}"
    return (content, "") if isinstance(content, dict) else (None, "is not an object of JSON")


def _log_problem(path: Path, config: dict[str, Any], finished: bool) -> str:
    """A row for every `log_every` steps of the training, each once and in order."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append((row["split"], int(row["step"])))
        except (ValueError, TypeError, KeyError):
            if finished or number < len(lines):  # a run that was killed may have cut its last line
                return f"line {number} is no row of a log"
    twice = [f"{split} of step {step}" for (split, step), n in Counter(rows).items() if n > 1]
    if twice:
        return f"has {twice[0]} twice"
    steps = [step for _, step in rows]
    if steps != sorted(steps):
        return "is out of order"
    trained = {step for split, step in rows if split == "train"}
    every = config.get("log_every", 0)
    missing = set(range(every, max(trained, default=0) + 1, every)) - trained if every else set()
    return f"lacks step {min(missing)}" if missing else ""


def _events_problem(content: bytes) -> str:
    """TensorBoard's records carry a checksum each; a killed run may have cut the last one."""
    at = 0
    while at + 12 <= len(content):
        length, of_length = struct.unpack_from("<QI", content, at)
        if crc32c(content[at : at + 8]) != unmask(of_length):
            return f"is damaged at byte {at}"
        end = at + 12 + length
        if end + 4 > len(content):
            break
        (of_data,) = struct.unpack_from("<I", content, end)
        if crc32c(content[at + 12 : end]) != unmask(of_data):
            return f"is damaged at byte {at + 12}"
        at = end + 4
    return ""


def _model_problem(folder: Path, expected: str | None) -> str:
    try:
        load_model(folder)
        digest = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    except (UsageError, OSError) as error:
        return str(error)
    if expected is not None and digest != expected:
        return "is not the one that was trained: its sha256 is another"
    return ""
