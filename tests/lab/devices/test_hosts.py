"""Several hosts: what they compare before the first step, and how they wait for each other."""

import time

import jax
import numpy as np
import pytest

from mnv2_jax import UsageError
from mnv2_jax.lab.devices import hosts as cluster
from tests.processes import MAIN, environment, finish, free_port, spawn

EXPERIMENT = '''"""One thin block on the digits."""

from tests.lab.train.setting import tiny


def get_config():
    return tiny(steps=4, seeds=(0,))
'''


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost:1", 2, None), "belong together"),
        ((None, 2, 0), "belong together"),
        (("localhost", 2, 0), "write ADDRESS:PORT"),
        ((":123", 2, 0), "write ADDRESS:PORT"),
        (("localhost:70000", 2, 0), "write ADDRESS:PORT"),
        (("localhost:1e3", 2, 0), "write ADDRESS:PORT"),
        (("localhost:123", 2, 2), "from 0 to 1"),
        (("localhost:123", 2, -1), "from 0 to 1"),
    ],
)
def test_addresses_that_cannot_be_right(given, message):
    with pytest.raises(UsageError, match=message) as error, cluster.connected(*given):
        pytest.fail("connected")
    assert "\n" not in str(error.value)


def test_a_single_host_waits_for_nobody():
    with cluster.connected():
        assert cluster.gather("mine") == ["mine"]
        cluster.agree({"anything": 1})


def test_what_fails_here_is_raised_here():
    with pytest.raises(UsageError, match="as it was"), cluster.together():
        raise UsageError("as it was")


def nothing():
    pass


def test_a_host_asks_to_save_by_the_clock_and_to_stop_on_a_signal():
    assert cluster.HostRequests(1e6)(1, nothing) == (False, False)
    told = []
    hurried = cluster.HostRequests(-1.0, lambda: bool(told))
    assert hurried(1, nothing) == (True, False)
    told.append(15)
    assert hurried(1, nothing) == (True, True)


def test_hosts_exchange_their_requests_at_steps_that_they_agree_on(monkeypatch):
    """By host 0's clock, here one of 10 ms a step: more and more seldom, until it is a second."""
    clock, exchanged, theirs = [0.0], [], ["[false, false, 9.0]"]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(cluster, "gather", lambda own: exchanged.append(step) or [own, *theirs])
    requests, waits = cluster.HostRequests(1e6), []
    for step in range(1, 300):
        clock[0] += 0.01
        assert requests(step, lambda: waits.append(0)) == (False, False)
    assert exchanged[:6] == [1, 3, 7, 15, 31, 63] and len(waits) == len(exchanged)
    assert max(np.diff(exchanged)) <= 101
    theirs[0] = "[false, true, 9.0]"  # a signal that only the other host got
    answers = []
    while not answers or answers[-1] == (False, False):
        step += 1
        clock[0] += 0.01
        answers.append(requests(step, nothing))
    assert answers[-1] == (False, True) and len(answers) <= 101
    hurried = cluster.HostRequests(0.0)  # saves after every step, so exchanges at every step
    for step in range(1000, 1003):
        clock[0] += 0.01
        assert hurried(step, nothing)[0]


def hosts(place, *commands):
    """Starts the command line for each list of arguments, as hosts of one training."""
    (place / "tiny.py").write_text(EXPERIMENT)
    base = [*MAIN, "--config", str(place / "tiny.py"), "--quiet", "--hosts", "2"]
    base += ["--coordinator", f"localhost:{free_port()}"]
    env = environment(place)
    return [
        (err, status)
        for _, err, status in finish([spawn([*base, *own], env, place) for own in commands])
    ]


def last_line(err):
    assert "Traceback" not in err, err
    return err.strip().splitlines()[-1]


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.parametrize("host", ["0", pytest.param("1", marks=pytest.mark.nightly)])
def test_a_host_that_is_left_alone_says_so(tmp_path, host):
    ((err, status),) = hosts(tmp_path, ["--host", host, "--wait", "2"])
    assert status == 2
    assert f"host {host} of 2" in last_line(err) and "waited 2 s" in last_line(err)


@pytest.mark.multiprocess
@pytest.mark.slow
def test_hosts_that_differ_are_refused_before_the_first_step(tmp_path):
    other = "--config.optimizer.momentum=0.5"
    found = hosts(
        tmp_path, ["--workdir", "w", "--host", "0"], ["--workdir", "w", "--host", "1", other]
    )
    for err, status in found:
        assert status == 2
        assert "optimizer.momentum: 0.9 on host 0, 0.5 on host 1" in last_line(err)
    assert not (tmp_path / "w").exists()


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.slow
def test_hosts_without_a_common_folder_are_refused_before_the_first_step(tmp_path):
    found = hosts(tmp_path, ["--workdir", "a", "--host", "0"], ["--workdir", "b", "--host", "1"])
    for err, status in found:
        assert status == 2
        assert "is not the folder that host 0 made" in last_line(err)
