"""Plans of devices, and two hosts on one machine."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mnv2_jax import UsageError
from mnv2_jax.lab.devices.sharding import LAUNCHERS, global_batch, launch, make_plan

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("launcher", "scope", "norm_axis", "step_axis", "groups"),
    [
        ("jit", "global", None, None, 1),
        ("jit", "device", None, None, 4),
        ("shard_map", "global", "batch", "batch", 1),
        ("shard_map", "device", None, "batch", 1),
        ("pmap", "global", "batch", "batch", 1),
        ("pmap", "device", None, "batch", 1),
    ],
)
def test_who_averages_what(launcher, scope, norm_axis, step_axis, groups):
    plan = make_plan(launcher, scope, 4, batch_size=8)
    assert (plan.norm_axis, plan.step_axis, plan.groups) == (norm_axis, step_axis, groups)
    assert plan.mesh.size == 4


@pytest.mark.parametrize(("seeds", "devices"), [(2, 2), (3, 3), (6, 6), (7, 7), (16, 8), (5, 5)])
def test_seeds_take_as_many_devices_as_divide_them(seeds, devices):
    assert make_plan(seeds_at_once=seeds).mesh.size == devices


def test_all_devices_by_default():
    assert make_plan().mesh.size == len(jax.devices()) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": 9}, "parallel.devices is 9, but 8 CPU device"),
        ({"devices": -1}, "parallel.devices is -1"),
        ({"batch_size": 60}, "batch_size is 60, which does not divide over 8 device(s): try 64"),
        ({"batch_size": 1}, "try 8"),
        ({"batch_size": 24, "accumulate": 2}, "8 device(s) × 2 parts: try 3"),
        ({"batch_size": 9, "accumulate": 2, "seeds_at_once": 2}, "1 device(s) × 2 parts"),
        ({"seeds_at_once": 2, "launcher": "pmap"}, "set sweep.at_once to 1"),
        ({"seeds_at_once": 2, "batch_norm": "device"}, "set sweep.at_once to 1"),
    ],
)
def test_impossible_plans_are_refused(arguments, message):
    with pytest.raises(UsageError) as error:
        make_plan(**arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("launcher", sorted(LAUNCHERS))
def test_every_device_gets_its_rows_in_order(launcher):
    plan = make_plan(launcher, devices=4, batch_size=8)

    def step(state, resident, batch, key):
        ids = batch["id"]
        if plan.step_axis is None:
            return state + ids.sum(), {"ids": ids}
        total = jax.lax.psum(ids.sum(), plan.step_axis)
        return state + total, {"ids": jax.lax.all_gather(ids, plan.step_axis, tiled=True)}

    rows = global_batch({"id": np.arange(8, dtype=np.int32)}, plan)
    state = jax.device_put(np.int32(5), plan.state)
    state, metrics = launch(step, plan)(state, {}, rows, jax.random.key(0))
    assert int(state) == 5 + 28
    np.testing.assert_array_equal(metrics["ids"], np.arange(8))


@pytest.mark.parametrize("arguments", [{"launcher": "pmap"}, {"seeds_at_once": 2}])
def test_what_runs_on_one_host_only(monkeypatch, arguments):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UsageError, match="one host"):
        make_plan(**arguments)


TRAINED = """
import itertools
import jax
import numpy as np
from mnv2_jax.lab.train.run import make_run
from tests.lab.train.setting import tiny

def trained(launcher, scope, devices):
    config = tiny(parallel={"launcher": launcher, "batch_norm": scope, "devices": devices},
                  eval_batch_size=50, model={"dropout": 0.0})
    run = make_run(config, 1)
    state = run.fresh(run.keys((0,)))
    resident = jax.device_put(run.train.resident(), run.plan.everywhere)
    for rows in itertools.islice(run.rows((0,), 0), 3):
        state, metrics = run.step(state, resident, rows, run.keys((0,)))
    found = run.evaluate(state.variables) if launcher == "jit" else {}
    scores = [float(value[0]) for _, value in sorted(found.items())]
    return [float(np.asarray(metrics["sums"]["loss"][0])), *scores]
"""
ON_A_HOST = """
import json, sys
import jax
index, port = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, index, initialization_timeout=60)
TRAINED
from mnv2_jax.lab.devices.hosts import HostRequests
print(json.dumps([trained(*combination, 0) for combination in COMBINATIONS]), flush=True)
requests = HostRequests(1e6, lambda: index == 1)  # which only the second is told
print(json.dumps(requests(1, lambda: None)), flush=True)
"""


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.timeout(1200)  # starved of processor time it takes minutes
@pytest.mark.parametrize(
    "combinations",
    [
        (("jit", "global"),),
        pytest.param((("jit", "device"), ("shard_map", "device")), marks=pytest.mark.nightly),
    ],
)
def test_two_hosts_of_two_devices_train_as_one_of_four(tmp_path, combinations):
    """And leave together when one of them is told to stop."""
    script = tmp_path / "hosts.py"
    code = ON_A_HOST.replace("TRAINED", TRAINED).replace("COMBINATIONS", repr(combinations))
    script.write_text(code)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    both = [
        subprocess.Popen(
            [sys.executable, str(script), str(i), port], env=environment, text=True, cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        here: dict = {}
        exec(TRAINED, here)  # of four devices in this process meanwhile
        expected = [here["trained"](*combination, 4) for combination in combinations]
        outputs = [process.communicate(timeout=540) for process in both]
    finally:  # one that waits for a peer in vain would outlive the tests
        for process in both:
            process.kill()
            process.communicate()
    assert [process.returncode for process in both] == [0, 0], outputs[0][1][-2000:]
    for out, _ in outputs:
        found, told = map(json.loads, out.strip().splitlines()[-2:])
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4)
        assert told == [False, True]
