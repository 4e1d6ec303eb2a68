"""The report as a reader and a browser meet it."""

import json
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mnv2_jax.lab.cli import main
from mnv2_jax.lab.paper import figure_7, section_5_1, tables
from mnv2_jax.lab.paper.content import Sources
from mnv2_jax.lab.paper.page import inline
from mnv2_jax.lab.paper.report import ITEMS, write_paper
from mnv2_jax.lab.paper.results import find
from mnv2_jax.lab.train.report import spread
from mnv2_jax.models.build import build
from tests.lab.paper.sweeps import fake_bytes, write_sweep

ROOT = Path(__file__).resolve().parents[3]
# What the paper has with numbers in it: seven tables, and the figures that are no drawings.
PAPER = {
    *(f"table-{i}" for i in range(1, 8)), "fig-1", "fig-5", "fig-6a", "fig-6b", "fig-7", "sec-5.1",
}  # fmt: skip
VOID = {"meta", "link", "br", "use"}


class Page(HTMLParser):
    """Checks that elements nest, and collects what a browser would act on."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.used = [], [], [], set(), []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self._see(tag, dict(attributes))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._see(tag, dict(attributes))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def _see(self, tag, attributes):
        self.tags.add(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        for name in ("href", "src", "xlink:href", "data", "action"):
            if name in attributes:
                self.links.append(attributes[name])
        self.used += re.findall(r"url\(#([^)]+)\)", " ".join(v or "" for v in attributes.values()))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report of everything but what takes compiling, from two ablations and nothing else."""
    tmp = tmp_path_factory.mktemp("paper")
    write_sweep(tmp / "runs", "ablate_linear", logs=True)
    write_sweep(tmp / "runs", "tradeoff")
    keys = sorted(PAPER - {"fig-5", "fig-7", "sec-5.1", "table-7"})
    lines = []
    files = write_paper(
        tmp / "out", Sources((tmp / "runs",)), keys, "python main.py paper", lines.append
    )
    return files, lines


def test_all_items_are_there_in_order():
    assert {item.key for item in ITEMS} == PAPER
    assert [i.key for i in ITEMS if i.key.startswith("table")][:3] == [
        "table-1", "table-2", "table-3",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_page_parses_and_needs_nothing_else(written):
    files, lines = written
    text = files[0].read_text()
    page = Page(text)
    assert len(lines) == len(PAPER) - 4
    assert set(page.ids) >= PAPER - {"fig-5", "fig-7", "sec-5.1", "table-7"}
    assert len(page.ids) == len(set(page.ids))
    inside = [link[1:] for link in page.links if link.startswith("#")]
    assert set(inside) | set(page.used) <= set(page.ids)
    outside = [link for link in page.links if not link.startswith("#")]
    assert set(outside) <= {"data:,"} | {
        f"https://arxiv.org/abs/{n}" for n in ("1801.04381", "1704.04861", "1707.01083")
    }
    assert set(re.findall(r"(?:https?:)?//[\w.]+\.\w+", text)) == {"https://arxiv.org"}
    assert not page.tags & {"script", "iframe", "object", "embed", "img"}
    assert "@import" not in text and "@font-face" not in text
    # Colours come from the page, so that dark and light both show them.
    assert (
        "currentColor" in text
        and "var(--c0)" in text
        and "#0072b2;" not in text.split("</style>")[1]
    )


def test_markdown_has_its_pictures_beside_it(written):
    files, _ = written
    text = files[1].read_text()
    named = set(re.findall(r"\]\(([\w.-]+\.png)\)", text))
    assert named == {file.name for file in files[2:]} >= {"fig-1.png", "fig-6a.png"}
    for file in files[2:]:
        assert file.read_bytes().startswith(b"\x89PNG")
    assert text.count("\n## ") == len(PAPER) - 4


def test_what_is_missing_shows_its_command(written):
    for file in written[0][:2]:
        text = re.sub("<[^>]+>", "", file.read_text())
        for name in ("ablate_shortcut", "imagenet", "detect_coco", "detect_scenes"):
            assert f"python main.py --config experiments/{name}.py" in text
        assert "96.0 ± 1.0" in text  # and what is there shows its result


def test_discrepancies_stand_where_they_occur(written):
    text = written[0][0].read_text()
    sections = dict(re.findall(r'<section id="([\w.-]+)">(.*?)</section>', text, re.DOTALL))
    for key, words in {
        "table-2": ("19 bottleneck layers", "sum to 17"),
        "table-3": ("next</em> stage", "g = 2"),
        "table-4": ("6.9 M", "6.06 M", "6.11 M"),
        "table-5": ("0.35 B", "0.178 B"),
    }.items():
        note = " ".join(re.findall(r'<p class="note">(.*?)</p>', sections[key]))
        assert all(word in note for word in words), key


REFRESH = "python main.py paper --out results/paper --runs results --model MODEL"


@pytest.mark.parametrize(
    "name",
    ["ablate_linear", "ablate_shortcut", "tradeoff", "ablate_ssdlite", "detect_scenes",
     "ablate_output_stride", "segment_scenes"],
)  # fmt: skip
def test_the_committed_page_has_the_committed_results(name):
    text = (ROOT / "results" / "paper" / "report.md").read_text()
    for result in find((ROOT / "results",), name):
        for variant, scores in result.scores.items():
            assert f"| {spread(scores)} |" in text, f"{name}, {variant}: {REFRESH}"


@pytest.mark.slow
def test_the_same_inputs_give_the_same_page(tmp_path):
    write_sweep(tmp_path / "runs", "ablate_linear", logs=True)
    texts = []
    for name in ("a", "b"):
        files = write_paper(tmp_path / name, Sources((tmp_path / "runs",)), ["fig-6a"])
        texts.append([file.read_bytes() for file in files])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table-8"], "unknown item 'table-8': did you mean 'table-"),
        (["--runs", "no/such"], "--runs 'no/such' is not a folder"),
        (["--model", "no/such"], "--model 'no/such' is not a folder"),
        (["table-1", "--out", "/dev/null/x"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert main(["paper", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_the_verb_prints_paths(tmp_path, capsys):
    assert main(["paper", "table-1", "--out", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"files": [str(tmp_path / n) for n in ("report.html", "report.md")]}
    assert "Table 1" in err
    assert main(["paper", "table-1", "--out", str(tmp_path), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_cell_cannot_break_the_page():
    assert inline("<b>&</b> [x](https://arxiv.org/abs/1)") == (
        '&lt;b&gt;&amp;&lt;/b&gt; <a href="https://arxiv.org/abs/1">x</a>'
    )
    assert inline("[x](javascript:alert)") == "[x](javascript:alert)"


@pytest.mark.nightly
@pytest.mark.slow
def test_everything_at_once(tmp_path, monkeypatch):
    """With thin networks for what is compiled or traced at many sizes: every item and picture."""
    monkeypatch.setattr(section_5_1, "temporary_bytes", fake_bytes)
    monkeypatch.setattr(figure_7, "build", partial(build, spec="tiny_8"))
    monkeypatch.setattr(figure_7, "SMALL", 16)
    monkeypatch.setattr(tables, "multiscale_madds", lambda stride, aspp: 1)
    files = write_paper(tmp_path, Sources())
    page = Page(files[0].read_text())
    assert set(page.ids) >= PAPER
    assert {file.stem for file in files[2:]} >= {"fig-1", "fig-5", "fig-7", "sec-5.1"}
