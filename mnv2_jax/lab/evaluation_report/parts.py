"""What the pages of evaluations share: tables, pictures, confusions, the course of the training."""

import base64
import html
import io
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mnv2_jax.lab.data import Source
from mnv2_jax.lab.data.image import fitted, resize, with_channels
from mnv2_jax.lab.paper.drawing import COLORS, figure, svg
from mnv2_jax.lab.seal import read_json
from mnv2_jax.lab.tasks.draw import enlarge
from mnv2_jax.lab.tasks.task import TrainedModel
from mnv2_jax.lab.train.log import read_rows
from mnv2_jax.lab.train.record import METRICS, RESULT

WORST, PAIRS = 25, 15
MATRIX = 30  # classes, above which a matrix cannot be read
SIDE = 176  # pixels of a picture
OWN_STYLE = """
svg { min-width: 0; }
h1 { overflow-wrap: anywhere; }
.matrix td, .matrix th { padding: 0.2rem 0.4rem; text-align: right; }
.matrix th:first-child { text-align: left; font-weight: 400; }
.matrix thead th { writing-mode: vertical-rl; rotate: 180deg; text-align: left; font-weight: 400; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr));
  gap: 1.2rem; }
.pictures figure { margin: 0; break-inside: avoid; overflow: hidden; }
.row { display: flex; gap: 4px; }
.row img { flex: 1; min-width: 0; aspect-ratio: 1; object-fit: contain; background: var(--soft); }
.boxes { position: relative; overflow: hidden; border-radius: 6px; font-size: 0.75rem;
  line-height: 1.25; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.boxes div { position: absolute; border: 2px solid; }
.boxes span { position: absolute; top: 0; left: 0; padding: 0 3px; white-space: nowrap; }
.true { border-style: dashed !important; color: #fff; }
.true span { top: auto; bottom: 0; background: #000a; }
.right { color: #35c795; } .wrong { color: #ff8b3d; }
.right span, .wrong span { background: currentColor; }
.boxes b { color: #000; font-weight: 400; }
.boxes .true b { color: #fff; }
.colors span { display: inline-block; padding-left: 0.3rem; margin: 0 0.8rem 0.3rem 0;
  line-height: 1; border-left: 1.4rem solid; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
.curves figure { margin: 0; break-inside: avoid; }
.curves path { fill: none; stroke: var(--rule); stroke-width: 0.7; }
.curves .line { stroke: var(--c0); stroke-width: 2; }
figcaption { margin-top: 0.3rem; font-size: 0.88rem; line-height: 1.4; overflow-wrap: anywhere; }
figcaption span { color: var(--faint); }
td { max-width: 24rem; overflow: hidden; text-overflow: ellipsis; }
.why td:last-child { white-space: normal; min-width: 16rem; }
@media (max-width: 40rem) {
  .why td { white-space: normal; overflow-wrap: anywhere; }
  .why td:last-child { min-width: 8rem; }
}
"""
Rows = Iterable[Sequence[object]]


class Case(NamedTuple):
    """A picture, and what is held against the model there."""

    rank: tuple[float, ...]  # the smaller, the worse
    number: int  # in the data
    shown: Any  # what its page needs to show it


def watch_worst(
    judge: Callable[[Mapping[str, Any], Any], Iterable[tuple[tuple[float, ...], Any]]],
    kept: list[Case],
) -> Callable[[Mapping[str, Any], Any], None]:
    """Returns what keeps the worst pictures of all batches, by (rank, what to show) of each row.

    Ranks begin with the share of what is right; where that is all, nothing is kept.
    """
    number = itertools.count()

    def watch(rows: Mapping[str, Any], answers: Any) -> None:
        rows, answers = jax.tree.map(np.asarray, (dict(rows), answers))
        for real, (rank, shown) in zip(rows["mask"] > 0, judge(rows, answers), strict=True):
            if real and (case := Case(rank, next(number), shown)).rank[0] < 1:
                kept.append(case)
        kept.sort(key=lambda case: case[:2])
        del kept[WORST:]

    return watch


