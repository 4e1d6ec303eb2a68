"""Damages files of checkpoints and runs at random, and restores, verifies and goes on."""

import logging
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax

from mnv2_jax import UsageError
from mnv2_jax.lab.train import sweep
from mnv2_jax.lab.train.checkpoint import Checkpoints, Progress
from mnv2_jax.lab.train.lock import Lock
from mnv2_jax.lab.verify import verify
from tests.lab.train.fabricated import configuration, fabricate
from tests.lab.train.test_checkpoint import assert_same, like, state_at, write


@dataclass
class Damage:
    """What came of damaged checkpoints."""

    checkpoints: int = 0
    fell_back: int = 0
    unharmed: int = 0
    refused: int = 0
    silent: int = 0
    files: int = 0
    files_silent: int = 0


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


def inflict(path: Path, draw: random.Random, others: list[Path]) -> str:
    """Damages a file in one of several ways; returns which."""
    how = draw.choice(("flip", "flip", "truncate", "delete", "swap", "empty"))
    if how == "flip":
        flip(path, draw)
    elif how == "truncate":
        truncate(path, draw)
    elif how == "swap":
        swap(path, draw.choice(others))
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    return how


def corrupt_files(count: int, place: Path, seed: int = 0) -> tuple[int, int]:
    """Damages a small file of a finished sweep, again and again, and asks for what it finds.

    `verify` has to name it, and a start has to refuse in one line, or to finish a seed again; what
    is written anew at every start, the report, it may pass over.

    Returns:
      How many files were damaged, and how often that went unnoticed.
    """
    logging.getLogger("mnv2_jax").setLevel(logging.CRITICAL)
    whole, draw, silent, done = fabricate(place / "files"), random.Random(seed), 0, 0
    small = [p for p in whole.rglob("*") if p.is_file() and "checkpoints_" not in str(p)]
    small = sorted(path.relative_to(whole) for path in small)
    for number in range(count):
        broken = place / "broken_files"
        shutil.copytree(whole, broken, ignore=shutil.ignore_patterns("checkpoints_*"))
        path = broken / small[number % len(small)]
        before = path.read_bytes()
        others = [broken / other for other in small if other.suffix == path.suffix]
        how = inflict(path, draw, others)
        if path.exists() and path.read_bytes() == before:
            shutil.rmtree(broken)
            continue  # exchanged with itself, or with its like
        done += 1
        try:
            found = any(finding.problem for finding in verify(broken))
        except UsageError:  # without its configuration, it is no folder of a training
            found = path.name == "config.json" and how == "delete"
        try:
            with Lock(broken) as lock:
                again = any(sweep._waiting(configuration(), broken, lock))
        except UsageError as error:
            again = "\n" not in str(error)
        again = (
            again or len(path.relative_to(broken).parts) == 1
        )  # written anew, or known by others
        if not (found and again):
            print(f"{how} {path.relative_to(broken)}: found {found}, again {again}", flush=True)
            silent += 1
        shutil.rmtree(broken)
    return done, silent


def corrupt(count: int, place: Path, seed: int = 0) -> Damage:
    """Damages a file of the newest of three steps, again and again, and restores.

    Whatever is restored has to be, to the bit, what was saved at the step it says it is.

    Args:
      count: of damaged checkpoints.
      place: folder to work in.
      seed: of what is random here.
    """
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
        # Exchanged with another file of this step, or the same of an older one.
        others = [broken / newest[draw.randrange(len(newest))]]
        older = broken / "1" / path.relative_to(broken / "3")
        how = inflict(path, draw, [older] if older.is_file() and draw.random() < 0.5 else others)
        found.checkpoints += 1
        checkpoints = Checkpoints(broken, keep=3)
        try:
            restored = checkpoints.restore(wanted)
            assert restored is not None, "nothing restored"
        except Exception as error:  # two older steps are whole: it should have taken one
            print(f"{how} {path.relative_to(broken)}: {error}", flush=True)
            found.refused += 1
        else:
            step = int(restored.state.step)
            found.unharmed += step == 3
            found.fell_back += step < 3
            try:
                assert_same(restored.state, state_at(step))
                assert restored.progress == Progress(step / 3)
            except AssertionError:
                found.silent += 1
        checkpoints.close()
        shutil.rmtree(broken)
        if number % 100 == 99:
            print(f"{number + 1} damaged checkpoints, {found.silent} silent", flush=True)
            jax.clear_caches()
    found.files, found.files_silent = corrupt_files(count, place, seed)
    return found
