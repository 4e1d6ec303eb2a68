"""Kills real trainings at random moments and compares what comes out with one left in peace.

    python -m tests.chaos --kills 200 --terms 50 --across 40 --report results/chaos

Every training is the command line in a process of its own. Half of the kills wait for the moment at
which a checkpoint is being written. A training that was killed is started again with the same
command, until it ends; then its losses, parameters, batch statistics, averages, optimizer and final
report have to be those of the undisturbed one, to the bit.

What is done is kept in unfinished.json beside the report, and the same command goes on from there.
"""

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mnv2_jax.files import write_json
from mnv2_jax.lab.train.checkpoint import Checkpoints
from mnv2_jax.lab.train.report import environment as versions
from mnv2_jax.markdown import markdown_table
from tests.damage import Damage, corrupt
from tests.events import scalars
from tests.processes import MAIN, environment, free_port, spawn

KILLED, TERMINATED = -signal.SIGKILL, 128 + signal.SIGTERM
PATIENCE = 3600  # seconds that anything may take before the training has failed
TOO_MANY = 5  # failed trainings of a case, after which it is given up


class Case(NamedTuple):
    """How a training runs.

    Attributes:
      name: in the report.
      config: the experiment.
      overrides: of its configuration.
      processes: of one training.
      devices: of each process.
      optimized: whether XLA is to take its time when it compiles.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    processes: int = 1
    devices: int = 1
    optimized: bool = False


@dataclass
class Tally:
    """What happened to the trainings of a case."""

    kills: int = 0
    inside_saves: int = 0
    terms: int = 0
    trainings: int = 0
    equal: int = 0
    slowest_term: float = 0.0
    slowest_peer: float = 0.0
    failed: list[str] = field(default_factory=list)


class Training:
    """One training of a case in its folder, started as often as needed."""

    def __init__(self, case: Case, workdir: Path, cache: Path):
        self.case, self.workdir, self.cache = case, workdir, cache
        self.processes: list[subprocess.Popen] = []

    def start(self) -> None:
        """Starts its processes."""
        command = [*MAIN, "--config", self.case.config, "--quiet"]
        command += ["--workdir", str(self.workdir), *self.case.overrides]
        address = f"localhost:{free_port()}"
        env = environment(self.cache, self.case.devices, self.case.optimized)
        for i in range(self.case.processes):
            several = ["--coordinator", address, "--hosts", str(self.case.processes)]
            several += ["--host", str(i), "--wait", "120"]
            self.processes.append(
                spawn(command + (several if self.case.processes > 1 else []), env)
            )

    def running(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def rows(self) -> int:
        """Lines of all logs: how far it is."""
        return sum(path.read_bytes().count(b"\n") for path in self.workdir.glob("*/*/*.jsonl"))

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any(self.workdir.glob("*/checkpoints_*/*tmp*"))

    def wait_until(self, condition: Any) -> bool:
        """Polls; False if the training ended first."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if not self.running():
                return False
            assert time.monotonic() < deadline, "the training makes no progress"
            time.sleep(0.005)
        return self.running()

    def wait(self) -> list[tuple[int, str]]:
        """Waits for the processes to end; returns their exit status and what they said."""
        found = []
        for process in self.processes:
            _, err = process.communicate(timeout=PATIENCE)
            assert "Traceback" not in err, err
            found.append((process.returncode, err))
        self.processes = []
        return found

    def stop(self) -> None:
        """Leaves nothing running."""
        for process in self.processes:
            process.kill()
            process.communicate()
        self.processes = []


def outcome(workdir: Path) -> dict[str, Any]:
    """All that a finished training leaves but the time it took."""
    results = json.loads((workdir / "results.json").read_text())
    for runs in results["runs"].values():
        for run in runs:
            del run["seconds"]
    found: dict[str, Any] = {"metric": results["metric"], "runs": results["runs"]}
    for seed in sorted(workdir.glob("*/seed_*")):
        name = f"{seed.parent.name}/{seed.name}"
        found[f"{name} model"] = (seed / "model.safetensors").read_bytes()
        found[f"{name} log"] = (seed / "metrics.jsonl").read_text()
        found[f"{name} events"] = scalars(seed / "tensorboard")
    for folder in sorted(workdir.glob("*/checkpoints_*")):
        checkpoints = Checkpoints(folder, keep=0)
        step, (problem, record) = max(checkpoints.inspect().items())
        assert not problem, (step, problem)  # read back, and hashed anew
        name = f"{folder.parent.name}/{folder.name}"
        found[f"{name} arrays"] = step, record["sha256"]
        checkpoints.close()
    text = (workdir / "report.md").read_text()
    found["report"] = re.sub(r"\| \d+ s \|$|^- command: .*$", "", text, flags=re.MULTILINE)
    return found


