"""Fig. 6: the two ablations, from the newest results of their experiments."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from mnv2_jax.lab.paper.content import TRAIN, Missing, Part, Picture, Sources, Table, Text
from mnv2_jax.lab.paper.drawing import COLORS, figure
from mnv2_jax.lab.paper.results import Result, find
from mnv2_jax.lab.train.decision import decide, paired_difference
from mnv2_jax.lab.train.report import CURVES, plot_band, points, spread, verdict

LABELS = {
    "linear": "linear bottleneck", "relu6": "ReLU6 in bottleneck", "none": "no residual",
    "between_bottlenecks": "shortcut between bottlenecks",
    "between_expansions": "shortcut between expansions",
}  # fmt: skip


def _ablation(
    picture: str, experiment: str, claim: tuple[str, ...], sources: Sources
) -> Iterator[Part]:
    """Shows an ablation at every scale; `claim` has the paper's order of variants, best first."""
    results = [r for r in find(sources.runs, experiment) if set(claim) <= set(r.scores)]
    command = f"{TRAIN}{experiment}.py"
    if not results:
        yield Missing("The ablation on embedded digits, about a minute on two cores", command)
    for i, result in enumerate(results):
        number = f"-{i + 1}" if i else ""
        yield Text(f"**{result.folder.name}**: {result.caption}.")
        curves = [result.curves(name) for name in claim]
        logged, drawn = None not in curves, result.folder / CURVES
        if not logged and drawn.is_file():
            alt = "Accuracy of the variants over training, as the run drew it."
            yield Picture(f"{picture}-curves{number}", drawn, alt)
        alt = f"Accuracy of the variants{' over training' * logged}, and of every seed at the end."
        yield Picture(picture + number, _draw(result, claim, curves if logged else []), alt)
        rows = []
        for name in claim:
            scores = result.scores[name]
            versus = points(paired_difference(scores, result.scores[claim[0]]), unit="")
            versus = "reference" if name == claim[0] else versus
            rows.append((LABELS[name], len(scores), spread(scores), versus))
        header = ("variant", "seeds", "accuracy, %", "difference in points [95 % CI]")
        yield Table(header, rows, "-hhh")
        for decision in decide(claim, result.scores, result.delta, result.looks):
            yield Text(verdict(decision))
    command += ":imagenet2012 --config.data.root=…"
    yield Missing("The paper's own setting, ImageNet", command)


# The non-linearity in the bottleneck, and the place of the shortcut.
figure_6a = partial(_ablation, "fig-6a", "ablate_linear", ("linear", "relu6"))
SHORTCUTS = ("between_bottlenecks", "between_expansions", "none")
figure_6b = partial(_ablation, "fig-6b", "ablate_shortcut", SHORTCUTS)


def _draw(result: Result, claim: tuple[str, ...], curves: list[Any]) -> Any:
    width, ratios = (10.2, (3, 2)) if curves else (6.2, (1,))
    fig, axes = figure(width, 3.3, columns=len(ratios), width_ratios=ratios)
    ends, last = axes.flat[-1], []
    for color, name, (steps, values) in zip(COLORS, claim, curves, strict=False):
        mean = plot_band(axes[0, 0], steps, values.T, color, linewidth=1.8, label=LABELS[name])
        last.append(mean[len(mean) // 3 :].min())
    if curves:
        # The first epochs, far below, would hide what the figure is about.
        axes[0, 0].set(ylim=(max(0.0, min(last) - 8), None), ylabel="accuracy, %")
        title = f"mean of {len(curves[0][1])} seeds, band of one standard deviation"
        axes[0, 0].set(xlabel="training step", title=title)
        axes[0, 0].legend(frameon=False, loc="lower right")
    for i, (name, color) in enumerate(zip(claim, COLORS, strict=False)):
        scores = 100 * np.asarray(result.scores[name])
        jitter = np.linspace(-0.16, 0.16, len(scores)) if len(scores) > 1 else np.zeros(1)
        ends.plot(i + jitter, scores, "o", color=color, alpha=0.55, markersize=4.5)
        ends.plot((i - 0.28, i + 0.28), (scores.mean(),) * 2, color=color, linewidth=2.2)
    # At most two words a line.
    labels = [re.sub(r"(\S+ \S+) ", r"\1\n", LABELS[name]) for name in claim]
    ends.set_xticks(range(len(claim)), labels)
    ends.set(xlim=(-0.6, len(claim) - 0.4), ylabel="accuracy at the end, %")
    ends.set_title("every seed, and the mean")
    ends.grid(visible=False, axis="x")
    return fig
