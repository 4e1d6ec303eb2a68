"""Checkpoints: what comes back is what was saved, whatever happened to the files."""

import gc
import json
import logging
import os
import resource
import shutil
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from mnv2_jax import UsageError
from mnv2_jax.lab.devices.sharding import make_plan
from mnv2_jax.lab.train.checkpoint import Checkpoints, Progress, fingerprints, mute_orbax
from mnv2_jax.lab.train.step import TrainState

# Orbax leaves the other reads of a step to themselves when one fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_at(step, size=50):
    """A state whose every array is random, of several types."""
    rng = np.random.default_rng(step)
    return TrainState(
        step=jnp.int32(step),
        params={"a": {"kernel": jnp.asarray(rng.normal(size=(size, 4)).astype(np.float32))}},
        batch_stats={"a": {"mean": jnp.asarray(rng.normal(size=7).astype(np.float32))}},
        opt_state=(jnp.asarray(rng.normal(size=3)).astype(jnp.bfloat16), {"count": jnp.int32(9)}),
        ema={},
        skipped=jnp.int32(rng.integers(9)),
        skipped_in_a_row=jnp.int32(0),
    )


def like(state):
    place = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)


def assert_same(ours, expected):
    for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def write(folder, scores, keep=2):
    """Saves steps 1, 2, ... with these values of the monitored metric."""
    checkpoints = Checkpoints(folder, keep)
    for step, score in enumerate(scores, 1):
        checkpoints.save(state_at(step), Progress(step / 3), score)
    checkpoints.close()


def read(folder, expected=None):
    checkpoints = Checkpoints(folder, 2)
    try:
        return checkpoints.restore(like(state_at(1) if expected is None else expected))
    finally:
        checkpoints.close()


def test_what_is_saved_comes_back_with_its_types(tmp_path):
    assert read(tmp_path) is None
    write(tmp_path, [0.5])
    found = read(tmp_path)
    assert_same(found.state, state_at(1))
    assert found.progress == Progress(1 / 3)


def test_a_relative_folder_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("here"), [0.5])
    assert_same(read(Path("here")).state, state_at(1))


@pytest.mark.slow
def test_the_latest_and_the_best_are_kept(tmp_path):
    write(tmp_path, [0.1, 0.9, 0.3, None, 0.2, None])
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [2, 5, 6]
    assert_same(read(tmp_path).state, state_at(6))


def test_a_step_that_is_there_is_not_written_again(tmp_path):
    write(tmp_path, [0.5])
    stamp = (tmp_path / "1").stat().st_mtime_ns
    write(tmp_path, [0.7])
    assert (tmp_path / "1").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_saving_does_not_wait_and_the_state_may_be_donated(tmp_path):
    """Every array is overwritten in place while the save still runs."""
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    for _ in range(3):
        shutil.rmtree(tmp_path)
        checkpoints = Checkpoints(tmp_path, 2)
        state = jax.jit(lambda: jax.tree.map(lambda x: x * 1, state_at(1, 500_000)))()
        expected = jax.tree.map(np.array, state)
        checkpoints.save(state, Progress(), None)
        for _ in range(5):
            state = overwrite(state)
        jax.block_until_ready(state)
        checkpoints.close()
        assert_same(read(tmp_path, expected).state, expected)


def test_what_is_saved_beside_it_may_change_at_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    sums = {"loss": [1.0, 2.0]}
    checkpoints.save(state_at(1), Progress(sums=sums), None)
    sums["loss"] = [9.0, 9.0]
    sums["more"] = [0.0, 0.0]
    checkpoints.close()
    assert read(tmp_path).progress == Progress(sums={"loss": [1.0, 2.0]})


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


