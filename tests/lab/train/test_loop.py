"""Parts of the loop that a short training does not show."""

from types import SimpleNamespace

import numpy as np
import pytest

from mnv2_jax.lab.train.loop import IN_FLIGHT, MetricSums, _log_row


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
