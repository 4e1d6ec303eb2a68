"""The pages of evaluations: their numbers against numpy, their order, and names as texts."""

import html.parser
import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image

from mnv2_jax import build
from mnv2_jax.lab import evaluation_report
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.data import ArraySource, open_source
from mnv2_jax.lab.data.scenes import Scenes
from mnv2_jax.lab.evaluation_report import classify, detect, segment, write_report
from mnv2_jax.lab.evaluation_report.classify import Answers, calibration, wilson
from mnv2_jax.lab.model_folder import load_model, save_model
from mnv2_jax.lab.predict import Evaluation, evaluate, evaluator, predict
from mnv2_jax.lab.tasks import TASKS
from mnv2_jax.lab.tasks.task import TrainedModel
from mnv2_jax.models.boxes import Detections
from mnv2_jax.models.spec import SPECS, Row, Spec

SPECS["reported"] = Spec(stem=8, stem_stride=2, rows=(Row(2, 8, 1, 2),), last=16)
OPTIONS = {"spec": "reported", "num_classes": 3}
EVIL = "<script>alert(1)<"  # a slash cannot be in the name of a folder
NAMES = (EVIL, 'a"b&c', "*bird* $x `y`")


class Page(html.parser.HTMLParser):
    """The tags and the text of a page; what is not closed or not opened is a fault."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open, self.values = [], "", [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [(name, value) for name, value in attrs if value]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def sound(text):
    """A page that runs nothing, loads nothing and has no tag from a name."""
    page = Page(text)
    assert not {"script", "iframe", "object", "i"} & set(page.tags)
    loaded = [v for name, v in page.values if name in ("src", "href")]
    assert all(v.startswith(("data:", "#")) for v in loaded) and "url(http" not in text
    assert not [name for name, _ in page.values if name.startswith("on")]
    return page


@pytest.fixture(scope="module")
def folder(tmp_path_factory, randomize):
    place = tmp_path_factory.mktemp("report") / "model"
    description = {
        "task": "classify", "model": OPTIONS, "classes": list(NAMES), "resolution": 32,
        "eval": {"crop": "none", "fraction": 1.0},
    }  # fmt: skip
    save_model(place, randomize(build(**OPTIONS), (1, 32, 32, 3)), description)
    return place


@pytest.fixture(scope="module")
def source():
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    return ArraySource(images, np.array([0, 1, 2] * 3), NAMES)


@pytest.mark.slow
def test_answers_are_those_of_predict_and_scores_those_of_evaluate(folder, source):
    model = load_model(folder)
    kept = []
    scores = evaluator(model, watch=classify.watcher(model, kept))(source).scores
    (given,) = kept
    assert scores == evaluate(model, source)
    assert scores["accuracy"] == pytest.approx((given.predicted == given.label).mean())
    pixels = source.arrays()["image"]
    for i, found in enumerate(predict(model, list(pixels), top=3)):
        shares = {c["name"]: c["probability"] for c in found.values["classes"]}
        assert max(shares, key=shares.__getitem__) == NAMES[given.predicted[i]]
        assert given.best[i] == pytest.approx(max(shares.values()), rel=1e-3)
        assert given.own[i] == pytest.approx(shares[NAMES[given.label[i]]], rel=1e-3)


def test_wilson_solves_its_equation():
    for right, n in ((0, 7), (5, 7), (7, 7), (81, 263)):
        for bound in wilson(right, n):
            if 1e-9 < bound < 1 - 1e-9:  # the score test is just rejected there
                distance = (right / n - bound) ** 2
                assert distance == pytest.approx(1.959964**2 * bound * (1 - bound) / n)
    assert wilson(0, 0) == (0, 1) and wilson(0, 7)[0] == 0 and wilson(7, 7)[1] == 1


def test_calibration_is_the_sum_over_bins():
    rng = np.random.default_rng(0)
    sure, right = rng.uniform(0.2, 1, 500), rng.random(500) < 0.6
    edges, expected = np.linspace(0, 1, 11), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (sure > low) & (sure <= high)
        expected += abs((right[inside] - sure[inside]).sum()) / 500
    rows, error = calibration(sure, right)
    assert error == pytest.approx(expected) and sum(n for n, *_ in rows) == 500


@pytest.mark.slow
def test_the_page_holds_all_and_loads_nothing(folder, source, tmp_path, monkeypatch):
    names = ("<script>alert(1)</script>", *NAMES[1:])
    model = load_model(folder)._replace(classes=names)
    label = np.array([0] * 4 + [1] * 5)
    predicted = np.array([0, 0, 1, 1, 1, 1, 1, 1, 2])
    own = np.where(label == predicted, 0.9, 0.04)
    given = Answers(label, predicted, own, np.full(9, 0.9))
    found = Evaluation({"accuracy": 6 / 9}, [], {})
    monkeypatch.setattr(evaluation_report, "evaluator", lambda *_, **__: lambda _: found)
    monkeypatch.setattr(classify, "watcher", lambda _, kept: kept.append(given))
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "split": "train", "loss": 2.0, "accuracy": 0.5}\n'
        '{"step": 1, "split": "eval", "loss": 1.0, "accuracy": 0.25}\n'
    )
    facts = {"Data": "<b>here</b>"}
    choices = [("batch_size", 8, "<i>as it is</i>")]
    write_report(tmp_path / "r.html", model, source, facts, folder, choices)
    text = (tmp_path / "r.html").read_text()
    page = sound(text)
    assert page.tags.count("img") == 6  # three mistakes, each with its map
    for name in (*names, "Data: <b>here</b>", "<i>as it is</i>"):
        assert name in page.text
    assert f"{names[0]} 4.0%" in page.text.replace("\n", " ")
    rows = re.findall(r"<tr><td>(.*?)</tr>", text)
    cells = [re.sub("<[^>]*>", "|", row).split("||") for row in rows]
    recall = {row[0]: row for row in cells if len(row) == 6}
    first = recall["&lt;script&gt;alert(1)&lt;/script&gt;"]
    assert first[1:3] == ["4", "50.0%"] and first[4:] == ["2", "100.0%|"]
    assert recall["a&quot;b&amp;c"][1:3] == ["5", "80.0%"]
    assert recall["*bird* $x `y`"][1:] == ["0", "–", "–", "1", "0.0%|"]
    assert "66.7% of 9 images" in page.text


@pytest.mark.slow
def test_the_command_reads_folders_with_any_name(folder, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in NAMES:
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 256, (40, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "val" / name / f"<u>{i}.png")
    (tmp_path / "data" / "val" / EVIL / "notes.txt").write_text("")
    out = tmp_path / "new" / "report.html"
    words = ["evaluate", "--model", str(folder), "--data", "folder", "--split", "val"]
    words += ["--root", str(tmp_path / "data"), "--report"]
    assert main([*words, str(out)]) == 0
    assert "accuracy" in capsys.readouterr().out
    page = Page(out.read_text())
    assert ".txt files" in page.text and f"{EVIL}/<u>" in page.text
    assert main([*words, str(tmp_path)]) == 2  # a folder


def trained(task):
    options = {"output_stride": 2} if task == "segment" else {}
    network = TASKS[task].build(num_classes=3, spec="reported", **options)
    return TrainedModel(TASKS[task], network, {}, ("a", "b", "c"), 32, {})


@pytest.mark.slow
def test_the_worst_pictures_of_a_detector_have_the_smallest_share_of_right():
    objects = {
        0: [((0.0, 0.0, 0.5, 0.5), 0)],  # found
        1: [((0.0, 0.0, 0.5, 0.5), 0), ((0.5, 0.5, 1.0, 1.0), 1)],  # one found, one misnamed
        2: [((0.0, 0.0, 0.5, 0.5), 2), ((0.5, 0.0, 1.0, 1.0), -3)],  # not sure; in a crowd of b
        3: [((0.0, 0.0, 0.5, 0.5), 2)],  # twice, and another class
        4: [((0.0, 0.0, 1.0, 1.0), 2)],  # a masked row
    }
    found = {
        0: [((0.0, 0.0, 0.5, 0.45), 0, 0.9)],
        1: [((0.0, 0.0, 0.5, 0.5), 0, 0.9), ((0.5, 0.5, 1.0, 1.0), 2, 0.8)],
        2: [((0.6, 0.1, 0.8, 0.3), 1, 0.9), ((0.0, 0.0, 0.5, 0.5), 2, 0.29)],
        3: [((0, 0, 0.5, 0.5), 2, 0.9), ((0, 0, 0.5, 0.5), 2, 0.5), ((0, 0, 0.5, 0.5), 1, 0.4)],
        4: [],
    }
    rows = {
        "boxes": np.zeros((5, 2, 4), np.float32), "classes": np.full((5, 2), -1, np.int32),
        "mask": np.array([1, 1, 1, 1, 0], np.float32),
    }  # fmt: skip
    boxes, scores = np.zeros((5, 3, 4), np.float32), np.zeros((5, 3), np.float32)
    classes = np.full((5, 3), -1, np.int32)
    for i in range(5):
        for k, (box, kind) in enumerate(objects[i]):
            rows["boxes"][i, k], rows["classes"][i, k] = box, kind
        for k, (box, kind, score) in enumerate(found[i]):
            boxes[i, k], classes[i, k], scores[i, k] = box, kind, score
    kept = []
    watch = detect.watcher(trained("detect"), kept)
    watch(rows, Detections(boxes, scores, classes, classes >= 0))
    assert [(case.number, case.rank) for case in kept] == [
        (2, (0, -1)), (1, (1 / 3, -2)), (3, (1 / 3, -2))
    ]  # fmt: skip
    assert [[(b.kind, b.label) for b in case.shown] for case in kept] == [
        [("true", "c")],
        [("true", "a"), ("true", "b"), ("right", "a 0.90"), ("wrong", "c 0.80")],
        [("true", "c"), ("right", "c 0.90"), ("wrong", "c 0.50"), ("wrong", "b 0.40")],
    ]
    watch(rows | {"mask": np.ones(5)}, Detections(boxes, scores, classes, classes >= 0))
    assert [case.number for case in kept] == [2, 6, 8, 1, 3, 5, 7]  # over batches


def test_the_worst_pictures_of_a_segmenter_have_the_smallest_mean_iou():
    rng = np.random.default_rng(0)
    label, answer = rng.integers(0, 3, (2, 6, 8, 8))
    label[1:3], answer[1] = np.where(label[1:3] == 1, 255, label[1:3]), label[1]
    label[5] = 255  # nothing can be wrong
    kept = []
    segment.watcher(trained("segment"), kept)({"label": label, "mask": np.ones(6)}, answer)
    expected = {}
    for i in (0, 2, 3, 4):
        pairs = [(t, p) for t, p in zip(label[i].flat, answer[i].flat, strict=True) if t != 255]
        counts = [
            (sum(t == p == c for t, p in pairs), sum(c in pair for pair in pairs)) for c in range(3)
        ]
        expected[i] = np.mean([both / either for both, either in counts if either])
    assert {case.number: case.rank[0] for case in kept} == pytest.approx(expected)
    assert [case.rank for case in kept] == sorted(case.rank for case in kept)


@pytest.mark.slow
@pytest.mark.parametrize("task", [pytest.param("detect", marks=pytest.mark.nightly), "segment"])
def test_evaluate_scores_classes_draws_examples_and_writes_the_page(
    task, tmp_path, randomize, monkeypatch, capsys
):
    scenes = Scenes(open_source("fashion_mnist_small", "test"), 5, (32, 32), max_objects=2)
    names = ["<script>alert(1)</script>", *TASKS[task].classes(scenes)[1:]]
    scenes.classes = scenes.pixel_classes = tuple(names)
    options = {"num_classes": len(names), "spec": "reported"}
    options |= {"output_stride": 2, "channels": 8} if task == "segment" else {}
    description = {
        "task": task, "model": options, "classes": names, "resolution": 32,
        "eval": {"crop": "none"},
    }  # fmt: skip
    variables = randomize(TASKS[task].build(**options), (1, 32, 32, 3))
    save_model(tmp_path / "model", variables, description)
    monkeypatch.setattr("mnv2_jax.lab.data.open_source", lambda *_: scenes)
    words = ["evaluate", "--model", str(tmp_path / "model"), "--data", "scenes"]
    words += ["--report", str(tmp_path / "r.html"), "--examples", str(tmp_path / "e.png")]
    assert main([*words, "--out", str(tmp_path), *["--json"] * (task == "detect")]) == 0
    # Five scenes in rows of four, what is annotated above what is predicted.
    with Image.open(tmp_path / "e.png") as sheet:
        assert sheet.size == (4 * 192 + 3 * 4, 4 * 192 + 3 * 4)

    found, out = json.loads((tmp_path / "evaluation.json").read_text()), capsys.readouterr().out
    assert [row["class"] for row in found["classes"]] == names
    records, page = [scenes[i] for i in range(5)], sound((tmp_path / "r.html").read_text())
    score, part, field = ("ap", "objects", "classes")
    if task == "segment":
        score, part, field = ("iou", "share", "label")
    counts = np.sum([[np.sum(r[field] == c) for c in range(len(names))] for r in records], 0)
    counts = counts / (counts.sum() if task == "segment" else 1)
    assert [row[part] for row in found["classes"]] == pytest.approx(counts.tolist())
    scored = [row[score] for row in found["classes"] if row[score] is not None]
    assert np.mean(scored) == pytest.approx(found["scores"][TASKS[task].monitor])
    assert all(name in page.text for name in names)
    if task == "detect":
        assert json.loads(out) == {"images": 5, **found["scores"], "classes": found["classes"]}
        assert page.tags.count("img") == 5 and ("class", "true") in page.values
        curves = [v for _, v in page.values if v.startswith("precision over recall: ")]
        assert len(curves) == np.count_nonzero(counts)
    else:
        assert f"{names[0]}   {counts[0]:.4f}" in out and f"{counts[0]:.1%}" in page.text
        assert page.tags.count("img") == 15  # each with its labels and the predicted ones