def disturb(training: Training, tally: Tally, how: str, draw: random.Random) -> None:
    """Starts a training and disturbs it once; it may end before."""
    training.start()
    before = training.rows()
    progress = draw.choice((0, 1, 2, 4, 8))
    if not training.wait_until(lambda: training.rows() > before + progress):
        return
    inside = how == "kill" and tally.inside_saves * 2 <= tally.kills
    if inside and not training.wait_until(training.saving):
        return
    time.sleep(draw.uniform(0, 0.05 if inside else 0.2))
    victim = draw.choice(training.processes)
    began = time.monotonic()
    victim.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
    if how == "kill":
        victim.wait()
        if victim.returncode != KILLED:
            return  # it had just ended
        tally.kills += 1
        tally.inside_saves += training.saving()
        others = [p for p in training.processes if p is not victim]
        for other in others:
            other.communicate(timeout=PATIENCE)
            # With 0 it had nothing left to do; what it left is compared like all else.
        if others:
            tally.slowest_peer = max(tally.slowest_peer, time.monotonic() - began)
        training.stop()
        return
    ends = training.wait()
    if {0, -signal.SIGTERM} & {status for status, _ in ends}:
        return  # after the training, or between two, where there is nothing to save
    assert {status for status, _ in ends} == {TERMINATED}, ends
    if any("saved at step" not in err for _, err in ends):
        return  # before the training, where there is nothing to save either
    steps = [re.search(r"saved at step (\d+)", err) for _, err in ends]
    assert all(steps) and len({step[1] for step in steps if step}) == 1, ends
    tally.terms += 1
    tally.slowest_term = max(tally.slowest_term, time.monotonic() - began)


