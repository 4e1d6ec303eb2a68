"""A run that the release before began goes on under this one, to the same numbers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mnv2_jax import UsageError
from mnv2_jax.lab.train.finish import finish
from mnv2_jax.lab.train.log import read_rows
from mnv2_jax.lab.train.record import RIGHT
from mnv2_jax.lab.train.sweep import run_sweep
from mnv2_jax.lab.verify import verify
from tests.events import scalars
from tests.lab.train.setting import tiny

RUN = Path(__file__).parent / "run_of_0.1.0"
"""Stopped by SIGTERM at step 8 of the second of two seeds, at version 0.1.0 and jaxlib 0.12.

`golden.jsonl` is that seed's log in a run of the same code that was left alone.
"""


def configuration(**changes):
    """The configuration of the run; keys that came later have the values that they had then."""
    changes = {"keep_checkpoints": 1, "parallel": {"devices": 1}, **changes}
    config = tiny("old", steps=12, seeds=(0, 1), **changes)
    with config.unlocked():
        del config.sweep.variants["relu6"]
        config.sweep.claim = ()
    return config


@pytest.fixture
def copy(tmp_path):
    configuration()  # which brings the network that the models have
    ignored = shutil.ignore_patterns("golden.jsonl")
    return shutil.copytree(RUN, tmp_path / "run", ignore=ignored)


@pytest.mark.slow
def test_it_is_sound(copy):
    found = list(verify(copy))
    assert not [f for f in found if f.problem]
    assert {f.what.split()[0] for f in found} >= {"checkpoint", "log", "events", "result", "model"}


@pytest.mark.slow
def test_it_goes_on_to_its_golden_losses(copy):
    finished = copy / "linear/seed_0"
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    run_sweep(configuration(), copy, ("c",), quiet=True)
    after = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert after.pop(finished / RIGHT) and after == before  # which is made of the model
    found, expected = (
        read_rows(path) for path in (copy / "linear/seed_1/metrics.jsonl", RUN / "golden.jsonl")
    )
    assert [(r["step"], r["split"]) for r in found] == [(r["step"], r["split"]) for r in expected]
    for ours, theirs in zip(found, expected, strict=True):
        names = sorted(theirs.keys() - {"split"})
        values = [[row[name] for name in names] for row in (ours, theirs)]
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5, err_msg=str(theirs))
    assert found[:9] == expected[:9]  # what was there stays as it was
    events = scalars(copy / "linear/seed_1/tensorboard")
    assert {step for _, step in events} == {row["step"] for row in expected}
    result = json.loads((copy / "linear/seed_1/result.json").read_text())
    assert result["seed"] == 1 and result["steps"] == 12 and "seal" in result
    assert not [f for f in verify(copy) if f.problem]
    run_sweep(configuration(), copy, ("c",), quiet=True)  # nothing is left to do


def test_another_configuration_is_refused(copy):
    with pytest.raises(UsageError, match=r"optimizer.momentum: 0.9 -> 0.5"):
        run_sweep(configuration(optimizer={"momentum": 0.5}), copy, ("c",), quiet=True)


@pytest.mark.slow
def test_damage_to_it_is_found_as_far_as_it_kept_hashes(copy):
    model = copy / "linear/seed_0/model.safetensors"
    content = bytearray(model.read_bytes())
    content[-3] ^= 1
    model.write_bytes(content)
    log = copy / "linear/seed_1/metrics.jsonl"
    kept = [row for row in log.read_text().splitlines() if '"step": 4' not in row]
    log.write_text("\n".join(kept) + "\n")
    found = {f.path: f.problem for f in verify(copy) if f.problem}
    assert set(found) == {str(path.relative_to(copy)) for path in (model, log)}


@pytest.mark.slow
def test_no_models_are_made_of_its_checkpoints(copy):
    with pytest.raises(UsageError, match=r"is of release 0.1.0.*smaller --config.steps"):
        list(finish(copy))
