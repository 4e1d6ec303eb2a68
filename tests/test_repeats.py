"""The repetitions that show what the protocol is worth: docs/repeats.py."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from docs import repeats
from tests.lab.train.setting import tiny


@pytest.mark.nightly
def test_a_variant_is_seldom_told_apart_from_itself():
    scores = np.random.default_rng(3).normal(0.95, 0.01, 160)
    outcomes = repeats.against_itself(scores, [8, 16, 32, 64], 0.01)
    assert sum(outcomes.values()) == repeats.TIMES
    wrong = (outcomes["confirmed"] + outcomes["refuted"]) / repeats.TIMES
    assert wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / repeats.TIMES)


@pytest.mark.nightly
def test_repetitions_have_seeds_of_their_own_and_are_counted(tmp_path, monkeypatch):
    def get_config():
        return tiny(steps=2, sweep={"looks": (2,), "delta": 0.99})

    monkeypatch.setattr(
        repeats, "ablate_linear", SimpleNamespace(get_config=get_config, __name__="a")
    )
    monkeypatch.setattr(repeats, "TIMES", 20)
    found = [repeats.repeat(number, tmp_path) for number in range(2)]
    folders = sorted(str(f.relative_to(tmp_path)) for f in tmp_path.glob("*/linear/seed_*"))
    assert folders == [f"{i:02}/linear/seed_{2 * i + j}" for i in range(2) for j in range(2)]
    text, numbers = repeats.report(found)
    counts = [repetition["decision"]["outcome"] for repetition in numbers["repetitions"]]
    assert f"{counts.count(counts[0])} {counts[0]}" in text
    assert "of 20 pairs of groups drawn from its 4 trainings" in text