def table(header: Sequence[str], rows: Rows, kind: str = "") -> str:
    """Returns a table of texts, whatever is in them, of numbers, and of shares: floats."""

    def shown(cell: object) -> str:
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return "–"
        if isinstance(cell, float):
            return f"{cell:.1%}"
        return html.escape(f"{cell:,}" if isinstance(cell, int) else str(cell))

    rows = list(rows)
    numbers = [
        not all(isinstance(c, str) for c in column[1:])
        for column in zip(header, *rows, strict=True)
    ]
    marks = [' class="number"' * number for number in numbers]

    def row(tag: str, cells: Sequence[object]) -> str:
        both = zip(marks, map(shown, cells), strict=True)
        return "<tr>" + "".join(f"<{tag}{mark}>{text}</{tag}>" for mark, text in both) + "</tr>"

    body = "\n".join(row("td", cells) for cells in rows)
    head = f"<thead>{row('th', header)}</thead>\n<tbody>{body}</tbody>"
    return f'<div class="table {kind}"><table>{head}</table></div>'


def confusions(model: TrainedModel, both: Counter[tuple[int, int]], what: str) -> str:
    """Returns the commonest confusions and the matrix of what is counted, as (true, predicted)."""
    wrong = [(pair, times) for pair, times in both.most_common() if pair[0] != pair[1]]
    totals, size = Counter[int](), model.count_classes()
    for (a, _), times in both.items():
        totals[a] += times
    rows = [
        (model.class_name(a), model.class_name(b), times, times / totals[a])
        for (a, b), times in wrong[:PAIRS]
    ]
    pairs = table(("class", "taken for", what, "share of the class"), rows)
    pairs = pairs if wrong else "<p>No class is taken for another.</p>"
    if size > MATRIX:
        return pairs + f"<p>A matrix of {size:,} classes is left out.</p>"
    names, shares = [html.escape(model.class_name(i)) for i in range(size)], what == "pixels"
    lines = []
    for a, name in enumerate(names):
        cells = ""
        for b in range(size):
            color = "0 158 115" if a == b else "213 94 0"
            share = both[a, b] / totals[a] if both[a, b] else 0
            text = f"{100 * share:.1f}" if shares else both[a, b]
            cells += f'<td style="background:rgb({color}/{0.75 * share:.2f})">{text}</td>'
        lines.append(f"<tr><th>{name}</th>{cells}</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("", *names))
    unit = " In percent of the pixels of the class." * shares
    return (
        f'{pairs}<p class="caption">Rows: what is right. Columns: what is predicted.{unit}</p>'
        f'<div class="table matrix"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def file_name(source: Source, number: int) -> str:
    """The name of an image's file below its folder, where the data is of files."""
    names: Sequence[str] = getattr(source, "files", ("", ()))[1]
    return names[number] if names else f"image {number}"


def image(alt: str, pixels: np.ndarray, side: int = SIDE) -> str:
    """An image of at most `side` pixels that holds its own bytes."""
    from PIL import Image

    if max(pixels.shape[:2]) > side:
        pixels = resize(pixels, *fitted(pixels.shape, side))
    buffer = io.BytesIO()
    Image.fromarray(with_channels(enlarge(pixels, side // 2), 3)).save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/jpeg;base64,{data}">'


def card(shown: str, texts: Sequence[str], kind: str = "row") -> str:
    """Pictures with a caption of three lines, which are texts: what it is, what is wrong, where."""
    lines = "<b>{}</b><br>{}<br><span>{}</span>".format(*map(html.escape, texts))
    return f'<figure><div class="{kind}">{shown}</div><figcaption>{lines}</figcaption></figure>\n'


def left_out(source: Source) -> str:
    """Returns a table of what is in the folder and not in the data, if that is known."""
    found = getattr(source, "left_out", {})
    return table(("left out", "number"), sorted(found.items())) if found else ""


def training(folder: Path | None, choices: Rows, metric: str) -> str:
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
        for ax, key in zip(axes.flat, (metric, "loss"), strict=True):
            for split, color in (
                ("train", COLORS[1]),
                ("eval", COLORS[0]),
                ("eval_ema", COLORS[2]),
            ):
                own = [(r["step"], r[key]) for r in rows if r["split"] == split and key in r]
                if own:
                    ax.plot(*zip(*own, strict=True), color=color, label=split)
            ax.set(xlabel="step", ylabel=key)
        axes[0, 1].legend(frameon=False)
        drawn = svg(fig, "training")
        parts.append(f'<figure role="img" aria-label="{metric} and loss">{drawn}</figure>')
    if choices:
        parts.append(table(("choice", "value", "reason"), choices, "why"))
    return "\n".join(parts)
