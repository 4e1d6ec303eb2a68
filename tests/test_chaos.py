"""The short form of `make chaos`: 20 SIGKILLs, half of them inside a save, and 6 SIGTERMs."""

import json

import pytest

from mnv2_jax.lab.train.log import read_rows
from mnv2_jax.lab.verify import verify
from tests.chaos import KILLED, PATIENCE, Training, cases, corrupt, torment
from tests.damage import corrupt_files

# Orbax leaves the other reads of a step to themselves when one fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = '''"""A sweep of one thin block on the digits, with averaged weights."""

from tests.lab.train.setting import tiny


def get_config():
    config = tiny(steps=24, seeds=(0,))
    config.checkpoint_minutes = 0.0  # after every step, or every third of several hosts
    config.keep_checkpoints = 3
    return config
'''


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(1800)  # starved of processor time it takes minutes
@pytest.mark.parametrize(
    ("name", "kills", "terms"),
    [
        pytest.param("jit", 9, 2, marks=pytest.mark.nightly),
        pytest.param("pmap", 7, 2, marks=pytest.mark.nightly),
        pytest.param("two_hosts", 4, 1, marks=pytest.mark.nightly),
    ],
)
def test_killed_at_random_is_bit_equal_to_undisturbed(tmp_path, name, kills, terms):
    (tmp_path / "tiny.py").write_text(CONFIG)
    case = next(case for case, _ in cases(str(tmp_path / "tiny.py"), ()) if case.name == name)
    tally = torment(case, kills, terms, tmp_path)
    assert tally.kills == kills and tally.terms == terms
    assert tally.equal == tally.trainings > 0, tally.failed
    # Of two hosts, the one that is left may still finish the save.
    assert tally.inside_saves >= (kills // 3 if case.processes == 1 else 0)
    # How soon a process leaves is the machine's too: the report of the long form has it.
    assert tally.slowest_term > 0


TWINS = CONFIG.replace("steps=24", "steps=8").replace(
    "    return",
    """    with config.unlocked():
        config.sweep.variants.relu6 = config.sweep.variants.linear
    return""",
)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(1800)
def test_of_two_hosts_one_is_killed_and_the_next_start_ends_in_the_same_bits(tmp_path):
    """Both variants are one: the first is killed and goes on, and the second is left in peace."""
    (tmp_path / "tiny.py").write_text(TWINS)
    case = next(case for case, _ in cases(str(tmp_path / "tiny.py"), ()) if case.processes == 2)
    training = Training(case, tmp_path / "run", tmp_path)
    try:
        training.start()
        assert training.wait_until(lambda: training.rows() > 3)
        training.processes[1].kill()
        for process in training.processes:  # what JAX says of a lost host is its own
            process.communicate(timeout=PATIENCE)
        host, victim = (process.returncode for process in training.processes)
        training.processes = []
        assert victim == KILLED and host != 0
        assert not (training.workdir / "linear/seed_0/result.json").exists()
        training.start()
        assert [status for status, _ in training.wait()] == [0, 0]
    finally:
        training.stop()
    found = []
    for seed in (training.workdir / name / "seed_0" for name in ("linear", "relu6")):
        result = json.loads((seed / "result.json").read_text())
        log = read_rows(seed / "metrics.jsonl")
        found.append([result["metrics"], log, (seed / "model.safetensors").read_bytes()])
    assert found[0] == found[1]
    assert not [found for found in verify(training.workdir) if found.problem]


@pytest.mark.slow
@pytest.mark.nightly
def test_damaged_checkpoints_never_come_back_wrong(tmp_path):
    found = corrupt(30, tmp_path)
    assert found.checkpoints == 30 and found.silent == 0
    assert found.fell_back >= 5  # damage to what is not read does no harm


@pytest.mark.slow
def test_damaged_files_of_a_run_are_never_passed_over(tmp_path):
    done, silent = corrupt_files(60, tmp_path)
    assert done > 50 and silent == 0
