"""Damages files of checkpoints at random, and restores."""

import logging
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax

from mnv2_jax.lab.train.checkpoint import Checkpoints, Progress
from tests.lab.train.test_checkpoint import assert_same, like, state_at, write


@dataclass
class Damage:
    """What came of damaged checkpoints."""

    checkpoints: int = 0
    fell_back: int = 0
    unharmed: int = 0
    refused: int = 0
    silent: int = 0


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
    return found
