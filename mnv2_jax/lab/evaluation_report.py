"""An evaluation of a classifier as one HTML page, which needs no other file, network or script."""

import base64
import html
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from mnv2_jax.errors import UsageError
from mnv2_jax.files import write_file
from mnv2_jax.lab.data import Source
from mnv2_jax.lab.data.image import fitted, resize, with_channels
from mnv2_jax.lab.explain import explainer
from mnv2_jax.lab.paper.drawing import COLORS, figure, svg
from mnv2_jax.lab.paper.page import PAGE, STYLE
from mnv2_jax.lab.predict import evaluator
from mnv2_jax.lab.seal import read_json
from mnv2_jax.lab.tasks.draw import enlarge
from mnv2_jax.lab.tasks.task import TrainedModel
from mnv2_jax.lab.train.log import read_rows
from mnv2_jax.lab.train.record import METRICS, RESULT

WORST, PAIRS, BINS = 25, 15, 10
MATRIX = 30  # classes, above which a matrix cannot be read
SIDE = 176  # pixels of a picture
Z = 1.959964  # of a normal distribution, for 95 %
OWN_STYLE = """
svg { min-width: 0; }
h1 { overflow-wrap: anywhere; }
.matrix td, .matrix th { padding: 0.2rem 0.4rem; text-align: right; }
.matrix th:first-child { text-align: left; font-weight: 400; }
.matrix thead th { writing-mode: vertical-rl; rotate: 180deg; text-align: left; font-weight: 400; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr));
  gap: 1.2rem; }
.pictures figure { margin: 0; break-inside: avoid; overflow: hidden; }
.pictures div { display: flex; gap: 4px; }
.pictures img { width: calc(50% - 2px); aspect-ratio: 1; object-fit: contain;
  background: var(--soft); }
figcaption { margin-top: 0.3rem; font-size: 0.88rem; line-height: 1.4; overflow-wrap: anywhere; }
figcaption span { color: var(--faint); }
td { max-width: 24rem; overflow: hidden; text-overflow: ellipsis; }
.why td:last-child { white-space: normal; min-width: 16rem; }
@media (max-width: 40rem) {
  .why td { white-space: normal; overflow-wrap: anywhere; }
  .why td:last-child { min-width: 8rem; }
}
"""
Table = Sequence[Sequence[object]]


class Answers(NamedTuple):
    """What a classifier says of each image of a set."""

    label: np.ndarray  # (n,) the class that is right
    predicted: np.ndarray  # (n,) the likeliest class
    own: np.ndarray  # (n,) the probability of the right one
    best: np.ndarray  # (n,) that of the likeliest


def answers(model: TrainedModel, source: Source) -> tuple[dict[str, float], Answers]:
    """Evaluates a classifier as `predict.evaluate` does; returns the scores and all answers.

    Raises:
      UsageError: the model is no classifier, or does not fit the data.
    """
    if model.task.name != "classify":
        raise UsageError(f"this is a {model.task.noun}; --report needs a classifier.")
    parts: list[Answers] = []

    def watch(rows: Any, outputs: Any) -> None:
        there = np.asarray(rows["mask"]) > 0
        shares = np.asarray(model.task.decode(model.model, outputs, (1, 1)))[there]
        predicted, label = shares.argmax(1), np.asarray(rows["label"])[there]
        if "also" in rows:  # several are right
            hit = (np.asarray(rows["also"])[there] == predicted[:, None]).any(1)
            label = np.where(hit, predicted, label)
        own = np.take_along_axis(shares, label[:, None], 1)[:, 0]
        parts.append(Answers(label, predicted, own, shares.max(1)))

    scores = evaluator(model, watch=watch)(source)
    return scores, Answers(*map(np.concatenate, zip(*parts, strict=True)))