DAMAGE = {
    "a flipped bit": lambda path: path.write_bytes(flip(path.read_bytes())),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "deleted": lambda path: path.unlink(),
}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "whole"
    write(folder, [0.5, 0.7])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    ["a flipped bit", *(pytest.param(d, marks=pytest.mark.nightly) for d in [*DAMAGE][1:])],
)
def test_damage_is_never_silent(two_steps, tmp_path, caplog, damage):
    """Whichever file of the newest step it hits: that step comes back whole, or the one before."""
    whole = shutil.copytree(two_steps, tmp_path / "whole")
    harmful = []
    for file in [p for p in (whole / "2").rglob("*") if p.is_file()]:
        content = file.read_bytes()
        DAMAGE[damage](file)
        checkpoints = Checkpoints(whole, keep=0)  # which removes nothing
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mnv2_jax"):
            found = checkpoints.restore(like(state_at(1)))
        checkpoints.close()
        step = int(found.state.step)
        assert_same(found.state, state_at(step))
        assert found.progress == Progress(step / 3)
        warnings = [r.getMessage() for r in caplog.records if r.name.startswith("mnv2_jax")]
        assert len(warnings) == (step == 1), (file, warnings)
        assert all("step 2" in text and "\n" not in text for text in warnings)
        harmful += [file] * (step == 1)
        file.write_bytes(content)
    assert len(harmful) >= 3
    DAMAGE[damage](harmful[0])
    assert int(read(whole).state.step) == 1
    checkpoints = Checkpoints(whole, 2)  # and the damaged one is out of the way of the next save
    checkpoints.save(state_at(2), Progress(2 / 3), None)
    checkpoints.close()
    assert_same(read(whole).state, state_at(2))


@pytest.mark.slow
def test_array_data_that_orbax_reads_without_complaint_is_told_from_what_was_saved(tmp_path):
    """A step whose values were exchanged for others of the same shapes: only the hash can tell."""
    write(tmp_path / "a", [0.5, 0.7])
    other = Checkpoints(tmp_path / "b", 2)
    other.save(state_at(7), Progress(), None)
    other.close()
    shutil.rmtree(tmp_path / "a" / "2" / "state")
    shutil.copytree(tmp_path / "b" / "7" / "state", tmp_path / "a" / "2" / "state")
    assert int(read(tmp_path / "a").state.step) == 1


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "record/metadata", "state/_METADATA"])
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkfifo, "is not a regular file"),  # Orbax would wait for ever
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),  # and read for ever
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 40), "bytes"),
    ],
)
def test_what_is_no_file_is_refused_before_orbax_opens_it(two_steps, tmp_path, name, make, why):
    shutil.copytree(two_steps, tmp_path / "run")
    path = next((tmp_path / "run").glob(f"*/{name}"))
    path.unlink()
    make(path)
    for keep in (0, 2):
        with pytest.raises(UsageError, match=rf"{name} .*{why}.* remove that step"):
            Checkpoints(tmp_path / "run", keep)


@pytest.mark.slow
def test_all_damaged_is_one_line_and_nothing_is_removed(tmp_path):
    write(tmp_path, [0.5, 0.7])
    for step in ("1", "2"):
        shutil.rmtree(tmp_path / step / "state")
    with pytest.raises(
        UsageError, match=r"no checkpoint in .* can be used \(step 2: .*step 1: "
    ) as e:
        read(tmp_path)
    assert "\n" not in str(e.value) and "--workdir" in str(e.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.replace(params={"a": {"kernel": jnp.zeros((50, 5))}}),
        lambda s: s.replace(params={"b": s.params["a"]}),
        lambda s: s.replace(batch_stats={}),
        lambda s: s.replace(batch_stats={"a": {"mean": s.batch_stats["a"]["mean"].astype("f2")}}),
        lambda s: s.replace(opt_state=(*s.opt_state, jnp.zeros(3))),
    ],
)
def test_a_state_of_another_shape_key_or_type_is_refused(tmp_path, change):
    write(tmp_path, [0.5])
    with pytest.raises(UsageError, match="no checkpoint in") as error:
        read(tmp_path, change(state_at(1)))
    assert "\n" not in str(error.value)


def test_an_interrupted_save_leaves_no_trace(tmp_path):
    write(tmp_path, [0.5])
    stray = tmp_path / "2.orbax-checkpoint-tmp-1234"
    (stray / "state").mkdir(parents=True)
    (stray / "state" / "data").write_bytes(b"x" * 1000)
    assert_same(read(tmp_path).state, state_at(1))
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_another_number_of_devices_restores_the_same_bits(tmp_path, devices):
    saved = jax.device_put(state_at(1), make_plan(devices=8).everywhere)
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(saved, Progress(), None)
    checkpoints.close()
    place = make_plan(devices=devices).everywhere
    again = Checkpoints(tmp_path, 2)
    found = again.restore(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), saved)
    )
    again.close()
    assert {leaf.sharding for leaf in jax.tree.leaves(found.state)} == {place}
    assert_same(found.state, state_at(1))


