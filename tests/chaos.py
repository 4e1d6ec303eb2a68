"""Kills real trainings at random moments and compares what comes out with one left in peace.

    python -m tests.chaos --kills 200 --terms 50 --across 40 --report results/chaos

Every training is the command line in a process of its own. Half of the kills wait for the moment at
which a checkpoint is being written. A training that was killed is started again with the same
command, until it ends; then its losses, parameters, batch statistics, averages, optimizer and final
report have to be those of the undisturbed one, to the bit.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mnv2_jax.train.checkpoint import Checkpoints
from tests.processes import MAIN, environment, free_port, spawn

KILLED, TERMINATED = -signal.SIGKILL, 128 + signal.SIGTERM
PATIENCE = 1800  # seconds that anything may take before the test has failed
PEER_LEAVES = 30  # seconds after the other process was killed
TERM_LEAVES = 10  # seconds after SIGTERM


class Case(NamedTuple):
    """How a training runs.

    Attributes:
      name: in the report.
      config: the experiment.
      overrides: of its configuration.
      processes: of one training.
      devices: of each process.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    processes: int = 1
    devices: int = 1


class Tally:
    """What happened to the trainings of a case."""

    def __init__(self) -> None:
        self.kills = self.inside_saves = self.terms = self.trainings = self.equal = 0
        self.slowest_term = self.slowest_peer = 0.0


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
        env = environment(self.cache, self.case.devices, optimized=True)
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
            time.sleep(0.001)
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
    for folder in sorted(workdir.glob("*/checkpoints_*")):
        checkpoints = Checkpoints(folder, keep=0)
        newest = max(checkpoints.inspect().items())
        assert newest[1] == "", newest  # read back, and hashed anew
        name = f"{folder.parent.name}/{folder.name}"
        found[f"{name} arrays"] = newest[0], checkpoints.record(newest[0])["sha256"]
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
    if not inside:
        time.sleep(draw.uniform(0, 0.2))
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
    steps = [re.search(r"saved at step (\d+)", err) for _, err in ends]
    assert all(steps) and len({step[1] for step in steps if step}) == 1, ends
    tally.terms += 1
    tally.slowest_term = max(tally.slowest_term, time.monotonic() - began)


def torment(case: Case, kills: int, terms: int, place: Path, seed: int = 0) -> Tally:
    """Disturbs trainings of a case until all kills and terms are done, and finishes the last.

    Args:
      case: to run.
      kills: SIGKILLs of a running training; of several processes, of one of them.
      terms: SIGTERMs.
      place: folder to work in.
      seed: of what is random here.
    """
    tally, draw = Tally(), random.Random(seed)
    peace = Training(case, place / f"{case.name}-undisturbed", place)
    try:
        peace.start()
        assert {status for status, _ in peace.wait()} == {0}
    finally:
        peace.stop()
    expected = outcome(peace.workdir)
    while tally.kills < kills or tally.terms < terms:
        training = Training(case, place / f"{case.name}-{tally.trainings}", place)
        try:
            while not (training.workdir / "results.json").is_file():
                left = ["kill"] * (kills - tally.kills) + ["term"] * (terms - tally.terms)
                if left:
                    disturb(training, tally, draw.choice(left), draw)
                else:
                    training.start()
                ends = training.wait()
                assert all(status == 0 for status, _ in ends), ends
        finally:
            training.stop()
        tally.trainings += 1
        found = outcome(training.workdir)
        different = [name for name in expected if found.get(name) != expected[name]]
        assert not different and found.keys() == expected.keys(), (training.workdir, different)
        tally.equal += 1
        print(
            f"{case.name}: {tally.kills} kills, {tally.terms} terms, {tally.equal} equal",
            flush=True,
        )
    return tally


class Damage:
    """What came of damaged checkpoints."""

    def __init__(self) -> None:
        self.checkpoints = self.fell_back = self.unharmed = self.silent = 0


def swap(first: Path, second: Path) -> None:
    """Exchanges the contents of two files."""
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def flip(path: Path, draw: random.Random) -> None:
    """Changes one bit."""
    content = bytearray(path.read_bytes() or b"\0")
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, draw: random.Random) -> None:
    """Cuts the end off."""
    os.truncate(path, draw.randrange(max(1, path.stat().st_size)))


