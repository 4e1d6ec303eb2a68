"""Fig. 6: the two ablations, from the newest results of their experiments."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mnv2_jax.lab.paper.content import Missing, Part, Picture, Sources, Table, Text
from mnv2_jax.lab.paper.drawing import COLORS, figure, plain_axes
from mnv2_jax.lab.paper.results import Result, find, spread
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
    claim = ("between_bottlenecks", "between_expansions", "none")
    return _ablation(sources, "ablate_shortcut", claim, "fig-6b")


def _ablation(
    sources: Sources, experiment: str, claim: tuple[str, ...], picture: str
) -> Iterator[Part]:
    """Shows an ablation at every scale that it was run at.

    Args:
      sources: the folders of results.
      experiment: its name.
      claim: its variants in the order that the paper claims, the best first.
      picture: name of the pictures.
    """
    results = [r for r in find(sources.runs, experiment) if set(claim) <= set(r.scores)]
    command = f"python main.py --config experiments/{experiment}.py"
    if not results:
        yield Missing("the ablation on embedded digits, about a minute on two cores", command)
    for i, result in enumerate(results):
        number = f"-{i + 1}" if i else ""
        yield Text(f"**{result.folder.name}**: {result.caption}.")
        curves = [result.curves(name) for name in claim]
        logged, drawn = None not in curves, result.folder / CURVES
        if not logged and drawn.is_file():
            alt = "Accuracy of the variants over training, as the run drew it."
            yield Picture(f"{picture}-curves{number}", drawn, alt)
        yield Picture(
            picture + number,
            _draw(result, claim, curves if logged else []),
            f"Accuracy of the variants{' over training' * logged}, and of every seed at the end.",
        )
        reference, rows = result.scores[claim[0]], []
        for name in claim:
            scores, versus = result.scores[name], "reference"
            if name != claim[0]:
                mean, low, high = (100 * v for v in paired_difference(scores, reference))
                versus = f"{mean:+.1f}" + f" [{low:+.1f}, {high:+.1f}]" * (len(scores) > 1)
            rows.append((LABELS[name], len(scores), spread(scores), versus))
        header = ("variant", "seeds", "accuracy, %", "difference in points [95 % CI]")
        yield Table(header, rows, "-hhh")
        for verdict in verdicts(claim, result.scores):
            yield Text(verdict.removeprefix("- "))
    yield Missing(
        "the paper's own setting, ImageNet", f"{command}:imagenet2012 --config.data.root=…"
    )


def _draw(result: Result, claim: tuple[str, ...], curves: list[Any]) -> Any:
    """Draws the curves of the variants if there are any, and the scores of all seeds."""
    wide = bool(curves)
    ratios = (3, 2) if wide else None
    fig, axes = figure(10.2 if wide else 6.2, 3.3, columns=1 + wide, width_ratios=ratios)
    if wide:
        _draw_curves(axes.flat[0], claim, curves)
    ends = axes.flat[-1]
    for i, (name, color) in enumerate(zip(claim, COLORS, strict=False)):
        scores = 100 * np.asarray(result.scores[name])
        jitter = np.linspace(-0.16, 0.16, len(scores)) if len(scores) > 1 else np.zeros(1)
        ends.plot(i + jitter, scores, "o", color=color, alpha=0.55, markersize=4.5)
        ends.plot((i - 0.28, i + 0.28), (scores.mean(),) * 2, color=color, linewidth=2.2)
    ends.set_xticks(range(len(claim)), [_broken(LABELS[name]) for name in claim])
    ends.set_xlim(-0.6, len(claim) - 0.4)
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


def _draw_curves(ax: Any, claim: tuple[str, ...], curves: list[Any]) -> None:
    last = []
    for color, name, (steps, values) in zip(COLORS, claim, curves, strict=False):
        mean, std = 100 * values.mean(axis=0), 100 * values.std(axis=0, ddof=len(values) > 1)
        ax.fill_between(steps, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
        ax.plot(steps, mean, color=color, linewidth=1.8, label=LABELS[name])
        last.append(mean[len(mean) // 3 :].min())
    # The first epochs, far below, would hide what the figure is about.
    ax.set_ylim(bottom=max(0.0, min(last) - 8))
    ax.set_xlabel("training step")
    ax.set_ylabel("accuracy, %")
    ax.set_title(f"mean of {len(curves[0][1])} seeds, band of one standard deviation")
    ax.legend(frameon=False, loc="lower right")
