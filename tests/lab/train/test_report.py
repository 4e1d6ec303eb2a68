"""The wording of verdicts, and the report's numbers."""

import json
import math
import os
import shutil
from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from mnv2_jax import account, build
from mnv2_jax.lab.train.decision import decide, sign_flip
from mnv2_jax.lab.train.log import RunLog, read_rows, rows_before
from mnv2_jax.lab.train.report import (
    cautions,
    measured,
    plot_differences,
    report_text,
    verdict,
    write_report,
)
from tests.events import scalars
from tests.lab.train.setting import tiny


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.91] * 7 + [0.93], "+11.2 points [+11.0, +12.0], n = 8, p = 0.0078: **confirmed**."),
        ([0.69] * 7 + [0.71], "-10.8 points [-11.0, -10.0], n = 8, p = 0.0078: **refuted**."),
        ([0.8] * 6 + [0.799, 0.801], "n = 8, p = 1: **equivalent** (p = 1.1e-10)."),
        ([0.7, 0.9] * 4, "p = 1: **undecided**; of differences of 14.3 points, so many seeds find"),
        ([0.9], "+10.0 points, n = 1, p = 1: **undecided**."),
    ],
)
def test_a_verdict_says_what_came_out_and_how_sure_that_is(scores, said):
    (decision,) = decide(("a", "b"), {"a": scores, "b": [0.8] * len(scores)}, 0.01)
    assert verdict(decision).startswith("*a* above *b*: ")
    assert said in verdict(decision)


def result(seed, score, skipped=0, **more):
    metrics = {"eval/accuracy": score, **more}
    return {"seed": seed, "steps": 12, "seconds": 10.0, "metrics": metrics, "skipped": skipped}


def write_runs(workdir, config, scores, extra=None):
    """Finished runs as the loop leaves them, with logs; `extra` names further splits."""
    for name, values in scores.items():
        splits = (extra or {}).get(name, ())
        for seed, score in zip(config.sweep.seeds, values, strict=True):
            folder = workdir / name / f"seed_{seed}"
            log = RunLog(folder)
            for step in (0, 6, 12):
                for split in ("eval", *splits):
                    log.write(step, split, {"accuracy": score * step / 12})
            log.close()
            more = {f"{split}/accuracy": 0.9 for split in splits}
            (folder / "result.json").write_text(json.dumps(result(seed, score, **more)))


def test_what_is_likely_to_go_wrong_is_told_and_nothing_else():
    config = {"batch_size": 64, "init.frozen_norm": False}
    assert cautions(config, 0.9, 300, 1437) == []
    assert cautions(config | {"init.frozen_norm": True}, 0.997, 10, 64) == []
    (crowded,) = cautions(config, 0.9, 100, 12)
    assert "batch_size is 64, and there are 12 images" in crowded and "each 533 times" in crowded
    (lagging,) = cautions(config, 0.997, 333, 5000)
    assert "after 333 steps 37% of them are what they began with" in lagging
    assert "Set model.bn_decay to 0.991, or" in lagging
    assert "bn_decay to 0.472" in cautions(config, 0.9, 4, 5000)[0]
    assert cautions(config, 0.997, 1000, 5000) == [] and cautions(config, 0.997, 990, 5000)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"data": "digits", "root": None}, "on the test split of digits"),
        ({"data": "digits"}, "on the test split of digits"),  # of an earlier version
        ({"data": "folder", "root": "photos/cats"}, "on the test split of photos/cats"),
        ({"data": "mnist", "root": "/data/mnist"}, "on the test split of mnist"),
        ({"data": "coco", "root": "~/boxes"}, "on the test split of ~/boxes"),
        ({"data": "folder", "root": "caf\udce9"}, r"on the test split of caf\udce9"),
        ({"data": "folder", "root": "a\nb"}, r"on the test split of a\nb"),
    ],
)
def test_a_report_says_where_the_images_are_not_how_they_lie(setting, said):
    of = {"metric": "accuracy", "split": "test", "steps": 1, "batch_size": 1, "averaged": False}
    assert said in measured(of | setting)