def corrupt(count: int, place: Path, seed: int = 0) -> Damage:
    """Damages a file of the newest of three steps, again and again, and restores.

    Whatever is restored has to be, to the bit, what was saved at the step it says it is.

    Args:
      count: of damaged checkpoints.
      place: folder to work in.
      seed: of what is random here.
    """
    import logging

    import jax

    from tests.train.test_checkpoint import assert_same, like, state_at, write

    logging.getLogger("mnv2_jax").setLevel(logging.ERROR)
    found, draw = Damage(), random.Random(seed)
    whole, broken = place / "whole", place / "broken"
    write(whole, [0.5, None, None], keep=3)
    newest = [
        path.relative_to(whole) for path in sorted((whole / "3").rglob("*")) if path.is_file()
    ]
    wanted = like(state_at(1))
    for number in range(count):
        shutil.copytree(whole, broken)
        path = broken / newest[number % len(newest)]
        how = draw.choice(("flip", "flip", "truncate", "delete", "swap", "empty"))
        if how == "flip":
            flip(path, draw)
        elif how == "truncate":
            truncate(path, draw)
        elif how == "swap":  # with another file of this step, or the same of an older one
            other = newest[draw.randrange(len(newest))]
            older = broken / "1" / path.relative_to(broken / "3")
            swap(path, older if draw.random() < 0.5 and older.is_file() else broken / other)
        elif how == "empty":
            path.write_bytes(b"")
        else:
            path.unlink()
        checkpoints = Checkpoints(broken, keep=3)
        restored = checkpoints.restore(wanted)
        assert restored is not None
        checkpoints.close()
        step = int(restored.state.step)
        try:
            assert_same(restored.state, state_at(step))
            assert restored.extra == {"seconds": step / 3}
        except AssertionError:
            found.silent += 1
        found.checkpoints += 1
        found.unharmed += step == 3
        found.fell_back += step < 3
        shutil.rmtree(broken)
        if number % 100 == 99:
            print(f"{number + 1} damaged checkpoints, {found.silent} silent", flush=True)
            jax.clear_caches()
    return found


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
        "--config.checkpoint_minutes=0", "--config.log_every=2", "--config.steps=60",
    )  # fmt: skip
    tallies, began = {}, time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        damage = corrupt(arguments.damaged, Path(place), arguments.seed)
        for case, count in cases("experiments/ablate_linear.py", overrides):
            kills = arguments.across if count == "across" else arguments.kills // 2
            terms = -(-arguments.terms // 3)
            tallies[case.name] = torment(case, kills, terms, Path(place), arguments.seed)
    write_report(arguments.report, tallies, damage, time.monotonic() - began)


def write_report(
    folder: Path | None, tallies: dict[str, Tally], damage: Damage, seconds: float
) -> None:
    """Prints the report, and writes it with the versions it was made with."""
    from mnv2_jax.markdown import markdown_table
    from mnv2_jax.train.report import environment

    header = {
        "": "", "SIGKILLs": "kills", "inside a save": "inside_saves", "SIGTERMs": "terms",
        "trainings": "trainings", "bit-identical": "equal",
        "slowest exit after SIGTERM (s)": "slowest_term",
        "slowest exit of the other process (s)": "slowest_peer",
    }  # fmt: skip
    rows = [
        [name, *(f"{getattr(t, key):.3g}" for key in header.values() if key)]
        for name, t in tallies.items()
    ]
    text = (
        "# Killed at random, and the same to the bit\n\n"
        f"`python -m tests.chaos {' '.join(sys.argv[1:])}`, {seconds / 60:.0f} minutes. "
        f"{', '.join(f'{k} {v}' for k, v in environment().items())}.\n\n"
        "Compared with an undisturbed training: losses and all other rows of the logs, parameters, "
        "batch statistics, moving averages, optimizer, saved model and final report.\n\n"
        f"{markdown_table(header, rows)}\n\n"
        f"Of {damage.checkpoints} checkpoints with a damaged file in the newest step (bits, ends, "
        f"whole files, files exchanged), {damage.fell_back} fell back to an older step, "
        f"{damage.unharmed} came back whole in spite of it, and {damage.silent} came back wrong.\n"
    )
    print(text)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text(text)
        content = {name: vars(tally) for name, tally in tallies.items()} | {"damage": vars(damage)}
        (folder / "results.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
