"""Parts of the loop that a short training does not show."""

from types import SimpleNamespace

import numpy as np
import pytest

from mnv2_jax.lab.train.loop import IN_FLIGHT, Asks, Clock, Window, _log_window
from mnv2_jax.lab.train.run import SAVE, STOP


class Log:
    """Keeps what is written."""

    def __init__(self):
        self.rows = []

    def write(self, step, split, values):
        self.rows.append((step, split, values))


def metrics(loss, asked=0):
    return {
        "sums": {"loss": (np.float32(loss), np.float32(1))},
        "gradient_norm": np.float32(1),
        "skipped": np.int32(0),
        "skipped_in_a_row": np.int32(0),
        "asked": np.int32(asked),
    }


@pytest.mark.parametrize(
    ("losses", "noted"),
    [([1.0, 1.9, 1.0], []), ([1.0, 2.5, 2.6], [1]), ([0.0, 3.0], []), ([1.0, np.nan, 5.0], [])],
)
def test_a_loss_that_jumps_is_noted_in_its_row(losses, noted):
    log, window = Log(), Window()
    session = SimpleNamespace(
        run=SimpleNamespace(replicas=1, schedule=lambda step: 0.1),
        config=SimpleNamespace(stop_after_skipped=9),
        window=window,
        bar=SimpleNamespace(set_postfix_str=lambda *_, **__: None),
        logs=[log],
    )
    for step, loss in enumerate(losses):
        window.add(metrics(loss))
        _log_window(session, step)
    assert [i for i, (_, _, row) in enumerate(log.rows) if "note" in row] == noted
    assert all("asked" not in row for _, _, row in log.rows)


def test_what_is_asked_is_known_a_few_steps_later_or_when_all_are_waited_for():
    window = Window()
    for step in range(5):
        window.add(metrics(1.0, STOP if step >= 1 else 0))
        assert window.asked == (STOP if step >= 1 + IN_FLIGHT else 0)
    window = Window()
    window.add(metrics(1.0, SAVE))
    window.sums()
    assert window.asked == SAVE


def test_a_host_asks_to_save_by_the_clock_and_to_stop_on_a_signal():
    assert Asks(Clock(0.0), 1e6)() == 0
    hurried = Asks(Clock(0.0), -1.0)
    assert hurried() == SAVE
    hurried.stop.number = 15
    assert hurried() == SAVE | STOP
