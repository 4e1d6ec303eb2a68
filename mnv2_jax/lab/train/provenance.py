"""Where a result comes from: the commit, the machine, and a fingerprint of what determines it.

A fingerprint has three parts: the configuration; the data, with the first batches as the host makes
them; the programs that initialize, train and evaluate, as StableHLO. So it stays when a comment, a
name or a file's place changes, and does not when a network, a step or a recipe does. It leaves out
what the host computes of the outputs, such as the mean average precision, and `low_precision`.
"""

import hashlib
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mnv2_jax.lab.data import Source, fingerprint
from mnv2_jax.lab.train.config import plain
from mnv2_jax.lab.train.record import IDLE, digest
from mnv2_jax.lab.train.run import Run

ROOT = Path(__file__).resolve().parents[3]
UNKNOWN = "unknown"
# Paths: what is there is in the fingerprint of the data, or a constant of the programs.
PATHS = ("data.root", "init.model", "teacher.model")


def commit() -> str:
    """Returns the commit of this code, and whether files of Python differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10)

    try:
        top, head = git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top) != ROOT:  # installed in an environment inside another project's checkout
            return UNKNOWN
        return head + " with changes" * bool(git("status", "--porcelain", "--", "*.py"))
    except (OSError, ValueError, subprocess.SubprocessError):
        return UNKNOWN


def processor() -> str:
    """Returns the name of this machine's CPU."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or UNKNOWN


def of_program(text: str) -> str:
    """Hashes StableHLO without the names of functions and results, which compute nothing."""
    text = re.sub(r'jax\.result_info = "[^"]*"', "", text)
    names = dict.fromkeys(re.findall(r"(?:module|func\.func \w+) @([\w.$-]+)", text))
    numbers = {name: f"@{i}" for i, name in enumerate(names)}
    text = re.sub(r"@([\w.$-]+)", lambda found: numbers.get(found[1], found[0]), text)
    return hashlib.sha256(text.encode()).hexdigest()


def of_sources(sources: Mapping[Any, Source]) -> dict[str, Any]:
    """Says what data sets are made of, by their splits and names."""
    every = sources.items()
    return {f"{split} of {root or name}": fingerprint(own) for (name, split, root), own in every}


def short_digest(content: Any) -> str:
    """Returns the first 64 bits of a JSON value's hash."""
    return digest(content)[:16]


def of_configuration(config: Any) -> str:
    """Hashes the settings of a variant that determine its result."""
    settings = {k: v for k, v in plain(config).items() if k not in (*IDLE, *PATHS)}
    # A key that is 0 or empty means what its absence did before there was such a key.
    return short_digest({k: v for k, v in settings.items() if v and not k.startswith("sweep.")})


def of_run(
    run: Run, config: Any, made: Mapping[str, Any], folder: Path | None = None
) -> dict[str, Any]:
    """Returns the fingerprint of a variant, whose data are `made` of what `of_sources` says.

    It belongs to so many seeds at once, for their number is part of the programs. These are what
    training calls next, so they are traced and lowered once. `folder`, the variant's, keeps which
    records are bad, as in training.
    """
    seeds, data = tuple(range(run.seeds_at_once)), config.data
    lowered = run.lowered(seeds, folder)
    place, splits = data.root or data.name, (data.train_split, data.eval_split)
    content = [made[f"{split} of {place}"] for split in splits]
    arrays = [np.ascontiguousarray(rows[key]) for rows in lowered.batches for key in sorted(rows)]
    content += [hashlib.sha256(array).hexdigest() for array in arrays]
    programs = [of_program(program.as_text()) for program in lowered.programs.values()]
    hashes = {"data": short_digest(content), "program": short_digest(programs)}
    hashes = {"configuration": of_configuration(config), **hashes}
    return {"seeds_at_once": len(seeds), "fingerprint": hashes}