def wilson(right: int, n: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share, `right` of `n` (JASA 22, 1927).

    >>> [round(bound, 4) for bound in wilson(81, 263)]
    [0.2553, 0.3662]
    """
    if not n:
        return 0.0, 1.0
    share, spare = right / n, Z * Z / n
    middle, half = share + spare / 2, Z * (share * (1 - share) / n + spare / 4 / n) ** 0.5
    return max(0.0, (middle - half) / (1 + spare)), min(1.0, (middle + half) / (1 + spare))


def calibration(
    confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], bins: int = BINS
) -> tuple[list[tuple[int, float, float]], float]:
    """Compares confidence with accuracy, in bins of equal width (arXiv 1706.04599, Sec. 2).

    Returns (images, mean confidence, accuracy) for each bin that has any, and the expected
    calibration error: the mean distance of both, weighted by images.

    >>> calibration(np.array([0.95, 0.85, 0.85]), np.array([True, True, False]))
    ([(2, 0.85, 0.5), (1, 0.95, 1.0)], 0.25)
    """
    place = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1)
    inside = [place == i for i in range(bins) if (place == i).any()]
    rows = [(int(m.sum()), float(confidence[m].mean()), float(right[m].mean())) for m in inside]
    return rows, float(sum(n * abs(sure - hit) for n, sure, hit in rows) / len(right))


def write_report(
    path: Path, model: TrainedModel, source: Source, facts: dict[str, str],
    folder: Path | None = None, choices: Table = (), found: Any = None,
) -> dict[str, float]:  # fmt: skip
    """Evaluates a classifier and writes the page; returns the scores.

    Args:
      path: of the page.
      model: a classifier.
      source: what it is evaluated on.
      facts: what the page says of both, such as the data's name and split, and the command.
      folder: of the model; where its training has left a log, it is shown.
      choices: rows of (what, value, reason) of the training.
      found: what `answers` returns, where it is known.
    """
    scores, given = found or answers(model, source)
    right, n = given.label == given.predicted, len(given.label)
    low, high = wilson(int(right.sum()), n)
    said = f"{right.mean():.1%} of {n:,} images are recognized (95 % interval {low:.1%} to "
    intro = [said + f"{high:.1%}, Wilson)."] + [f"{k}: {v}" for k, v in facts.items()]
    sections = {
        "Classes": _classes(model, given), "Confusions": _confusions(model, given),
        "Calibration": _calibration(given.best, right),
        "Worst pictures": _worst(model, source, given), "Left out": _left_out(source),
        "Training": _training(folder, choices),
    }  # fmt: skip
    sections = {title: body for title, body in sections.items() if body}
    links = "".join(f'<li><a href="#s{i}">{t}</a></li>' for i, t in enumerate(sections))
    body = "\n".join(
        f'<section id="s{i}">\n<h2>{title}</h2>\n{body}\n</section>'
        for i, (title, body) in enumerate(sections.items())
    )
    scored = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
    page = PAGE.substitute(
        title="Evaluation of a classifier", style=STYLE + OWN_STYLE, links=links, body=body,
        introduction="".join(f"<p>{html.escape(line)}</p>" for line in intro),
        facts=html.escape(f"{scored}. {model.resolution}×{model.resolution} pixels."),
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page)
    return scores


def _table(header: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "") -> str:
    """A table of texts, whatever is in them, and numbers."""

    def row(tag: str, cells: Sequence[object]) -> str:
        marks = [' class="number"' * (not isinstance(cell, str)) for cell in cells]
        shown = [f"{c:.1%}" if isinstance(c, float) else html.escape(str(c)) for c in cells]
        both = zip(marks, shown, strict=True)
        return "<tr>" + "".join(f"<{tag}{mark}>{text}</{tag}>" for mark, text in both) + "</tr>"

    body = "\n".join(row("td", ["–" if c is None else c for c in cells]) for cells in rows)
    head = f"<thead>{row('th', header)}</thead>\n<tbody>{body}</tbody>"
    return f'<div class="table {kind}"><table>{head}</table></div>'


def _classes(model: TrainedModel, given: Answers) -> str:
    size, rows = model.count_classes(), []
    hits = np.bincount(given.label[given.label == given.predicted], minlength=size).tolist()
    there, said = (np.bincount(v, minlength=size).tolist() for v in (given.label, given.predicted))
    for i in sorted(range(size), key=lambda i: (hits[i] / there[i] if there[i] else 2, i)):
        low, high = wilson(hits[i], there[i])
        recall = (hits[i] / there[i], f"{low:.0%} to {high:.0%}") if there[i] else (None, None)
        precision = hits[i] / said[i] if said[i] else None
        rows.append((model.class_name(i), there[i], *recall, said[i], precision))
    header = ("class", "images", "recall", "95 % interval", "predicted", "precision")
    return _table(header, rows)


def _confusions(model: TrainedModel, given: Answers) -> str:
    both = Counter(zip(given.label.tolist(), given.predicted.tolist(), strict=True))
    wrong = [(pair, times) for pair, times in both.most_common() if pair[0] != pair[1]]
    totals, size = Counter(given.label.tolist()), model.count_classes()
    rows = [
        (model.class_name(a), model.class_name(b), times, times / totals[a])
        for (a, b), times in wrong[:PAIRS]
    ]
    pairs = _table(("class", "taken for", "times", "share of the class"), rows)
    pairs = pairs if wrong else "<p>No class is taken for another.</p>"
    if size > MATRIX:
        return pairs + f"<p>A matrix of {size:,} classes is left out.</p>"
    names = [html.escape(model.class_name(i)) for i in range(size)]
    lines = []
    for a, name in enumerate(names):
        cells = ""
        for b in range(size):
            color = "0 158 115" if a == b else "213 94 0"
            share = both[a, b] / totals[a] if both[a, b] else 0
            cells += f'<td style="background:rgb({color}/{0.75 * share:.2f})">{both[a, b]}</td>'
        lines.append(f"<tr><th>{name}</th>{cells}</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("", *names))
    return (
        f'{pairs}<p class="caption">Rows: what is right. Columns: what is predicted.</p>'
        f'<div class="table matrix"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _calibration(confidence: np.ndarray, right: np.ndarray) -> str:
    rows, error = calibration(confidence, right)
    fig, ((ax,),) = figure(3.6, 3.2)
    ax.plot((0, 1), (0, 1), color=COLORS[5], linewidth=1)
    ax.plot([sure for _, sure, _ in rows], [hit for *_, hit in rows], "o-", color=COLORS[0])
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    header = ("images", "mean confidence", "accuracy", "95 % interval")
    ends = [wilson(round(hit * n), n) for n, _, hit in rows]
    shown = [
        (*row, f"{low:.0%} to {high:.0%}") for row, (low, high) in zip(rows, ends, strict=True)
    ]
    return (
        f"<p>Expected calibration error: {error:.1%}, in {BINS} bins of equal width. Below the "
        "line the classifier is surer than it is right.</p>"
        f'<figure role="img" aria-label="accuracy over confidence">{svg(fig, "calibration")}'
        f"</figure>{_table(header, shown)}"
    )


def _worst(model: TrainedModel, source: Source, given: Answers) -> str:
    """The images whose class is held for least likely, and below one half, with their maps."""
    order = [i for i in np.argsort(given.own, kind="stable")[:WORST].tolist() if given.own[i] < 0.5]
    if not order:
        return "<p>Every image gets more than half of the probability for its class.</p>"
    explained, cards = explainer(model), ""
    names: Sequence[str] = getattr(source, "files", ("", ()))[1]
    for i in order:
        pixels = with_channels(np.asarray(source[i]["image"]), model.backbone.in_channels)
        pictures = (pixels, explained(pixels, None).picture)
        name = names[i] if names else f"image {i}"
        truth, said = (model.class_name(int(v[i])) for v in (given.label, given.predicted))
        text = [f"{truth} {given.own[i]:.1%}", f"taken for {said} {given.best[i]:.1%}", name]
        text[1] = text[1] if truth != said else "likeliest all the same"
        alts = (f"{name}: {truth}", f"where {said} is seen")
        shown = "".join(
            f'<img alt="{html.escape(alt)}" src="{_data(picture)}">'
            for alt, picture in zip(alts, pictures, strict=True)
        )
        lines = "<b>{}</b><br>{}<br><span>{}</span>".format(*map(html.escape, text))
        cards += f"<figure><div>{shown}</div><figcaption>{lines}</figcaption></figure>\n"
    return (
        "<p>The images whose class got the least probability. On the right is what the network "
        "sees of each, and in yellow what speaks most for the class that it predicts "
        f'(class activation map).</p><div class="pictures">{cards}</div>'
    )


def _data(pixels: np.ndarray) -> str:
    """An image as an address that holds it."""
    from PIL import Image

    if max(pixels.shape[:2]) > SIDE:
        pixels = resize(pixels, *fitted(pixels.shape, SIDE))
    buffer = io.BytesIO()
    Image.fromarray(with_channels(enlarge(pixels, SIDE // 2), 3)).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _left_out(source: Source) -> str:
    found = getattr(source, "left_out", {})
    return _table(("left out", "number"), sorted(found.items())) if found else ""


def _training(folder: Path | None, choices: Table) -> str:
    """Curves, time and choices of the training of the model in a folder, as far as known."""
    rows = read_rows(folder / METRICS) if folder else []
    parts = []
    if folder and (folder / RESULT).is_file():
        result = read_json(folder / RESULT)
        end = f", ended {result['ended']}" if "ended" in result else ""
        parts.append(
            f"<p>{result['steps']:,} steps in {result['seconds']:.0f} s{html.escape(end)}.</p>"
        )
    if rows:
        fig, axes = figure(6.8, 2.8, 1, 2)
        for ax, key in zip(axes.flat, ("accuracy", "loss"), strict=True):
            for split, color in (
                ("train", COLORS[1]),
                ("eval", COLORS[0]),
                ("eval_ema", COLORS[2]),
            ):
                own = [(r["step"], r[key]) for r in rows if r["split"] == split and key in r]
                if own:
                    ax.plot(*zip(*own, strict=True), color=color, label=split)
            ax.set(xlabel="step", ylabel=key)
        axes[0, 0].legend(frameon=False)
        drawn = svg(fig, "training")
        parts.append(f'<figure role="img" aria-label="accuracy and loss">{drawn}</figure>')
    if choices:
        parts.append(_table(("choice", "value", "reason"), choices, "why"))
    return "\n".join(parts)