def test_the_report_gives_n_mean_std_and_how_to_repeat_it(tmp_path):
    config = tiny(seeds=(0, 1, 2))
    scores = {"linear": [0.9, 0.8, 0.85], "relu6": [0.7, 0.71, 0.75]}
    write_runs(tmp_path, config, scores)
    for name in scores:
        options = {"spec": "one_block", "num_classes": 10, "in_channels": 1}
        description = {
            "model": options,
            "resolution": 8,
            "classes": [],
            "train_images": 7,
            "eval_images": 1000,
        }
        (tmp_path / name / "seed_0/config.json").write_text(json.dumps(description))
    command = ["python", "main.py", "--config", "a b.py"]
    text = write_report(tmp_path, config, command).read_text()
    rows = {
        cells[0]: cells
        for line in text.splitlines()
        if line.startswith("|") and len(cells := [c.strip() for c in line.strip("|").split("|")])
    }
    assert rows["linear"][1:4] == ["3", "85.0", "5.0"] and rows["linear"][4] == "reference"
    low, high = 100 * np.array(stats.ttest_rel(*scores.values()).confidence_interval())
    assert rows["relu6"][1:4] == ["3", "72.0", "2.6"]
    assert rows["relu6"][4] == f"-13.0 points [{-high:+.1f}, {-low:+.1f}]"
    assert rows["relu6"][5] == "30 s"
    for part in ("'a b.py'", "seeds: 0, 1, 2", "versions: ", "device: ", "after 12 steps of 16"):
        assert part in text
    assert "skipped" not in text and "averaged" not in text
    assert text.count("- note: batch_size is 16, and there are 7 images to train on: 12 steps") == 1
    assert (
        text.count("- note: batch norm's running statistics decay by 0.997 a step: after 12") == 1
    )
    # What was measured is in the results as values, and the report is made of them alone.
    results = json.loads((tmp_path / "results.json").read_text())
    model = build(spec="one_block", num_classes=10, in_channels=1)
    cost = account(model, (1, 8, 8, 1))
    network = results["setting"]["networks"]["relu6"]
    assert (network["params"], network["madds"]) == (cost.params, cost.madds)
    assert f"- linear, relu6: {cost.params:,} parameters and {cost.madds:,} multiply-adds" in text
    assert "at 8×8; 7 training images, 1,000 for evaluation" in text
    assert results["config"]["model.spec"] == "one_block"
    assert report_text(results) == text
    assert "learning rates" not in text
    results["config"]["sweep.variants.relu6.optimizer.learning_rate"] = 0.05
    assert "\n- learning rates: linear 0.1, relu6 0.05\n" in report_text(results)
    results["runs"]["linear"][0]["skipped"] = 4
    assert "\n- 4 steps were not finite" in report_text(results)


@pytest.mark.parametrize(
    ("planned", "seeds", "tested", "so_far"),
    [
        (16, 4, "all looks (after 4, 8, 16 seeds)", "seeds: 0, 1, 2, 3 so far, of up to 16"),
        (4, 4, None, None),  # the looks that were not to come share nothing
    ],
)
def test_an_early_look_says_that_more_are_to_come(tmp_path, planned, seeds, tested, so_far):
    sweep = {"claim": ("linear", "relu6"), "looks": (4, 8)}
    config, early = (tiny(seeds=tuple(range(n)), sweep=sweep) for n in (planned, seeds))
    write_runs(tmp_path, early, {"linear": [0.9, 0.8, 0.7, 0.8], "relu6": [0.8, 0.9, 0.8, 0.75]})
    text = write_report(tmp_path, config, ["python"], seeds).read_text()
    assert ("all looks" in text, "so far" in text) == (bool(tested), bool(so_far))
    assert (tested or "") in text and (so_far or "") in text and "**undecided**" in text


@pytest.mark.parametrize(
    ("splits", "metric"),
    [
        ({"linear": (), "relu6": ()}, "eval/accuracy"),
        ({"linear": ("eval_ema",), "relu6": ("eval_ema",)}, "eval_ema/accuracy"),
        ({"linear": ("eval_ema",), "relu6": ()}, "eval/accuracy"),
    ],
)
def test_averaged_weights_are_compared_where_all_have_them(tmp_path, splits, metric):
    config = tiny()
    write_runs(tmp_path, config, {"linear": [0.5, 0.6], "relu6": [0.6, 0.7]}, splits)
    text = write_report(tmp_path, config, ("c",)).read_text()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["metric"] == metric
    assert ("averaged weights" in text) == metric.startswith("eval_ema")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [run["seed"] for run in results["runs"]["linear"]] == [0, 1]


def overlap(a, b):
    """Whether two boxes of a picture share more than a pixel."""
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1


