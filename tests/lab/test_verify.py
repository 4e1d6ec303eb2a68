"""What `verify` says of a sound training and of a damaged one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mnv2_jax import UsageError
from mnv2_jax.lab import cli
from mnv2_jax.lab.model_folder import load_model
from mnv2_jax.lab.train.sweep import run_sweep
from mnv2_jax.lab.verify import verify
from tests.lab.train.setting import tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify") / "run"
    config = tiny(steps=6, seeds=(0,), parallel={"devices": 2})
    with config.unlocked():
        del config.sweep.variants["relu6"]
        config.sweep.claim = ()
    run_sweep(config, folder, ["x"], True)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def problems(folder):
    return {found.path: found.problem for found in verify(folder) if found.problem}


@pytest.mark.slow
def test_a_finished_training_is_sound(whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    kinds = [found.what.split()[0] for found in verify(whole)]
    assert problems(whole) == {}
    assert kinds.count("checkpoint") >= 2
    for kind in ("log", "events", "result", "model"):
        assert kinds.count(kind) == 1, kind
    assert cli.main(["verify", str(whole), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == len(kinds) and not any(row["problem"] for row in rows)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.nightly
@pytest.mark.slow
def test_devices_need_not_be_those_of_the_training(whole):
    """The training had two devices; a process without their settings has one."""
    ours = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    command = [sys.executable, "main.py", "verify", str(whole), "--json"]
    done = subprocess.run(command, cwd=ROOT, env=ours, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = {row["path"]: row["problem"] for row in rows if row["what"].startswith("checkpoint")}
    assert len(found) >= 2 and not any(found.values()), found


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def edit(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


DAMAGE = {
    "seed_0/model.safetensors": (flip, "sha256|cannot be read|do not fit"),
    "seed_0/result.json": (lambda p: p.write_text("{"), "cannot be read"),
    "seed_0/metrics.jsonl": (
        lambda p: edit(p, lambda rows: [r for r in rows if '4, "split": "train' not in r]),
        "lacks step 4",
    ),
    "seed_0/metrics.jsonl ": (lambda p: edit(p, lambda rows: rows + rows[-1:]), "twice"),
    "seed_0/metrics.jsonl  ": (lambda p: edit(p, lambda rows: rows[::-1]), "out of order"),
    "seed_0/metrics.jsonl   ": (lambda p: edit(p, lambda rows: [*rows, "{"]), "no row of a log"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGE)
def test_each_damage_is_found_where_it_is(copy, name):
    damage, message = DAMAGE[name]
    path = copy / "linear" / name.strip()
    damage(path)
    found = problems(copy)
    assert list(found) == [f"linear/{name.strip()}"]
    assert any(part in found[f"linear/{name.strip()}"] for part in message.split("|"))


@pytest.mark.slow
def test_damaged_events_and_checkpoints(copy, capsys):
    (events,) = (copy / "linear/seed_0/tensorboard").iterdir()
    flip(events)
    step = max((copy / "linear/checkpoints_0").iterdir(), key=lambda path: int(path.name))
    flip(max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size))
    found = problems(copy)
    assert set(found) == {str(path.relative_to(copy)) for path in (events, step)}
    assert cli.main(["verify", str(copy)]) == cli.EXIT_USAGE
    out, err = capsys.readouterr()
    assert "sound" in out and len(err.splitlines()) == 1 and "2 of" in err


def test_a_run_that_was_killed_may_have_a_cut_row_and_a_cut_event(copy):
    seed = copy / "linear/seed_0"
    (seed / "result.json").unlink()
    log = seed / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + b'{"step": 7, "spl')
    (events,) = (seed / "tensorboard").iterdir()
    events.write_bytes(events.read_bytes()[:-3])
    assert problems(copy) == {"linear/seed_0/result.json": "is missing, and the report has it"}


@pytest.mark.slow
def test_a_signature_inside_the_folder_of_a_model_is_let_be(whole, copy):
    (copy / "linear/seed_0/model.sig").write_text("{}")
    assert problems(copy) == {}
    signed, plain = (load_model(folder / "linear/seed_0") for folder in (copy, whole))
    assert signed.model == plain.model and signed.classes == plain.classes


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not the folder of a training"):
        list(verify(tmp_path))
