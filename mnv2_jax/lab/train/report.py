"""The result of a sweep: statistics over seeds, a Markdown report, a plot like Fig. 6."""

import json
import math
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mnv2_jax.files import replacing, write_file, write_json
from mnv2_jax.lab.train.log import METRICS, RESULT, read_rows
from mnv2_jax.markdown import markdown_table
from mnv2_jax.version import __version__

RESULTS, REPORT, CURVES = "results.json", "report.md", "curves.png"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":")  # one after the other, once the colours are used up


class Difference(NamedTuple):
    """A paired difference between two variants over the same seeds.

    Attributes:
      mean: of the differences, seed by seed.
      low, high: the 95 % confidence interval of that mean (Student's t); infinite for one seed.
    """

    mean: float
    low: float
    high: float


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Compares two variants seed by seed, which cancels what a seed does to both.

    >>> paired_difference([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    Difference(mean=2.0, low=2.0, high=2.0)
    >>> round(paired_difference([1.0, 2.0, 4.0], [0.0, 0.0, 0.0]).high, 3)
    6.128
    """
    from scipy.special import stdtrit  # a tenth of all imports, and needed only at the end

    differences = np.subtract(a, b)
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return Difference(mean, -math.inf, math.inf)
    margin = float(stdtrit(n - 1, 0.975) * differences.std(ddof=1) / math.sqrt(n))
    return Difference(mean, mean - margin, mean + margin)


def write_report(workdir: Path, config: Any, command: Sequence[str]) -> Path:
    """Writes `results.json`, `curves.png` and `report.md` from the finished runs of a sweep."""
    runs = {
        name: [
            json.loads((workdir / name / f"seed_{seed}" / RESULT).read_text())
            for seed in config.sweep.seeds
        ]
        for name in config.sweep.variants
    }
    name = next(iter(METRIC_NAMES[config.task]))
    every = [run["metrics"] for found in runs.values() for run in found]
    # Averaged weights are compared only where every variant has them.
    split = "eval_ema" if all(f"eval_ema/{name}" in metrics for metrics in every) else "eval"
    metric = f"{split}/{name}"
    scores = {name: [run["metrics"][metric] for run in found] for name, found in runs.items()}
    results = {
        "metric": metric,
        "runs": runs,
        "environment": environment(),
        "command": shlex.join(command),
    }
    write_json(workdir / RESULTS, results)
    plot_curves(workdir, config, split)
    report = workdir / REPORT
    write_file(report, report_text(config, scores, runs, metric, command))
    return report


# The metrics of each task that a report names, the one that it compares by first.
METRIC_NAMES = {
    "classify": {"accuracy": "top-1 accuracy"},
    "detect": {"map": "mean AP over IoU 0.5 to 0.95", "map50": "mean AP at IoU 0.5"},
    "segment": {"miou": "mean IoU", "accuracy": "accuracy of pixels"},
}


def report_text(
    config: Any,
    scores: dict[str, list[float]],
    runs: dict[str, list[dict[str, Any]]],
    metric: str,
    command: Sequence[str],
) -> str:
    """Composes the Markdown report."""
    title, main = config.title or config.name, next(iter(METRIC_NAMES[config.task].values()))
    rows = []
    reference = config.sweep.reference
    for name, values in scores.items():
        percent = 100 * np.asarray(values)
        spread = f"{percent.std(ddof=1):.1f}" if len(values) > 1 else "–"
        versus = "reference"
        if name != reference:
            versus = _points(paired_difference(values, scores[reference]))
        seconds = sum(run["seconds"] for run in runs[name])
        rows.append(
            (name, len(values), f"{percent.mean():.1f}", spread, versus, f"{seconds:.0f} s")
        )
    header = ("variant", "n", "mean %", "std", f"difference to {reference} [95 % CI]", "time")
    facts = environment()
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    skipped = sum(run["skipped"] for found in runs.values() for run in found)
    steps = next(iter(runs.values()))[0]["steps"]
    parts = [
        f"# {title}",
        f"{main[0].upper()}{main[1:]} on the {config.data.eval_split} split of "
        f"{config.data.name} after {steps} steps of {config.batch_size} images"
        + (", with averaged weights" if metric.startswith("eval_ema") else "")
        + ". Differences are paired by seed; a confidence interval that holds 0 is within noise.",
        markdown_table(header, rows),
        *_others(config, runs, metric.partition("/")[0]),
        *_low_precision(config, scores, runs),
        *verdicts(config, scores),
        f"![{main} over training]({CURVES})",
        f"- command: `{shlex.join(command)}`",
        f"- seeds: {', '.join(map(str, config.sweep.seeds))}",
        f"- device: {facts['device']}; {facts['platform']}",
        f"- versions: {versions}; Python {facts['python']}",
    ]
    if skipped:
        parts.append(f"- {skipped} steps were not finite and were skipped.")
    text = "\n\n".join(parts[: -4 - bool(skipped)])
    return text + "\n\n" + "\n".join(parts[-4 - bool(skipped) :]) + "\n"


def _others(config: Any, runs: dict[str, list[dict[str, Any]]], split: str) -> list[str]:
    """Lists the means of a task's further metrics."""
    lines = []
    for key, label in list(METRIC_NAMES[config.task].items())[1:]:
        for name, found in runs.items():
            values = [100 * run["metrics"][f"{split}/{key}"] for run in found]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            lines.append(f"- {label}, {name}: {np.mean(values):.1f}{spread} %")
    return ["\n".join(lines)] if lines else []


def _low_precision(
    config: Any, scores: dict[str, list[float]], runs: dict[str, list[dict[str, Any]]]
) -> list[str]:
    """Says what every precision costs each variant, and whether it costs the reference less."""
    lines = []
    for precision in config.low_precision:
        lost = {}
        for name, found in runs.items():
            low = [run["metrics"][f"{precision}/accuracy"] for run in found]
            lost[name] = np.subtract(low, scores[name])
            change = _points(paired_difference(low, scores[name]))
            lines.append(f"- {precision}, {name}: {100 * np.mean(low):.1f} %, {change}")
        reference = config.sweep.reference
        for name in (name for name in lost if name != reference):
            apart = _points(paired_difference(lost[reference].tolist(), lost[name].tolist()))
            lines.append(f"- {precision}, change of {reference} less that of {name}: {apart}")
    return ["\n".join(lines)] if lines else []


def verdicts(config: Any, scores: dict[str, list[float]]) -> list[str]:
    """Says, for each neighbouring pair of the order that the paper claims, what came out."""
    lines = []
    for better, worse in zip(config.sweep.claim[:-1], config.sweep.claim[1:], strict=True):
        found = paired_difference(scores[better], scores[worse])
        if found.low > 0:
            outcome = "**as in the paper**"
        elif found.high < 0:
            outcome = "**the opposite of the paper**"
        else:
            outcome = "**within noise**: neither as in the paper nor against it"
        lines.append(
            f"- The paper has *{better}* above *{worse}*. Here: {_points(found)}, {outcome}."
        )
    return ["\n".join(lines)] if lines else []


def _points(difference: Difference) -> str:
    mean, low, high = (100 * value for value in difference)
    interval = f" [{low:+.1f}, {high:+.1f}]" if math.isfinite(low) else ""
    return f"{mean:+.1f} points{interval}"


def environment() -> dict[str, Any]:
    """Where the numbers come from: device, platform, versions."""
    devices = jax.devices()
    return {
        "device": f"{len(devices)} × {devices[0].device_kind}",
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"mnv2_jax": __version__} | {name: version(name) for name in PACKAGES},
    }


def plot_curves(workdir: Path, config: Any, split: str) -> None:
    """Draws the metric over training, as Fig. 6 does: mean over seeds, one standard deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name, label = next(iter(METRIC_NAMES[config.task].items()))
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends = []
    looks = [(colour, line) for line in LINES for colour in COLOURS]
    for variant, (colour, line) in zip(config.sweep.variants, _cycle(looks), strict=False):
        curves = []
        for seed in config.sweep.seeds:
            rows = read_rows(workdir / variant / f"seed_{seed}" / METRICS)
            rows = [row for row in rows if row["split"] == split]
            steps = [row["step"] for row in rows]
            curves.append([100 * row[name] for row in rows])
        mean, std = np.mean(curves, axis=0), np.std(curves, axis=0, ddof=min(1, len(curves) - 1))
        axes.plot(steps, mean, line, color=colour, linewidth=1.8, label=variant.replace("_", " "))
        if len(curves) > 1:
            axes.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
        ends.append(mean[-1])
    handles, labels = axes.get_legend_handles_labels()
    order = np.argsort(ends)[::-1]  # the legend in the order of the curves' ends
    if len(order) > 1:
        axes.legend([handles[i] for i in order], [labels[i] for i in order], frameon=False)
    axes.set_xlabel("training step")
    axes.set_ylabel(f"{label}, %")
    n = len(config.sweep.seeds)
    band = f" (mean of {n} seeds, band ±1 std)" if n > 1 else ""
    axes.set_title(f"{config.title or config.name}\n{config.data.name}{band}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    with replacing(workdir / CURVES) as partial:
        figure.savefig(partial, dpi=150, format="png")


def _cycle(items: Sequence[Any]) -> Any:
    while True:
        yield from items