def test_a_disk_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(state_at(1), Progress(), None)
    checkpoints.wait()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(UsageError, match="No space left on device") as error:
        checkpoints.save(state_at(2), Progress(), None)
    assert "\n" not in str(error.value)
    checkpoints.close()
    assert_same(read(tmp_path).state, state_at(1))


def test_writes_that_are_given_up_are_not_told_beside_the_failure(monkeypatch):
    async def write_fragment():
        pass

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with warnings.catch_warnings(record=True) as told:
        warnings.resetwarnings()
        mute_orbax.__wrapped__()
        write_fragment()
        gc.collect()
        warnings.warn("what else", RuntimeWarning, stacklevel=1)
    assert [str(warning.message) for warning in told] == ["what else"]


def test_fingerprints_tell_values_types_and_shapes_apart():
    arrays = [
        np.zeros(4, np.float32), np.ones(4, np.float32), np.zeros(4, np.int32),
        np.zeros((2, 2), np.float32), -np.zeros(4, np.float32),
    ]  # fmt: skip
    prints = [json.dumps(fingerprints({"x": array})) for array in arrays]
    assert len(set(prints)) == len(arrays)
    assert fingerprints({"x": np.zeros(4, np.float32)}) == json.loads(prints[0])


def steps_in(folder):
    """Steps there are, or all names if something else is there too."""
    names = [path.name for path in folder.iterdir()]
    return sorted(map(int, names)) if all(map(str.isdecimal, names)) else names


def until(condition, seconds=30):
    """Waits for what is done in the background."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_many_saves_leave_nothing_behind(tmp_path):
    """Files and memory after 60 saves are those after 20."""
    counts = {}
    checkpoints = Checkpoints(tmp_path, 2)
    state = state_at(0, 100_000)
    for step in range(1, 61):
        checkpoints.save(state.replace(step=jnp.int32(step)), Progress(step / 3), None)
        if step in (20, 60):
            checkpoints.wait()
            until(lambda step=step: steps_in(tmp_path) == [step - 1, step])  # deletions lag behind
            gc.collect()
            # Files of array data differ in number by how a save was grouped; a leak is hundreds.
            files = sum(1 for _ in tmp_path.rglob("*"))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB on Linux, bytes on macOS
            counts[step] = files, len(os.listdir("/dev/fd")), peak
    checkpoints.close()
    assert counts[60][0] <= counts[20][0] + 20
    assert counts[60][1] <= counts[20][1] + 8
    # A leaked state at every save would be 64 MB.
    assert counts[60][2] - counts[20][2] < (4e4 if sys.platform == "linux" else 4e7)
    assert steps_in(tmp_path) == [59, 60]


RELEASE = Path(__file__).parent / "checkpoint_of_0.1.0"


def test_the_checkpoint_of_an_older_release_restores_bit_equal(tmp_path):
    """Written by `write(folder, [0.5, None])` and `state_at` at version 0.1.0."""
    shutil.copytree(RELEASE, tmp_path / "old")
    found = read(tmp_path / "old")
    assert_same(found.state, state_at(2))
    assert found.progress == Progress(2 / 3)


@pytest.mark.slow
def test_what_does_not_fit_is_told_as_a_difference(tmp_path):
    write(tmp_path, [0.5])
    wanted = state_at(1).replace(params={"a": {"kernel": jnp.zeros((50, 5)), "bias": jnp.zeros(5)}})
    with pytest.raises(UsageError) as error:
        read(tmp_path, wanted)
    for part in (
        "-.params['a']['kernel'] float32(50, 4)",
        "+.params['a']['kernel'] float32(50, 5)",
        "+.params['a']['bias'] float32(5,)",
    ):
        assert part in str(error.value)