@pytest.mark.parametrize("strips", [1, 2, 6])
def test_differences_are_drawn_as_they_are_tested_and_nothing_overlaps(tmp_path, strips):
    rng = np.random.default_rng(strips)
    scores = {f"variant_{'abcdefg'[i] * 9}": rng.uniform(0.5, 0.9, 7) for i in range(strips + 1)}
    claim = list(scores)
    figure = Figure(figsize=(3.4, max(4.2, 1 + 0.9 * strips)), layout="constrained")
    ax = figure.subplots()
    plot_differences(ax, decide(claim, scores, 0.02), scores, 0.02)
    figure.savefig(tmp_path / "strips.png")  # which lays it out
    boxes = [text.get_window_extent() for text in ax.texts]
    for row, (a, b) in enumerate(pairwise(claim)):
        dots = [line for line in ax.lines if len(line.get_xdata()) == 7][row]
        np.testing.assert_allclose(dots.get_xdata(), 100 * (scores[a] - scores[b]))
        bar = ax.containers[row]
        assert math.isclose(bar.lines[0].get_xdata()[0], 100 * np.mean(scores[a] - scores[b]))
        interval = 100 * np.array(sign_flip(scores[a] - scores[b])[1:])
        np.testing.assert_allclose(bar.lines[2][0].get_segments()[0][:, 0], interval)
        assert ax.texts[row].get_text() == f"{a}\n− {b}".replace("_", " ")
        boxes += [dots.get_window_extent(), bar.lines[2][0].get_window_extent()]
    boxes += [ax.title.get_window_extent(), ax.xaxis.label.get_window_extent()]
    assert not any(overlap(a, b) for a, b in combinations(boxes, 2))
    band = ax.collections[0].get_paths()[0].get_extents()
    np.testing.assert_allclose((band.x0, band.x1), (-2, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "claim", "inches"),
    [((0, 1), ("linear", "relu6"), 9), ((0, 1), (), 7), ((0,), ("linear", "relu6"), 7)],
)
def test_differences_stand_beside_the_curves_where_there_are_any(tmp_path, seeds, claim, inches):
    config = tiny(seeds=seeds, sweep={"claim": claim})
    scores = {"linear": [0.5, 0.6][: len(seeds)], "relu6": [0.6, 0.9][: len(seeds)]}
    write_runs(tmp_path, config, scores)
    write_report(tmp_path, config, ("c",))
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width == 150 * inches


@pytest.mark.parametrize("damage", ["none", "changed", "deleted", "another's"])
def test_a_log_is_written_anew_from_what_its_checkpoint_knows(tmp_path, damage):
    log, other = RunLog(tmp_path / "run"), RunLog(tmp_path / "other")
    for step in (0, 2, 4):
        log.write(step, "train", {"loss": float(step)})
    other.write(0, "train", {"loss": 9.0})
    known = json.loads(json.dumps(log.rows))  # as a checkpoint keeps them
    log.write(6, "train", {"loss": 6.0})
    log.close()
    other.close()
    path = tmp_path / "run/metrics.jsonl"
    if damage == "changed":
        path.write_text(path.read_text().replace("2.0", "3.0"))
    elif damage == "deleted":
        shutil.rmtree(path.parent)
    elif damage == "another's":
        shutil.copytree(tmp_path / "other", path.parent, dirs_exist_ok=True)
    again = RunLog(path.parent, known)
    again.write(6, "train", {"loss": 60.0})
    again.close()
    again.close()  # does nothing
    expected = [(0, 0.0), (2, 2.0), (4, 4.0), (6, 60.0)]
    assert [(r["step"], r["loss"]) for r in read_rows(path)] == expected
    found = scalars(path.parent / "tensorboard")
    assert found == {("train/loss", step): loss for step, loss in expected}
    assert len(again.events()) == 1
    RunLog(path.parent).close()  # no checkpoint: everything is done again
    assert read_rows(path) == [] and scalars(path.parent / "tensorboard") == {}


@pytest.mark.parametrize("due", [False, True])
def test_a_checkpoint_of_the_first_release_knows_no_rows(tmp_path, due):
    """A signal came inside an evaluation, and the next attempt was killed right after it."""
    log = RunLog(tmp_path)
    for step, split in ((3, "train"), (3, "eval"), (3, "eval_ema"), (4, "train")):
        log.write(step, split, {"loss": 1.0})
    log.close()
    kept = [row["split"] for _, row in rows_before(tmp_path / "metrics.jsonl", 3, due)]
    assert kept == (["train"] if due else ["train", "eval", "eval_ema"])


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\0", b"[1]\n", b'{"step": 1}\n', b'{"step": "x", "split": 3}', b"\xff{"]
)
def test_what_is_no_row_ends_a_log(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0, "split": "train"}\n' + content)
    assert [row["step"] for row in read_rows(path)] == [0]
    path.unlink()
    assert read_rows(path) == []
    os.mkfifo(path)
    assert read_rows(path) == []


def test_rows_are_json_also_where_numbers_are_not_finite(tmp_path):
    log = RunLog(tmp_path)
    log.write(1, "train", {"loss": math.nan, "norm": math.inf, "skipped": 3})
    log.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    row = json.loads(line, parse_constant=refuse)
    assert row == {"step": 1, "split": "train", "loss": None, "norm": None, "skipped": 3}
