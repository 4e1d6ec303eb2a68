"""The benchmarks run, at the smallest size: what they measure is not for tests."""

import pytest

from benchmarks.harness import Contender, compare

TINY = {"batch": 4, "size": 8, "width": 1.0, "spec": "tiny_8", "classes": 10}


@pytest.mark.slow
def test_contenders_are_timed_in_rounds():
    contenders = [
        Contender("ours", "jax_train", TINY, threads=1, allocator="kept"),
        Contender("plain", "jax_train", {**TINY, "plain": True}, threads=1),
        Contender("folded", "jax_infer", {"batch": 5, "size": 32, "form": "folded"}, threads=1),
    ]
    rows = compare(contenders, rounds=2)
    assert [row["name"] for row in rows] == ["ours", "plain", "folded"]
    assert rows[0]["ratio"] == 1.0
    assert all(0 < row["best_ms"] <= row["median_ms"] for row in rows)
