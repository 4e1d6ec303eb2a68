"""Is what a training left on disk sound, and its own? Every file of it is read."""

import json
import os
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mnv2_jax.errors import UsageError
from mnv2_jax.files import UnreadableFile, read_file
from mnv2_jax.lab.model_folder import TENSORS, load_model
from mnv2_jax.lab.seal import MAX_JSON
from mnv2_jax.lab.train import record as run
from mnv2_jax.lab.train.checkpoint import Checkpoints
from mnv2_jax.lab.train.finish import AT
from mnv2_jax.lab.train.log import lines_of
from mnv2_jax.lab.train.report import REPORT, RESULTS
from mnv2_jax.weights.readers.crc32c import crc32c, unmask


class Checked(NamedTuple):
    """What was read, its path in the folder of the sweep, and what is wrong with it, or ""."""

    what: str
    path: str
    problem: str


def verify(workdir: Path) -> Iterator[Checked]:
    """Yields what is to be said of each checkpoint, log, result, model and report of a sweep."""
    if not os.path.lexists(workdir / run.CONFIG):
        why = f"{str(workdir)!r} is not the folder of a training, for it has no {run.CONFIG}"
        raise UsageError(f"{why}: give the --workdir of one, such as runs/ablate_linear.")
    # Without its configuration, nothing can be told from what is another run's.
    config, identity, problem, rows = {}, run.Identity(), "", {}
    try:
        config = run.read_config(workdir)
        identity = run.identity_of(config)
    except UsageError as error:
        problem = str(error)
    yield Checked("configuration", run.CONFIG, problem)
    if config and os.path.lexists(workdir / run.DATA):
        try:
            run.read_data(workdir, identity.run)
        except UsageError as error:
            problem = str(error)
        yield Checked("data", run.DATA, problem)
    for folder in sorted(workdir.glob("*/checkpoints_*")):
        for step, problem, record in _checkpoints(folder, identity, config):
            path, what = (folder / str(step), f" of step {step}") if step >= 0 else (folder, "s")
            yield Checked(f"checkpoint{what}", str(path.relative_to(workdir)), problem)
            if not problem and record.get("rows"):
                seeds = record["of"]["seeds"]
                places = [folder.parent / f"seed_{seed}" for seed in seeds]
                rows |= dict(zip(places, record["rows"], strict=True))
    for seed in sorted({*workdir.glob("*/seed_*"), *rows}):
        for what, path, problem in _of_a_seed(seed, identity, config, rows.get(seed, [])):
            yield Checked(what, str(path.relative_to(workdir)), problem)
    if any(os.path.lexists(workdir / name) for name in (RESULTS, REPORT)):
        yield from _of_the_report(workdir, identity)


