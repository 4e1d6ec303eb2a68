"""The page of an evaluation: its numbers against numpy, and names as texts."""

import html.parser
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from mnv2_jax import UsageError, build
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.data import ArraySource
from mnv2_jax.lab.evaluation_report import Answers, answers, calibration, wilson, write_report
from mnv2_jax.lab.model_folder import load_model, save_model
from mnv2_jax.lab.predict import evaluate, predict
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
    scores, given = answers(model, source)
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
def test_the_page_holds_all_and_loads_nothing(folder, source, tmp_path):
    names = ("<script>alert(1)</script>", *NAMES[1:])
    model = load_model(folder)._replace(classes=names)
    label = np.array([0] * 4 + [1] * 5)
    predicted = np.array([0, 0, 1, 1, 1, 1, 1, 1, 2])
    own = np.where(label == predicted, 0.9, 0.04)
    given = Answers(label, predicted, own, np.full(9, 0.9))
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "split": "train", "loss": 2.0, "accuracy": 0.5}\n'
        '{"step": 1, "split": "eval", "loss": 1.0, "accuracy": 0.25}\n'
    )
    facts, found = {"Data": "<b>here</b>"}, ({"accuracy": 6 / 9}, given)
    choices = [("batch_size", 8, "<i>as it is</i>")]
    write_report(tmp_path / "r.html", model, source, facts, folder, choices, found)
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert not {"script", "iframe", "object", "i"} & set(page.tags)
    assert page.tags.count("img") == 6  # three mistakes, each with its map
    loaded = [v for name, v in page.values if name in ("src", "href")]
    assert all(v.startswith(("data:", "#")) for v in loaded) and "url(http" not in text
    assert not [name for name, _ in page.values if name.startswith("on")]
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


def test_only_classifiers_have_the_page(folder, source):
    model = load_model(folder)
    other = model._replace(task=model.task._replace(name="segment", noun="segmenter"))
    with pytest.raises(UsageError, match="--report needs a classifier"):
        answers(other, source)
