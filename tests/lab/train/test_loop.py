"""Parts of the loop that a short training does not show."""

import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mnv2_jax.lab.train import loop
from mnv2_jax.lab.train.loop import IN_FLIGHT, HostRequests, MetricSums, _log_row


class Log:
    """Keeps what is written."""

    def __init__(self):
        self.rows = []

    def write(self, step, split, values):
        self.rows.append((step, split, values))


def metrics(loss, skipped_in_a_row=0):
    return {
        "sums": {"loss": (np.float32(loss), np.float32(1))},
        "gradient_norm": np.float32(1),
        "skipped": np.int32(0),
        "skipped_in_a_row": np.int32(skipped_in_a_row),
    }


@pytest.mark.parametrize(
    ("losses", "noted"),
    [([1.0, 1.9, 1.0], []), ([1.0, 2.5, 2.6], [1]), ([0.0, 3.0], []), ([1.0, np.nan, 5.0], [])],
)
def test_a_loss_that_jumps_is_noted_in_its_row(losses, noted):
    log = Log()
    session = SimpleNamespace(
        run=SimpleNamespace(seeds_at_once=1, schedule=lambda step: 0.1),
        config=SimpleNamespace(stop_after_skipped=9),
        sums=MetricSums({}),
        losses=None,
        bar=SimpleNamespace(set_postfix_str=lambda *_, **__: None),
        logs=[log],
    )
    for step, loss in enumerate(losses):
        session.sums.add(metrics(loss))
        _log_row(session, step)
    assert [i for i, (_, _, row) in enumerate(log.rows) if "note" in row] == noted


def test_metrics_are_waited_for_a_few_steps_later_or_when_all_are():
    sums = MetricSums({"loss": [1.0, 1.0]})
    for step in range(5):
        assert sums.add(metrics(1.0, step)) == max(0, step - IN_FLIGHT)
    assert sums.wait()["loss"] == [6.0, 6.0] and sums.wait()["skipped_in_a_row"] == 4
    assert sums.take()["loss"] == [6.0, 6.0] and sums.wait() == {}


def nothing():
    pass


def test_a_host_asks_to_save_by_the_clock_and_to_stop_on_a_signal():
    assert HostRequests(1e6)(1, nothing) == (False, False)
    hurried = HostRequests(-1.0)
    assert hurried(1, nothing) == (True, False)
    hurried.signal = 15
    assert hurried(1, nothing) == (True, True)


def test_hosts_exchange_their_requests_at_steps_that_they_agree_on(monkeypatch):
    """By host 0's clock, here one of 10 ms a step: more and more seldom, until it is a second."""
    clock, exchanged, theirs = [0.0], [], ["[false, false, 9.0]"]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(loop, "gather", lambda own: exchanged.append(step) or [own, *theirs])
    requests, waits = HostRequests(1e6), []
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
    hurried = HostRequests(0.0)  # saves after every step, so exchanges at every step
    for step in range(1000, 1003):
        clock[0] += 0.01
        assert hurried(step, nothing)[0]