def torment(
    case: Case,
    kills: int,
    terms: int,
    place: Path,
    seed: int = 0,
    tally: Tally | None = None,
    keep: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """Disturbs trainings of a case until all kills and terms are done, and finishes the last.

    Args:
      case: to run.
      kills: SIGKILLs of a running training; of several processes, of one of them.
      terms: SIGTERMs.
      place: folder to work in.
      seed: of what is random here.
      tally: to go on with.
      keep: called after every training.
    """
    tally = tally or Tally()
    seldom = (*case.overrides, "--config.checkpoint_minutes=1e6")  # saves change nothing either
    calm = case._replace(overrides=seldom)
    peace = Training(calm, place / f"{case.name}-undisturbed", place)
    try:
        peace.start()
        assert {status for status, _ in peace.wait()} == {0}
    finally:
        peace.stop()
    expected = outcome(peace.workdir)
    while (tally.kills < kills or tally.terms < terms) and len(tally.failed) < TOO_MANY:
        name = f"{case.name}-{tally.trainings}"
        training = Training(case, place / name, place)
        try:
            finish(training, tally, kills, terms, random.Random(f"{name} {seed}"))
            found = outcome(training.workdir)
            names = expected.keys() | found.keys()
            different = sorted(n for n in names if found.get(n) != expected.get(n))
            assert not different, f"different: {', '.join(different)}"
            tally.equal += 1
        except Exception as error:  # the other trainings still have something to show
            print(f"{name}: {error}", flush=True)
            tally.failed.append(f"{name}: {' '.join(str(error).split())[:500]}")
        finally:
            training.stop()
        tally.trainings += 1
        keep(tally)
        print(
            f"{time.strftime('%H:%M')} {case.name}: {tally.kills} of {kills} kills, {tally.terms} "
            f"of {terms} terms, {tally.equal} of {tally.trainings} trainings equal",
            flush=True,
        )
    return tally


def finish(training: Training, tally: Tally, kills: int, terms: int, draw: random.Random) -> None:
    """Starts a training again and again until it ends, disturbing it while some are left to do."""
    while not (training.workdir / "results.json").is_file():
        left = ["kill"] * (kills - tally.kills) + ["term"] * (terms - tally.terms)
        if left:
            disturb(training, tally, draw.choice(left), draw)
        else:
            training.start()
        ends = training.wait()
        assert all(status == 0 for status, _ in ends), ends


def cases(config: str, overrides: tuple[str, ...]) -> Iterator[tuple[Case, str]]:
    """The three ways to train, and which of the counts of the command line each takes."""
    pmap = ("--config.parallel.launcher=pmap",)
    yield Case("jit", config, overrides), "kills"
    yield Case("pmap", config, (*overrides, *pmap), devices=2), "kills"
    yield Case("two_hosts", config, overrides, processes=2), "across"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of one process")
    parser.add_argument("--terms", type=int, default=50)
    parser.add_argument("--across", type=int, default=40, help="kills of one of two processes")
    parser.add_argument("--damaged", type=int, default=500, help="checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="folder for report.md and results.json")
    arguments = parser.parse_args()
    overrides = (
        "--config.sweep.seeds=(0,)", "--config.sweep.at_once=1", "--config.ema_decay=0.9",
        "--config.checkpoint_minutes=0", "--config.log_every=1", "--config.steps=60",
    )  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # leaves no training running
    kept = Kept(arguments)
    with tempfile.TemporaryDirectory() as place:
        if kept.damage is None:
            kept.damage = corrupt(arguments.damaged, Path(place), arguments.seed)
            kept.write()
        for case, count in cases("experiments/ablate_linear.py", overrides):
            kills = arguments.across if count == "across" else arguments.kills // 2
            terms = -(-arguments.terms // 3)
            case = case._replace(optimized=True)
            tally = kept.tallies.setdefault(case.name, Tally())
            if tally.kills < kills or tally.terms < terms:
                torment(case, kills, terms, Path(place), arguments.seed, tally, kept.write)
    write_report(arguments.report, kept.tallies, kept.damage, kept.seconds())
    kept.path.unlink(missing_ok=True)


class Kept:
    """What is done so far, on disk for the case that this is interrupted too."""

    def __init__(self, arguments: argparse.Namespace):
        self.path = (arguments.report or Path(tempfile.mkdtemp())) / "unfinished.json"
        self.arguments = {k: v for k, v in vars(arguments).items() if k != "report"}
        self.damage: Damage | None = None
        self.tallies: dict[str, Tally] = {}
        self.before, self.began = 0.0, time.monotonic()
        if self.path.is_file():
            found = json.loads(self.path.read_text())
            if found["arguments"] != self.arguments:
                sys.exit(f"{self.path} is of {found['arguments']}: go on with these, or remove it.")
            self.before, self.damage = found["seconds"], Damage(**found["damage"])
            self.tallies = {name: Tally(**tally) for name, tally in found["tallies"].items()}

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def write(self, _: Tally | None = None) -> None:
        content = {
            "arguments": self.arguments,
            "seconds": self.seconds(),
            "damage": self.damage and asdict(self.damage),
            "tallies": {name: asdict(tally) for name, tally in self.tallies.items()},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, content)


def write_report(
    folder: Path | None, tallies: dict[str, Tally], damage: Damage, seconds: float
) -> None:
    """Prints the report, and writes it with the versions it was made with."""
    header = {
        "": "", "SIGKILLs": "kills", "inside a save": "inside_saves", "SIGTERMs": "terms",
        "trainings": "trainings", "bit-identical": "equal", "failed": "failed",
        "slowest exit after SIGTERM (s)": "slowest_term",
        "slowest exit of the other process (s)": "slowest_peer",
    }  # fmt: skip
    values = {name: asdict(t) | {"failed": len(t.failed)} for name, t in tallies.items()}
    rows = [
        [name, *(f"{v[key]:.3g}" for key in header.values() if key)] for name, v in values.items()
    ]
    failed = "".join(f"- {line}\n" for tally in tallies.values() for line in tally.failed)
    made_with = versions() | versions()["versions"]
    text = (
        "# Killed at random, and the same to the bit\n\n"
        f"`python -m tests.chaos {' '.join(sys.argv[1:])}`, {seconds / 60:.0f} minutes. "
        f"{', '.join(f'{k} {v}' for k, v in made_with.items() if k != 'versions')}.\n\n"
        "Compared with an undisturbed training: losses and all other rows of the logs and of "
        "TensorBoard's events, parameters, batch statistics, moving averages, optimizer, saved "
        "model and final report.\n\n"
        f"{markdown_table(header, rows)}\n\n{failed}"
        f"Of {damage.checkpoints} checkpoints with a damaged file in the newest step (bits, ends, "
        f"whole files, files exchanged), {damage.fell_back} fell back to an older step, "
        f"{damage.unharmed} came back whole in spite of it, {damage.refused} were refused though "
        f"older steps were whole, and {damage.silent} came back wrong. Of {damage.files} damaged "
        "configurations, results, logs, models and reports of a finished training, "
        f"{damage.files_silent} were not found by `verify`, or gone on with as if whole.\n"
    )
    print(text)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text(text)
        content = {name: asdict(tally) for name, tally in tallies.items()}
        write_json(folder / "results.json", content | {"damage": asdict(damage)})


if __name__ == "__main__":
    main()
