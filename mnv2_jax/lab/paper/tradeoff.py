"""Fig. 5: accuracy against multiply-adds, the authors' networks and this project's runs."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.accounting import account
from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.model_folder import DESCRIPTION
from mnv2_jax.lab.paper import printed
from mnv2_jax.lab.paper.content import (
    HERE,
    PAPER,
    PLAIN,
    Missing,
    Note,
    Part,
    Picture,
    Sources,
    Table,
    Text,
)
from mnv2_jax.lab.paper.drawing import COLOURS, INK, figure, plain_axes
from mnv2_jax.lab.paper.evaluations import Evaluation, find_evaluations
from mnv2_jax.lab.paper.runs import Result, find, imagenet_scores, spread, width_and_size
from mnv2_jax.lab.paper.tables import classifier_madds
from mnv2_jax.lab.train.config import OVERRIDE, load_config
from mnv2_jax.lab.train.problem import model_options
from mnv2_jax.lab.train.sweep import variant_config
from mnv2_jax.models.build import build

OTHERS = {  # of Table 4 -> marker, and where its name stands beside it, in points
    "MobileNetV1": ("s", (7, 0), "left", "center"),
    "ShuffleNet (1.5)": ("D", (-4, 4), "right", "bottom"),
    "ShuffleNet (x2)": ("D", (7, -4), "left", "center"),
    "NasNet-A": ("^", (7, 4), "left", "center"),
}


class Point(NamedTuple):
    """A network that a run trained.

    Attributes:
      width, resolution: of it.
      madds: None where neither the run's model nor its experiment is at hand to be counted.
      scores: one for each seed, as a share of 1.
    """

    width: float
    resolution: int
    madds: int | None
    scores: list[float]


def figure_5(sources: Sources) -> Iterator[Part]:
    """Fig. 5: the released networks, and beside them whatever was trained here."""
    own = imagenet_scores(sources)
    evaluated = find_evaluations(sources.runs, "imagenet2012", "accuracy")
    elsewhere = {r.name: points(r) for r in find(sources.runs, "tradeoff")}
    elsewhere.pop("tradeoff-imagenet2012", None)
    counted = {name: found for name, found in elsewhere.items() if all(p.madds for p in found)}
    yield Picture(
        "fig-5",
        _draw(own, evaluated, counted),
        "Top-1 accuracy against multiply-adds on a logarithmic axis, a curve for each resolution.",
    )
    yield Text(
        "Left: accuracies **published** by the authors with their released checkpoints (widths "
        "0.35 to 1.0 at 96 to 224 pixels, 1.4 at 224) and, as single marks, the other networks of "
        "Table 4; multiply-adds of MobileNetV2 counted here. "
        + ("Rings: published weights, evaluated here (Table 4). " if evaluated else "")
        + (
            "Right: networks trained by this project, a band of one standard deviation over seeds."
            if counted
            else ""
        )
    )
    yield _released(own, evaluated)
    for name, found in elsewhere.items():
        rows = [
            (
                p.width,
                p.resolution,
                f"{p.madds:,}" if p.madds else "–",
                len(p.scores),
                spread(p.scores),
            )
            for p in found
        ]
        yield Table(
            ("width", "resolution", "MAdds, counted", "seeds", "%, here"),
            tuple(rows),
            (PLAIN, PLAIN, HERE, HERE, HERE),
            f"Trained here: {_caption(find(sources.runs, name)[0])}",
        )
        if name not in counted:
            yield Note(
                "Multiply-adds are counted on the trained models or on those of the experiment, "
                f"and neither is at hand; `{find(sources.runs, name)[0].command}` makes them."
            )
    if not elsewhere:
        yield Missing(
            "the same trade-off on digits", "python main.py --config experiments/tradeoff.py"
        )
    if not own:
        yield Missing(
            "the curve on ImageNet",
            "python main.py --config experiments/tradeoff.py:imagenet2012 "
            "--config.data.root=/path/to/imagenet",
        )
    smallest = classifier_madds(0.35, 96)
    yield Note(
        "Sec. 4 says that the cost ranges from “7 multiply adds” to 585 M. The smallest network of "
        f"the figure, width 0.35 at 96 pixels, has {smallest / 1e6:.1f} M, the largest "
        f"{classifier_madds(1.4, 224) / 1e6:.1f} M."
    )


def _released(own: dict[tuple[float, int], Result], evaluated: list[Evaluation]) -> Table:
    """The released networks, with what was found here beside them, if anything was."""
    rows = []
    for width, scores in printed.RELEASED.items():
        for resolution, top1 in zip(printed.RESOLUTIONS, scores, strict=False):
            at = (width, resolution)
            here = [spread(next(iter(own[at].scores.values())))] if at in own else []
            here += [e.percent for e in evaluated if e.at == at]
            rows.append((*at, f"{classifier_madds(*at):,}", top1, ", ".join(here) or "not run"))
    header = ("width", "resolution", "MAdds, counted", "top-1 %, published", "top-1 %, here")
    origins = (PLAIN, PLAIN, HERE, PAPER, HERE)
    columns = 5 if own or evaluated else 4
    return Table(
        header[:columns],
        tuple(row[:columns] for row in rows),
        origins[:columns],
        "The published points (ImageNet)",
    )


def points(result: Result) -> list[Point]:
    """Returns the networks of a trade-off, their cost counted from the trained models."""
    found = []
    for variant, scores in result.scores.items():
        width, size = width_and_size(result, variant, 0)
        folders = result.seed_folders(variant)
        madds = model_madds(folders[0]) if folders else configured_madds(result, variant)
        found.append(Point(width, size, madds, scores))
    return sorted(found, key=lambda p: (p.resolution, p.width))


def model_madds(folder: Path) -> int | None:
    """Counts the multiply-adds of a trained classifier; None if the folder holds none.

    Raises:
      UsageError: its description cannot be used.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    try:
        description = json.loads(path.read_text())
        model, size = build(**description["model"]), int(description["resolution"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} cannot be read: {first_line(error)}. Train the model again."
        ) from error
    return account(model, (1, size, size, model.in_channels)).madds


