"""Fig. 5: accuracy against multiply-adds, the authors' networks and this project's runs."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mnv2_jax.lab.paper import printed, results
from mnv2_jax.lab.paper.content import TRAIN, Missing, Note, Part, Picture, Sources, Table, Text
from mnv2_jax.lab.paper.drawing import COLORS, INK, figure
from mnv2_jax.lab.paper.tables import classifier_madds
from mnv2_jax.lab.train.report import plot_band, spread

OTHERS = {  # networks of Table 4 -> marker, and where its name stands beside it, in points
    "MobileNetV1": ("s", (7, 0), "left", "center"),
    "ShuffleNet (1.5)": ("D", (-4, 4), "right", "bottom"),
    "ShuffleNet (x2)": ("D", (7, -4), "left", "center"),
    "NasNet-A": ("^", (7, 4), "left", "center"),
}
Own = dict[tuple[float, int], results.Result]


def figure_5(sources: Sources) -> Iterator[Part]:
    """Fig. 5: the released networks, and beside them whatever was trained here."""
    own = results.imagenet_results(sources)
    evaluated = results.imagenet_evaluations(sources)
    elsewhere = [r for r in results.find(sources.runs, "tradeoff") if r.data != "imagenet2012"]
    counted = next((result for result in elsewhere if result.networks), None)
    alt = "Top-1 accuracy against multiply-adds on a logarithmic axis, a curve for each resolution."
    yield Picture("fig-5", _draw(own, evaluated, counted), alt)
    yield Text(
        "Left: accuracies **published** by the authors with their released checkpoints (widths "
        "0.35 to 1.0 at 96 to 224 pixels, 1.4 at 224) and, as single marks, the other networks of "
        "Table 4; multiply-adds of MobileNetV2 counted here. "
        + "Rings: published weights, evaluated here (Table 4). " * bool(evaluated)
        + "Right: networks trained by this project, a band of one standard deviation over seeds."
        * bool(counted)
    )
    yield _released(own, evaluated)
    header = ("width", "resolution", "MAdds, counted", "seeds", "%, here")
    for result in elsewhere:
        rows = []
        for size, width, madds, scores in points(result):
            rows.append((width, size, f"{madds:,}", len(scores), spread(scores)))
        table = Table(header, rows, "--hhh") if rows else result.table()
        yield table._replace(caption=f"Trained here: {result.caption}")
        if not rows:
            yield Note(
                "These results are of an earlier version, without the cost of their networks, and "
                f"the models are not at hand to count it: `{result.command}` makes both."
            )
    if not elsewhere:
        yield Missing("The same trade-off on digits", TRAIN + "tradeoff.py")
    if not own:
        command = TRAIN + "tradeoff.py:imagenet2012 --config.data.root=/path/to/imagenet"
        yield Missing("The curve on ImageNet", command)
    smallest, largest = (classifier_madds(*at) / 1e6 for at in ((0.35, 96), (1.4, 224)))
    yield Note(
        "Sec. 4 says that the cost ranges from “7 multiply adds” to 585 M. The smallest network of "
        f"the figure, width 0.35 at 96 pixels, has {smallest:.1f} M, the largest {largest:.1f} M."
    )


def _released(own: Own, evaluated: list[results.Evaluation]) -> Table:
    rows = []
    for width, scores in printed.RELEASED.items():
        for resolution, top1 in zip(printed.RESOLUTIONS, scores, strict=False):
            at = (width, resolution)
            here = results.cell(own[at].first if at in own else [], evaluated, width_and_size=at)
            rows.append((*at, f"{classifier_madds(*at):,}", top1, here))
    header = ("width", "resolution", "MAdds, counted", "top-1 %, published", "top-1 %, here")
    n, caption = 5 if own or evaluated else 4, "The published points (ImageNet)"
    return Table(header[:n], [row[:n] for row in rows], "--hph"[:n], caption)


def points(result: results.Result) -> list[tuple[int, float, int, list[float]]]:
    """Returns resolution, width, multiply-adds and scores of the networks of a trade-off."""
    return sorted(
        (network.resolution, network.width_and_size[0], network.madds, result.scores[variant])
        for variant, network in result.networks.items()
    )


def _draw(own: Own, evaluated: list[results.Evaluation], counted: results.Result | None) -> Any:
    fig, axes = figure(10.2 if counted else 7.2, 4.3, columns=1 + bool(counted))
    ax = axes.flat[0]
    ax.set_xscale("log")
    for color, (index, size) in zip(COLORS, [*enumerate(printed.RESOLUTIONS)][::-1], strict=False):
        scores = {width: own[index] for width, own in printed.RELEASED.items() if index < len(own)}
        line = sorted((classifier_madds(width, size) / 1e6, s) for width, s in scores.items())
        ax.plot(*zip(*line, strict=True), "o-", color=color, markersize=4, label=f"{size}²")
        for at in sorted(at for at in own if at[1] == size):
            x, top1 = classifier_madds(*at) / 1e6, 100 * np.mean(own[at].first)
            ax.plot(x, top1, "*", color=color, markersize=11, markeredgecolor=INK)
        for e in (e for e in evaluated if e.network.resolution == size):
            x = classifier_madds(*e.network.width_and_size) / 1e6
            ax.plot(x, 100 * e.score, "o", color=color, markersize=9, fillstyle="none")
    for row in (row for row in printed.TABLE_4 if row.network in OTHERS):
        mark, offset, across, along = OTHERS[row.network]
        ax.plot(row.madds, row.score, mark, color=INK, markersize=4.5, alpha=0.7)
        at, look = (row.madds, row.score), {"ha": across, "va": along, "fontsize": 7.5}
        ax.annotate(row.network, at, offset, textcoords="offset points", **look)
    _millions(ax, (10, 20, 50, 100, 200, 500))
    ax.set(ylabel="top-1 accuracy, %", xlim=(None, 1600))  # room for the names
    ax.set_title("ImageNet: published" + ", and trained here (stars)" * bool(own))
    if counted:
        _draw_own(axes.flat[1], counted)
    for each in axes.flat:
        each.set_xlabel("multiply-adds, millions")
        each.legend(frameon=False, loc="lower right", title="resolution", title_fontsize=8.5)
    return fig


def _draw_own(ax: Any, result: results.Result) -> None:
    ax.set_xscale("log")
    own = points(result)
    for color, size in zip(COLORS, sorted({p[0] for p in own}), strict=False):
        line = sorted((madds / 1e6, scores) for s, _, madds, scores in own if s == size)
        x, scores = zip(*line, strict=True)
        plot_band(ax, x, scores, color, "o-", markersize=4, label=f"{size}²")
    every = [madds / 1e6 for _, _, madds, _ in own]
    ticks = [m * 10.0**e for e in range(-3, 5) for m in (1, 2, 5)]
    _millions(ax, [t for t in ticks if min(every) * 0.9 <= t <= max(every) * 1.1])
    ax.set(ylabel="accuracy, %", title=f"{result.folder.name}: trained here")


def _millions(ax: Any, ticks: Any) -> None:
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)
