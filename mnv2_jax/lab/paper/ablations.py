"""Fig. 6: the two ablations, from the latest results of their experiments."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from mnv2_jax.lab.paper.content import (
    HERE,
    PLAIN,
    Image,
    Missing,
    Part,
    Picture,
    Sources,
    Table,
    Text,
)
from mnv2_jax.lab.paper.drawing import COLOURS, figure, plain_axes
from mnv2_jax.lab.paper.runs import Result, find, spread
from mnv2_jax.lab.train.report import CURVES, paired_difference, verdicts

LABELS = {
    "linear": "linear bottleneck",
    "relu6": "ReLU6 in bottleneck",
    "between_bottlenecks": "shortcut between bottlenecks",
    "between_expansions": "shortcut between expansions",
    "none": "no residual",
}


def figure_6a(sources: Sources) -> Iterator[Part]:
    """Fig. 6a: the non-linearity in the bottleneck."""
    return _ablation(sources, "ablate_linear", ("linear", "relu6"), "fig-6a")


def figure_6b(sources: Sources) -> Iterator[Part]:
    """Fig. 6b: the place of the shortcut."""
    order = ("between_bottlenecks", "between_expansions", "none")
    return _ablation(sources, "ablate_shortcut", order, "fig-6b")


def _ablation(
    sources: Sources, experiment: str, order: tuple[str, ...], picture: str
) -> Iterator[Part]:
    """Shows an ablation at every scale that it was run at.

    Args:
      sources: with the folders of results.
      experiment: its name.
      order: of the variants, by what the paper claims, the best first.
      picture: name of the pictures.
    """
    results = find(sources.runs, experiment)
    results = [r for r in results if set(order) <= set(r.scores)]
    command = f"python main.py --config experiments/{experiment}.py"
    if not results:
        yield Missing("the ablation on embedded digits, about a minute on two cores", command)
    for i, result in enumerate(results):
        if result.setting:
            yield Text(f"**{result.name}**: {result.setting} (`{result.command}`).")
        drawn = result.folder / CURVES
        if not result.curves(order[0]) and drawn.is_file():
            name = f"{picture}-curves" + (f"-{i + 1}" if i else "")
            yield Image(name, drawn, "Accuracy of the variants over training, as the run drew it.")
        yield Picture(
            picture + (f"-{i + 1}" if i else ""),
            _draw(result, order),
            "Accuracy of the variants" + (" over training," if result.curves(order[0]) else ",")
            + " and of every seed at the end.",
        )  # fmt: skip
        reference, rows = result.scores[order[0]], []
        for name in order:
            scores = result.scores[name]
            versus = "reference"
            if name != order[0]:
                mean, low, high = (100 * v for v in paired_difference(scores, reference))
                versus = (
                    f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" if len(scores) > 1 else f"{mean:+.1f}"
                )
            rows.append((LABELS[name], len(scores), spread(scores), versus))
        yield Table(
            ("variant", "seeds", "accuracy, %", "difference in points [95 % CI]"),
            tuple(rows),
            (PLAIN, HERE, HERE, HERE),
        )
        # The report's own words, for which it needs of a configuration the claim alone.
        claim = SimpleNamespace(sweep=SimpleNamespace(claim=order))
        for verdict in verdicts(claim, result.scores):
            yield from (Text(line.removeprefix("- ")) for line in verdict.splitlines())
    yield Missing(
        "the paper's own setting, ImageNet", f"{command}:imagenet2012 --config.data.root=…"
    )


def _draw(result: Result, order: tuple[str, ...]) -> Any:
    curves = {name: result.curves(name) for name in order}
    drawn = all(curves.values())
    fig, axes = figure(
        10.2 if drawn else 6.2, 3.3, columns=1 + drawn,
        width_ratios=(3, 2) if drawn else None,
    )  # fmt: skip
    if drawn:
        _draw_curves(axes.flat[0], curves)
    ends = axes.flat[-1]
    for i, name in enumerate(order):
        scores = 100 * np.asarray(result.scores[name])
        jitter = np.linspace(-0.16, 0.16, len(scores)) if len(scores) > 1 else np.zeros(1)
        ends.plot(i + jitter, scores, "o", color=COLOURS[i], alpha=0.55, markersize=4.5)
        ends.plot((i - 0.28, i + 0.28), (scores.mean(),) * 2, color=COLOURS[i], linewidth=2.2)
    ends.set_xticks(range(len(order)), [_broken(LABELS[name]) for name in order])
    ends.set_xlim(-0.6, len(order) - 0.4)
    ends.set_ylabel("accuracy at the end, %")
    ends.set_title("every seed, and the mean")
    for ax in axes.flat:
        plain_axes(ax)
    ends.grid(visible=False, axis="x")
    return fig


def _broken(label: str) -> str:
    """Breaks a label into lines of at most two words."""
    words = label.split()
    return "\n".join(" ".join(words[i : i + 2]) for i in range(0, len(words), 2))


def _draw_curves(ax: Any, curves: dict[str, Any]) -> None:
    last = []
    for colour, (name, (steps, found)) in zip(COLOURS, curves.items(), strict=False):
        found = 100 * found
        mean, std = found.mean(axis=0), found.std(axis=0, ddof=min(1, len(found) - 1))
        ax.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
        ax.plot(steps, mean, color=colour, linewidth=1.8, label=LABELS[name])
        last.append(mean[len(mean) // 3 :].min())
    # The first epochs, far below, would hide what the figure is about.
    ax.set_ylim(bottom=max(0.0, min(last) - 8))
    ax.set_xlabel("training step")
    ax.set_ylabel("accuracy, %")
    seeds = len(next(iter(curves.values()))[1])
    ax.set_title(f"mean of {seeds} seeds, band of one standard deviation")
    ax.legend(frameon=False, loc="lower right")