def configured_madds(result: Result, variant: str) -> int | None:
    """Counts the network that the experiment of a result describes; None without the experiment.

    Results are kept without their models, and the command among them says which configuration it
    was. Its classes and channels are those of the data, which has to be at hand as well.
    """
    words = shlex.split(result.command)
    if "--config" not in words[:-1]:
        return None
    try:
        overrides = [w.removeprefix(OVERRIDE) for w in words if w.startswith(OVERRIDE) and "=" in w]
        config = load_config(words[words.index("--config") + 1], overrides)
        chosen = variant_config(config, variant)
        source = open_source(chosen.data.name, chosen.data.eval_split, chosen.data.root)
    except (UsageError, KeyError):
        return None
    channels = source[0]["image"].shape[-1]
    model = build(**model_options(chosen, len(source.classes), channels))
    size = chosen.data.resolution
    return account(model, (1, size, size, channels)).madds


def _caption(result: Result) -> str:
    return f"{result.setting or result.name} (`{result.command}`)"


def _draw(
    own: dict[tuple[float, int], Result],
    evaluated: list[Evaluation],
    counted: dict[str, list[Point]],
) -> Any:
    columns = 1 + bool(counted)
    fig, axes = figure(10.2 if counted else 7.2, 4.3, columns=columns)
    ax = axes.flat[0]
    ax.set_xscale("log")
    for colour, resolution in zip(COLOURS, reversed(printed.RESOLUTIONS), strict=False):
        index = printed.RESOLUTIONS.index(resolution)
        line = sorted(
            (classifier_madds(width, resolution) / 1e6, scores[index])
            for width, scores in printed.RELEASED.items()
            if index < len(scores)
        )
        ax.plot(*zip(*line, strict=True), "o-", color=colour, markersize=4, label=f"{resolution}²")
        ours = sorted(
            (classifier_madds(*at) / 1e6, 100 * np.mean(list(result.scores.values())))
            for at, result in own.items()
            if at[1] == resolution
        )
        for x, y in ours:
            ax.plot(x, y, "*", color=colour, markersize=11, markeredgecolor=INK)
        for e in evaluated:
            if e.resolution == resolution:
                x = classifier_madds(*e.at) / 1e6
                ax.plot(x, 100 * e.score, "o", color=colour, markersize=9, fillstyle="none")
    for row in printed.TABLE_4:
        if row.network in OTHERS:
            mark, offset, across, along = OTHERS[row.network]
            ax.plot(row.madds, row.top1, mark, color=INK, markersize=4.5, alpha=0.7)
            ax.annotate(
                row.network, (row.madds, row.top1), offset, textcoords="offset points",
                ha=across, va=along, fontsize=7.5,
            )  # fmt: skip
    _millions(ax, (10, 20, 50, 100, 200, 500))
    ax.set_xlim(right=1600)  # room for the names
    ax.set_ylabel("top-1 accuracy, %")
    ax.set_title("ImageNet: published" + (", and trained here (stars)" if own else ""))
    ax.legend(frameon=False, loc="lower right", title="resolution", title_fontsize=8.5)
    if counted:
        _draw_own(axes.flat[1], counted)
    for each in axes.flat:
        plain_axes(each)
        each.set_xlabel("multiply-adds, millions")
    return fig


def _draw_own(ax: Any, counted: dict[str, list[Point]]) -> None:
    """Draws the first trade-off that was trained here; the others are in the tables."""
    name, found = next(iter(counted.items()))
    ax.set_xscale("log")
    for colour, size in zip(COLOURS, sorted({p.resolution for p in found}), strict=False):
        line = sorted((p for p in found if p.resolution == size), key=lambda p: p.madds or 0)
        x = [(p.madds or 0) / 1e6 for p in line]
        mean = np.array([100 * np.mean(p.scores) for p in line])
        std = np.array([100 * np.std(p.scores, ddof=min(1, len(p.scores) - 1)) for p in line])
        ax.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
        ax.plot(x, mean, "o-", color=colour, markersize=4, label=f"{size}²")
    every = sorted((p.madds or 0) / 1e6 for p in found)
    _millions(ax, [t for t in _round_ticks() if every[0] * 0.9 <= t <= every[-1] * 1.1])
    ax.set_ylabel("accuracy, %")
    ax.set_title(f"{name}: trained here")
    ax.legend(frameon=False, loc="lower right", title="resolution", title_fontsize=8.5)


def _millions(ax: Any, ticks: Any) -> None:
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)


def _round_ticks() -> list[float]:
    return [m * 10.0**e for e in range(-3, 5) for m in (1, 2, 5)]
