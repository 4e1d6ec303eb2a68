"""A training goes on with the same bits and examples on other processes and devices."""

import itertools
import json
import sys

import pytest

from tests.processes import environment, finish, free_port, spawn

BATCH, STEPS = 16, 5
TOPOLOGIES = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 4), (4, 1)]

SCRIPT = """
import hashlib, json, sys
from pathlib import Path
import jax
index, hosts, _, port, folder = sys.argv[1:]
index, hosts = int(index), int(hosts)
if hosts > 1:
    jax.distributed.initialize(f"localhost:{port}", hosts, index, initialization_timeout=120)
import itertools
import numpy as np
from mnv2_jax.lab.train.checkpoint import Checkpoints, Progress, fingerprints
from mnv2_jax.lab.train.run import make_run
from tests.lab.train.setting import tiny
run = make_run(tiny(seeds=(3,)), 1)
keys = run.keys((3,))
checkpoints = Checkpoints(Path(folder), 2)
like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=run.plan.state),
    jax.eval_shape(run.fresh, keys),
)
found = checkpoints.restore(like)
if found is None:
    state = run.fresh(keys)
    checkpoints.save(state, Progress(1.0))
    checkpoints.wait()
else:
    state = found.state
ids = []
for rows in itertools.islice(run.rows((3,), 40), STEPS):
    shards = sorted(rows["id"].addressable_shards, key=lambda shard: shard.index[0].start or 0)
    ids.append([np.asarray(shard.data).tolist() for shard in shards])
prints = json.dumps(fingerprints(state), sort_keys=True)
print(json.dumps({"state": hashlib.sha256(prints.encode()).hexdigest(), "ids": ids}), flush=True)
checkpoints.close()
""".replace("STEPS", str(STEPS))


def start(place, hosts, devices):
    """What each host of a topology restores and reads."""
    script, port = place / "topology.py", str(free_port())
    script.write_text(SCRIPT)
    places = [str(devices), port, str(place / "saved")]
    env = environment(place, devices)
    processes = [
        spawn([sys.executable, str(script), str(i), str(hosts), *places], env) for i in range(hosts)
    ]
    found = finish(processes)
    assert [status for *_, status in found] == [0] * hosts, [err[-1500:] for _, err, _ in found]
    return [json.loads(out.strip().splitlines()[-1]) for out, *_ in found]


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "topologies", [[(2, 2)], pytest.param(TOPOLOGIES, marks=pytest.mark.nightly)], ids=str
)
def test_every_topology_restores_the_same_bits_and_takes_the_same_examples(tmp_path, topologies):
    (saved,) = start(tmp_path, 1, 1)
    expected = [step[0] for step in saved["ids"]]
    assert all(len(ids) == BATCH for ids in expected)
    for hosts, devices in topologies:
        found = start(tmp_path, hosts, devices)
        assert {host["state"] for host in found} == {saved["state"]}, (hosts, devices)
        for step in range(STEPS):
            shards = [ids for host in found for ids in host["ids"][step]]
            assert len(shards) == hosts * devices
            assert list(itertools.chain(*shards)) == expected[step], (hosts, devices)
