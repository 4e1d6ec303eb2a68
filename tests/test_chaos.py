"""The short form of `make chaos`: 20 SIGKILLs, half of them inside a save, and 6 SIGTERMs."""

import pytest

from tests.chaos import cases, corrupt, torment

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
        ("two_hosts", 1, 1),  # the signal reaches one of them, and both leave at the same step
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


@pytest.mark.slow
@pytest.mark.nightly
def test_damaged_checkpoints_never_come_back_wrong(tmp_path):
    found = corrupt(30, tmp_path)
    assert found.checkpoints == 30 and found.silent == 0
    assert found.fell_back >= 5  # damage to what is not read does no harm
