"""The command line in processes of its own: trained to the end, interrupted, killed, resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mnv2_jax.lab.verify import verify

ROOT = Path(__file__).parents[1]
CONFIG = '''"""A sweep of one thin block on the digits."""

from tests.lab.train.setting import tiny


def get_config():
    config = tiny(steps=12, seeds=(0, 1))
    with config.unlocked():
        del config.sweep.variants["relu6"]
        config.sweep.claim = ()
    config.checkpoint_minutes = 0.0  # after every step
    config.keep_checkpoints = 3
    return config
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the experiment, and the compiled programs that all tests here share."""
    folder = tmp_path_factory.mktemp("end_to_end")
    (folder / "tiny.py").write_text(CONFIG)
    return folder


def environment(place):
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    return ours | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(place / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_NUM_CPU_DEVICES": "2",
        "NPROC": "2",
        "PYTHONPATH": str(ROOT),
    }


def start(place, workdir, *more, cwd=ROOT):
    command = [sys.executable, str(ROOT / "main.py"), "--config", str(place / "tiny.py")]
    return subprocess.Popen(
        [*command, "--workdir", str(workdir), "--quiet", *more],
        env=environment(place), cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process, status=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err[-3000:]
    assert "Traceback" not in err, err
    return out, err


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def outcome(workdir):
    """Everything a training leaves but the time it took."""
    results = json.loads((workdir / "results.json").read_text())
    for runs in results["runs"].values():
        for run in runs:
            del run["seconds"]
    found = {"metric": results["metric"], "runs": results["runs"]}
    for seed in sorted(workdir.glob("*/seed_*")):
        name = f"{seed.parent.name}/{seed.name}"
        found[f"{name} model"] = (seed / "model.safetensors").read_bytes()
        found[f"{name} rows"] = rows(seed / "metrics.jsonl")
    return found


def leftovers(workdir):
    return [p for p in workdir.rglob("*") if "tmp" in p.name or "partial" in p.name]


def wait_for(workdir, step, process, seed="linear/seed_0"):
    """Waits until a seed's log has come to a step."""
    log = workdir / seed / "metrics.jsonl"
    while process.poll() is None:
        if log.is_file() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(place):
    """Also in a folder that is given from where the command is run."""
    workdir = place / "relative/run"
    out, _ = finish(start(place, "relative/run", cwd=place))
    assert "top-1 accuracy" in out.lower() and str(workdir) in out
    assert not leftovers(workdir)
    return outcome(workdir)


@pytest.mark.slow
def test_interrupted_and_killed_is_bit_equal_to_undisturbed(place, undisturbed):
    """SIGTERM, then SIGKILL, each followed by the same command."""
    workdir = place / "interrupted"
    process = start(place, workdir)
    wait_for(workdir, 6, process)
    process.send_signal(signal.SIGTERM)
    _, err = finish(process, 143)
    assert len(err.strip().splitlines()) == 1 and err.startswith("mnv2: ")
    process = start(place, workdir)
    wait_for(workdir, 4, process, "linear/seed_1")
    finished = (workdir / "linear/seed_0/result.json").stat().st_mtime_ns
    process.kill()
    process.communicate()
    finish(start(place, workdir))
    assert (workdir / "linear/seed_0/result.json").stat().st_mtime_ns == finished
    assert outcome(workdir) == undisturbed
    assert not leftovers(workdir)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_damaged_checkpoint_is_one_warning_and_all_damaged_one_line(place, undisturbed):
    workdir = place / "damaged"
    process = start(place, workdir)
    wait_for(workdir, 10, process)
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    (saved,) = (workdir / "linear").glob("checkpoints_*")

    def flip(step):
        files = [p for p in step.rglob("*") if p.is_file()]
        largest = max(files, key=lambda p: p.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 8
        largest.write_bytes(content)

    steps = sorted(saved.iterdir(), key=lambda p: int(p.name))
    kept = {step: {p: p.read_bytes() for p in step.rglob("*") if p.is_file()} for step in steps}
    for step in steps:
        flip(step)
    _, err = finish(start(place, workdir), 2)
    assert err.strip().splitlines()[-1].startswith("mnv2: no checkpoint in")
    for files in list(kept.values())[:-1]:
        for path, content in files.items():
            path.write_bytes(content)
    _, err = finish(start(place, workdir))
    assert len(err.strip().splitlines()) == 1, err
    assert f"step {steps[-1].name}" in err and "cannot be used" in err
    assert outcome(workdir) == undisturbed


@pytest.mark.slow
def test_a_mistake_is_one_line_at_once(place, tmp_path):
    process = start(place, tmp_path / "new", "--config.optimizer.schedule=cosin")
    out, err = finish(process, 2)
    assert not out and len(err.splitlines()) == 1
    assert err.startswith("mnv2: unknown optimizer.schedule 'cosin': did you mean 'cosine'?")
    assert not (tmp_path / "new").exists()


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [200, 600])
def test_a_full_disk_is_one_line_and_earlier_steps_are_sound(place, kilobytes):
    """On a file system of that size; 200 are full before, 600 after the first checkpoints."""
    disk = place / f"disk_{kilobytes}"
    disk.mkdir()
    size = f"size={kilobytes}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        _, err = finish(start(place, disk / "run"), 2)
        assert len(err.strip().splitlines()) == 1, err
        assert "No space left" in err or "RESOURCE_EXHAUSTED" in err
        saved = [f for f in verify(disk / "run") if f.what.startswith("checkpoint")]
        assert len(saved) >= (1 if kilobytes > 300 else 0)
        assert not any(found.problem for found in saved)
    finally:
        subprocess.run(["umount", disk], check=True)