def _checkpoints(
    folder: Path, identity: run.Identity, config: dict[str, Any]
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Every step of a folder, which is named after the first and the last of its seeds."""
    ends = folder.name.removeprefix("checkpoints_").split("-")
    seeds = list(map(str, config.get("sweep.seeds", [])))
    if config and not set(ends) <= set(seeds):
        yield -1, f"is of seeds {ends}, which are none of the configuration", {}
        return
    if config:
        own = config["sweep.seeds"][seeds.index(ends[0]) : seeds.index(ends[-1]) + 1]
        identity = identity._replace(variant=folder.parent.name, seeds=tuple(own))
    try:
        checkpoints = Checkpoints(folder, keep=0, identity=identity)
    except UsageError as error:
        yield -1, str(error), {}
        return
    try:
        for step, (problem, record) in checkpoints.inspect().items():
            yield step, problem, record
    finally:
        checkpoints.close()


def _of_a_seed(
    folder: Path, identity: run.Identity, config: dict[str, Any], rows: list[Any]
) -> Iterator[tuple[str, Path, str]]:
    """What is in the folder of a seed, whose newest sound checkpoint holds these rows."""
    finished, problems = os.path.lexists(folder / run.RESULT), {}
    if finished:
        problems = _problems_of_a_result(folder, identity)
    log = folder / run.METRICS
    problem = _log_problem(log, config, finished, lines_of(rows)) or problems.get(run.METRICS, "")
    yield "log", log, problem
    events = sorted((folder / "tensorboard").glob("events*"))
    if not events and rows:
        yield "events", folder / "tensorboard", "are missing"
    for path in events:
        problem = problems.pop(str(path.relative_to(folder)), "")
        yield "events", path, _events_problem(path) or problem
    if finished:
        yield from _of_a_model(folder, problems)
        if os.path.lexists(folder / run.RIGHT):
            yield "images", folder / run.RIGHT, _problem_of_images(folder, identity)
    for made in sorted(folder.glob(AT.format("*"))):
        yield from _of_a_model(made, _problems_of_a_result(made, identity))


def _problems_of_a_result(folder: Path, identity: run.Identity) -> dict[str, str]:
    """What is wrong with a result and the files that it names, by their names."""
    seed = folder if folder.name.startswith("seed_") else folder.parent
    try:
        result = run.read_result(folder, _of_seed(seed, identity), files=False)
    except ValueError as error:
        return {run.RESULT: str(error).removeprefix(f"{run.RESULT} ")}
    problems = run.changed_files(folder, result)
    if "files" not in result and not problems:  # of release 0.1.0
        try:
            load_model(folder)
        except (UsageError, OSError) as error:
            problems[TENSORS] = str(error)
    return problems


def _of_seed(folder: Path, identity: run.Identity) -> run.Identity:
    number = folder.name.removeprefix("seed_")
    own = (int(number) if number.isdecimal() else -1,)
    return identity._replace(variant=folder.parent.name, seeds=own)


def _problem_of_images(folder: Path, identity: run.Identity) -> str:
    """What is wrong with what is kept of the images that a seed gets right."""
    try:
        run.read_right(folder, run.read_json(folder / run.RESULT), _of_seed(folder, identity))
    except ValueError as error:
        return str(error).removeprefix(f"{run.RIGHT} ")
    return ""


def _of_a_model(folder: Path, problems: dict[str, str]) -> Iterator[tuple[str, Path, str]]:
    yield "result", folder / run.RESULT, problems.pop(run.RESULT, "")
    yield "model", folder / TENSORS, problems.pop(TENSORS, "")
    for name in problems.keys() - {run.METRICS}:
        yield "file", folder / name, problems[name]


def _log_problem(path: Path, config: dict[str, Any], finished: bool, known: str) -> str:
    """A row for every `log_every` steps of the training, each once and in order."""
    try:
        text = read_file(path, MAX_JSON).decode()
    except ValueError as error:
        return getattr(error, "reason", "cannot be read")
    rows, lines = [], text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append((row["split"], int(row["step"])))
        except (ValueError, TypeError, LookupError, RecursionError):
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
    if missing:
        return f"lacks step {min(missing)}"
    return "" if text.startswith(known) else "is not what its newest checkpoint knows of it"


def _events_problem(path: Path) -> str:
    """TensorBoard's records carry a checksum each; a killed run may have cut the last one."""
    try:
        content, at = read_file(path, MAX_JSON), 0
    except UnreadableFile as error:
        return error.reason
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


def _of_the_report(workdir: Path, identity: run.Identity) -> Iterator[Checked]:
    """The results of a whole sweep, and the files that were written with them."""
    try:
        results = run.read_json(workdir / RESULTS)
        run.check_seal(results, identity.sealed)
    except ValueError as error:
        yield Checked("results", RESULTS, str(error))
        return
    yield Checked("results", RESULTS, "")
    seeds = [(name, seed) for name, own in results["runs"].items() for seed in own]
    for place in (Path(name) / f"seed_{result['seed']}" / run.RESULT for name, result in seeds):
        if not os.path.lexists(workdir / place):
            yield Checked("result", str(place), "is missing, and the report has it")
    problems = run.changed_files(workdir, results)
    for name in results.get("files", {}):
        yield Checked("report", name, problems.get(name, ""))
