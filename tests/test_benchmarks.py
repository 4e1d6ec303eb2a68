"""The benchmarks run, at the smallest size: what they measure is not for tests."""

import importlib
import json
import sys

import pytest

from benchmarks import harness
from benchmarks.harness import Contender, compare

SMOKE = [
    ("infer_gpu", "--batches 2 --size 32 --rounds 1 --copy 8 --forms|mnv2_jax folded"),
    ("train_gpu", "--batches 2 --size 32 --rounds 1 --copy 8 --forms|mnv2_jax"),
    ("detect_cpu", "--batches 1 --size 64 --rounds 1 --threads 1"),
    ("segment_cpu", "--batches 1 --size 65 --rounds 1 --threads 1"),
    ("memory", "--sizes 32 --splits 6 --rounds 1"),
    ("input_pipeline", "--images 8 --batch 4 --rounds 1"),
    ("scaling", "--axes batch --rounds 1"),
    ("guard", "--cases tiny --rounds 1"),
    ("fit_photos", "--pictures 6 --files 50"),
    ("profile_cpu", "--repeats 1 --what|training, tiny"),
]
TINY = {"batch": 4, "size": 8, "width": 1.0, "spec": "tiny_8", "classes": 10}


@pytest.mark.nightly
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("imagenet_cost", "--images-per-second 100"),
        *(pytest.param(*case, marks=pytest.mark.nightly) for case in SMOKE),
    ],
)
def test_a_script_writes_its_report(monkeypatch, tmp_path, name, words):
    """Those for a GPU too, on what there is."""
    script = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    front, _, last = words.partition("|")
    monkeypatch.setattr(sys, "argv", [name, *front.split(), *([last] if last else [])])
    if name == "train_gpu":
        monkeypatch.setattr(script, "NETWORK", {"width": 1.0, "spec": "tiny_8", "classes": 10})
    if name == "scaling":
        monkeypatch.setattr(script, "BASE", {**script.BASE, "size": 32, "width": 0.1})
        monkeypatch.setattr(script, "AXES", {"batch": (1,)})
    script.main()
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert report["tables"] and "| " in (tmp_path / f"{name}.md").read_text()
