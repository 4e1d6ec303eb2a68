"""The result of a sweep: statistics over seeds, a Markdown report, a plot like Fig. 6.

`results.json` holds everything that the report and the pages of `mnv2_jax.lab.paper` say.
"""

import math
import platform
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import cycle, pairwise, product
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnv2_jax.accounting import account
from mnv2_jax.errors import one_line, shown
from mnv2_jax.files import replacing, write_file, write_json
from mnv2_jax.lab.model_folder import DESCRIPTION, read_description
from mnv2_jax.lab.tasks import TASKS
from mnv2_jax.lab.train.config import plain
from mnv2_jax.lab.train.decision import (
    DELTA,
    EQUIVALENT,
    UNDECIDED,
    Decision,
    Difference,
    decide,
    over_images,
    paired_difference,
    planned_looks,
)  # fmt: skip
from mnv2_jax.lab.train.log import read_curves
from mnv2_jax.lab.train.provenance import processor, short_digest
from mnv2_jax.lab.train.record import (
    OF,
    RESULT,
    SEAL,
    Right,
    hash_file,
    read_json,
    read_right,
    sealed,
)
from mnv2_jax.markdown import markdown_table
from mnv2_jax.version import __version__

RESULTS, REPORT, CURVES = "results.json", "report.md", "curves.png"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# Okabe and Ito's colors, which can be told apart with any color vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":")  # the next one is taken when the colors are used up
MAX_OF_START = 0.05  # of running statistics, at the end of a training
IMAGES = ("train_images", "eval_images")  # numbers in a model's description
LAYOUTS = ("folder", "coco", "voc", "voc_segmentation", "cityscapes")  # of anyone's pictures
Results = dict[str, Any]  # the content of `results.json`


def write_report(
    workdir: Path, config: Any, command: Sequence[str], look: int | None = None
) -> Path:
    """Writes `results.json`, `curves.png` and `report.md` from the finished runs of a sweep.

    They are of its first `look` seeds, or of all.
    """
    results = read_runs(workdir, config, look)
    steps = next(iter(results["runs"].values()))[0]["steps"]
    averaged = results["metric"].startswith("eval_ema/")
    if intervals := over_test_images(workdir, config, results):
        results["over_images"] = intervals
    results |= {
        "setting": make_setting(workdir, config, steps, averaged),
        "environment": environment(), "command": shlex.join(command),
    }  # fmt: skip
    plot_curves(workdir, results)
    write_file(workdir / REPORT, report_text(results))
    files = {name: hash_file(workdir / name) for name in (REPORT, CURVES)}
    write_json(workdir / RESULTS, sealed(results | {"files": files}))
    return workdir / REPORT


def read_runs(workdir: Path, config: Any, look: int | None) -> Results:
    """Reads what the first `look` seeds of each variant came to, and the metric they share."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in config.sweep.variants}
    origins: dict[str, list[Any]] = {name: [] for name in runs}  # what seeds share stands once
    for name, seed in product(runs, config.sweep.seeds[:look]):
        result = read_json(workdir / name / f"seed_{seed}" / RESULT)
        for origin in result.pop("origins", []):
            if origin not in origins[name]:
                origins[name].append(origin)
        # What a seed came to, without what seals it.
        runs[name].append({k: v for k, v in result.items() if k not in (OF, SEAL, "files")})
    name = next(iter(TASKS[config.task].metrics))
    # Averaged weights are compared only where every variant has them.
    every = [run["metrics"] for seeds in runs.values() for run in seeds]
    averaged = all(f"eval_ema/{name}" in metrics for metrics in every)
    metric = f"eval_ema/{name}" if averaged else f"eval/{name}"
    return {"metric": metric, "runs": runs, "config": plain(config), "origins": origins}


def over_test_images(workdir: Path, config: Any, results: Results) -> list[dict[str, Any]]:
    """Returns the intervals over seeds and test images of each two neighbours of the claim.

    Without a claim they are of the other variants above the reference. What cannot be said, for
    the seeds of a variant keep no images, or of other data, is left out.
    """
    split, kept = results["metric"].partition("/")[0], dict[str, list[Right]]()
    for name, seeds in results["runs"].items():
        with suppress(ValueError):
            places = [workdir / name / f"seed_{run['seed']}" for run in seeds]
            kept[name] = [read_right(*pair) for pair in zip(places, seeds, strict=True)]
    reference = config.sweep.reference
    others = [(name, reference) for name in kept if name != reference]
    found = []
    for better, worse in pairwise(config.sweep.claim) if config.sweep.claim else others:
        apart = differences(kept.get(better, []), kept.get(worse, []), split)
        if apart is None:
            continue
        interval = over_images(apart)
        if math.isfinite(interval.low):
            n = apart.shape[1]
            found.append({"better": better, "worse": worse, "images": n} | interval._asdict())
    return found


def differences(one: Sequence[Right], other: Sequence[Right], split: str) -> np.ndarray | None:
    """Returns what `decision.over_images` takes, of seeds in one order; None if it is not there."""
    same = {(right.split, right.data, len(right.images)) for right in (*one, *other)}
    if len(same) != 1 or len(one) != len(other) or next(iter(same))[0] != split:
        return None
    a, b = (np.array([right.images for right in side], np.int8) for side in (one, other))
    return a - b


def seeds_of(results: Results) -> list[int]:
    """Returns the seeds that every variant was trained with."""
    return results["config"]["sweep.seeds"][: len(next(iter(results["runs"].values())))]


def judged(results: Results) -> list[Decision]:
    """Returns what the seeds decide of the claim of a sweep, at the looks that it planned."""
    config = results["config"]
    looks = planned_looks(config.get("sweep.looks", ()), len(config["sweep.seeds"]))
    delta = config.get("sweep.delta", DELTA)
    return decide(config["sweep.claim"], scores_of(results), delta, looks)


def make_setting(workdir: Path, config: Any, steps: int, averaged: bool) -> dict[str, Any]:
    """Returns what the report says of a sweep besides its scores: metric, data, networks."""
    seeds = {name: list(config.sweep.seeds) for name in config.sweep.variants}
    return {
        "title": one_line(config.title or config.name), "averaged": averaged, "steps": steps,
        "metric": next(iter(TASKS[config.task].metrics.values())),
        "data": config.data.name, "split": config.data.eval_split, "root": config.data.root,
        "batch_size": config.batch_size, "networks": describe_networks(workdir, seeds),
    }  # fmt: skip


def describe_networks(workdir: Path, seeds: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Describes the first model of each variant in a sweep's folder, as far as there is one."""
    paths = {name: workdir / name / f"seed_{own[0]}" / DESCRIPTION for name, own in seeds.items()}
    return {name: _network(path) for name, path in paths.items() if path.is_file()}


def _network(path: Path) -> dict[str, Any]:
    description, _, model = read_description(path)
    options, size = description["model"], description["resolution"]
    cost = account(model, (1, size, size, options.get("in_channels", 3)))
    network = {"options": options, "resolution": size, "params": cost.params, "madds": cost.madds}
    if IMAGES[0] in description:
        network["bn_decay"] = decay_of(model)
    return network | {key: description[key] for key in IMAGES if key in description}


def decay_of(model: Any) -> float:
    """Returns the decay of batch norm's statistics."""
    return getattr(model, "backbone", model).dialect.bn_decay


def scores_of(results: Results) -> dict[str, list[float]]:
    """Returns what the variants are compared by: a score for each seed, as a share of 1."""
    metric, every = results["metric"], results["runs"].items()
    values = {name: [run["metrics"][metric] for run in seeds] for name, seeds in every}
    return {name: np.array(own, float).tolist() for name, own in values.items()}  # null is NaN


def share(score: Any) -> float:
    """Returns a score as a number; a ValueError says that it is none from 0 to 1."""
    number = math.nan if score is None else float(score)
    if not 0 <= number <= 1:
        raise ValueError(f"the score {shown(score)} is not from 0 to 1")
    return number


def measured(setting: Mapping[str, Any]) -> str:
    """Returns what was measured, as a sentence without its period."""
    return (
        f"{scored(setting)} after {setting['steps']} steps of {setting['batch_size']} images"
        f"{', with averaged weights' * setting['averaged']}"
    )


def scored(setting: Mapping[str, Any]) -> str:
    """Returns what was measured, and on which images."""
    metric, place = setting["metric"], one_line(images_of(setting))
    return f"{metric[0].upper()}{metric[1:]} on the {setting['split']} split of {place}"


def images_of(setting: Mapping[str, Any]) -> str:
    """Names the data: by its folder, where the name is of a layout that any pictures may have."""
    return (setting["data"] in LAYOUTS and setting.get("root")) or setting["data"]


def report_text(results: Results) -> str:
    """Composes the Markdown report."""
    setting, config, machine = results["setting"], results["config"], results["environment"]
    runs, scores, reference = results["runs"], scores_of(results), config["sweep.reference"]
    decisions, delta, rows = judged(results), config.get("sweep.delta", DELTA), []
    looks = planned_looks(config.get("sweep.looks", ()), len(config["sweep.seeds"]))
    for name, values in scores.items():
        mean, _, std = spread(values).partition(" ± ")
        versus = points(paired_difference(values, scores[reference]))
        versus = "reference" if name == reference else versus
        seconds = f"{sum(run['seconds'] for run in runs[name]):.0f} s"
        rows.append((name, len(values), mean, std or "–", versus, seconds))
    header = ("variant", "n", "mean %", "std", f"difference to {reference} [95 % CI]", "time")
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    skipped = sum(run["skipped"] for seeds in runs.values() for run in seeds)
    facts = [
        f"- command: `{results['command']}`",
        *_networks(setting["networks"]),
        f"- seeds: {', '.join(map(str, seeds_of(results)))}{_so_far(results, looks[-1])}",
        *_learning_rates(config, list(runs)),
        f"- device: {machine['device']}; {machine['platform']}",
        f"- versions: {versions}; Python {machine['python']}",
        *_origins(results.get("origins", {})),
        *[f"- {skipped} steps were not finite and were skipped."] * bool(skipped),
        *_notes(results),
    ]
    paragraphs = [
        f"# {setting['title']}",
        f"{measured(setting)}. Differences are paired by seed; intervals are Student's t."
        + f" {tested(delta, looks)}" * bool(decisions),
        markdown_table(header, rows),
        "\n".join(_other_metrics(results)),
        "\n".join(_low_precision(config, scores, runs)),
        "\n".join(f"- {verdict(decision)}" for decision in decisions),
        "\n".join(_over_images(results)),
        f"![{setting['metric']} over training]({CURVES})",
        "\n".join(facts),
    ]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def cautions(config: Mapping[str, Any], decay: float, steps: int, images: int) -> list[str]:
    """Says what is likely to go wrong; `decay` is batch norm's, `images` are those to train on."""
    found, batch = [], config["batch_size"]
    if batch > images:
        seen = f"{steps} steps see each {steps * batch / images:.0f} times"
        what = f"batch_size is {batch}, and there are {images} images to train on"
        found.append(f"{what}: {seen}. Make it smaller for more steps.")
    if decay**steps > MAX_OF_START and not config["init.frozen_norm"]:
        fitting = math.floor(1000 * MAX_OF_START ** (1 / steps)) / 1000
        found.append(
            f"batch norm's running statistics decay by {decay:g} a step: after {steps} steps "
            f"{decay**steps:.0%} of them are what they began with, and an evaluation lags behind. "
            f"Set model.bn_decay to {fitting:g}, or train for longer."
        )
    return found


def _so_far(results: Results, most: int) -> str:
    """Says that more seeds are to come, if it is so."""
    goes_on = any(not d.at for d in judged(results)) and len(seeds_of(results)) < most
    return f" so far, of up to {most}: the same command goes on" * goes_on


def _origins(origins: Mapping[str, Sequence[Any]]) -> list[str]:
    """Says which code trained on which processors, and of each variant what determines it."""
    prints = {
        name: short_digest([origin["fingerprint"] for origin in own])
        for name, own in origins.items()
        if own  # earlier releases kept none
    }
    return [
        f"- {what}: {'; '.join(dict.fromkeys(o[key] for own in origins.values() for o in own))}"
        for what, key in (("processor", "processor"), ("commit of the code", "commit"))
        if prints
    ] + ["- fingerprints: " + ", ".join(map(" ".join, prints.items()))] * bool(prints)


def _notes(results: Results) -> list[str]:
    lines = []
    for name, network in results["setting"]["networks"].items():
        runs = results["runs"][name]
        if "bn_decay" in network:
            known = (network["bn_decay"], runs[0]["steps"], network[IMAGES[0]])
            lines += [f"- note: {caution}" for caution in cautions(results["config"], *known)]
        for run in (run for run in runs if "ended" in run):
            what = f"ended at step {run['steps']}, {run['ended']}"
            lines.append(f"- {name}, seed {run['seed']}: {what}.")
    return list(dict.fromkeys(lines))


def _networks(networks: dict[str, dict[str, Any]]) -> list[str]:
    lines: dict[str, list[str]] = {}
    for name, network in networks.items():
        line = "{params:,} parameters and {madds:,} multiply-adds at {resolution}×{resolution}"
        line = line.format(**network)
        if set(IMAGES) <= set(network):
            line += "; {:,} training images, {:,} for evaluation".format(*map(network.get, IMAGES))
        lines.setdefault(line, []).append(name)
    return [f"- {', '.join(names)}: {line}" for line, names in lines.items()]


def _learning_rates(config: Mapping[str, Any], variants: Sequence[str]) -> list[str]:
    key = "optimizer.learning_rate"
    rates = {name: config.get(f"sweep.variants.{name}.{key}", config[key]) for name in variants}
    listed = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
    return [f"- learning rates: {listed}"] * bool(set(rates.values()) - {config[key]})


def _other_metrics(results: Results) -> list[str]:
    split, lines = results["metric"].partition("/")[0], []
    for key, label in list(TASKS[results["config"]["task"]].metrics.items())[1:]:
        for name, runs in results["runs"].items():
            values = np.array([run["metrics"][f"{split}/{key}"] for run in runs], float)
            lines.append(f"- {label}, {name}: {spread(values.tolist())} %")
    for name, runs in results["runs"].items():
        scored = {run["metrics"].get(f"{split}/classes_scored") for run in runs} - {None}
        if scored:
            numbers = "–".join(f"{n:g}" for n in sorted(scored))
            lines.append(f"- classes in the mean, {name}: {numbers}")
    return lines


def _low_precision(config: Results, scores: dict[str, list[float]], runs: Results) -> list[str]:
    lines, reference = [], config["sweep.reference"]
    for precision in config["low_precision"]:
        lost = {}
        for name, seeds in runs.items():
            low = [run["metrics"][f"{precision}/accuracy"] for run in seeds]
            lost[name] = np.subtract(low, scores[name]).tolist()
            change = points(paired_difference(low, scores[name]))
            lines.append(f"- {precision}, {name}: {100 * np.mean(low):.1f} %, {change}")
        for name in (name for name in lost if name != reference):
            (apart,) = decide((reference, name), lost, config.get("sweep.delta", DELTA))
            lines.append(f"- {precision}, what changes: {verdict(apart)}")
    return lines


def _over_images(results: Results) -> list[str]:
    lines, seeds = [], len(seeds_of(results))
    for found in results.get("over_images", []):
        interval = Difference(found["mean"], found["low"], found["high"])
        where = f"over {seeds} seeds and {found['images']:,} test images"
        lines.append(f"- *{found['better']}* above *{found['worse']}* {where}: {points(interval)}")
    return lines


def tested(delta: float, looks: Sequence[int]) -> str:
    """Says how `decide` decides, in a sentence or two."""
    size = points_of(delta)
    when = f" and all looks (after {', '.join(map(str, looks))} seeds)" if len(looks) > 1 else ""
    return (
        "What is claimed is tested by flipping the signs of the differences, at 5 % for all of it "
        f"together (Holm){when}; equivalent is what differs by less than {size} (two "
        "one-sided t-tests)."
    )


def points_of(delta: float) -> str:
    """Formats a difference of interest.

    >>> points_of(0.01), points_of(0.025)
    ('1 point', '2.5 points')
    """
    return f"{100 * delta:g} point" + "s" * (delta != DELTA)


def verdict(decision: Decision) -> str:
    """Says what is claimed, what came out, and how often one training would have shown it."""
    better, worse, outcome, at, n, wins, difference, p, p_equivalent, detectable = decision
    here = f"{points(difference)}, n = {n}, p = {p:.2g}: **{outcome}**"
    here += f" (p = {p_equivalent:.2g})" * (outcome == EQUIVALENT)
    here += f" after {at} seeds" * (0 < at < n)
    if outcome == UNDECIDED and math.isfinite(detectable):
        here += f"; of differences of {100 * detectable:.1f} points, so many seeds find 90 %"
    times = f" *{better}* scores higher with {wins} of {n} seeds." * (n > 1)
    return f"*{better}* above *{worse}*: {here}.{times}"


def points(difference: Difference, unit: str = " points") -> str:
    """Formats a difference and its interval in percentage points."""
    mean, low, high = (100 * value for value in difference)
    return f"{mean:+.1f}{unit}" + (f" [{low:+.1f}, {high:+.1f}]" if math.isfinite(low) else "")


def spread(values: Sequence[float]) -> str:
    """Formats shares of 1 in percent: their mean, and the standard deviation of several.

    >>> spread([0.5]), spread([0.5, 0.52])
    ('50.0', '51.0 ± 1.4')
    """
    percent = 100 * np.asarray(values)
    return f"{percent.mean():.1f}" + (f" ± {percent.std(ddof=1):.1f}" if len(values) > 1 else "")


def environment() -> dict[str, Any]:
    """Returns where the numbers come from: device, platform, versions."""
    return {
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "platform": f"{platform.system()} {platform.machine()}", "processor": processor(),
        "python": platform.python_version(),
        "versions": {"mnv2_jax": __version__} | {name: version(name) for name in PACKAGES},
    }  # fmt: skip


def plot_band(ax: Any, x: Any, series: Any, color: str, mark: str = "-", **look: Any) -> np.ndarray:
    """Draws a band of one standard deviation of each x's values in percent; returns their means."""
    mean = np.array([100 * np.mean(values) for values in series])
    std = np.array([100 * np.std(values, ddof=len(values) > 1) for values in series])
    ax.fill_between(x, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
    ax.plot(x, mean, mark, color=color, **look)
    return mean


def plot_differences(
    ax: Any, decisions: Sequence[Decision], scores: Mapping[str, Sequence[float]], delta: float
) -> None:
    """Draws a strip for each two neighbours of a claim: how far the better is above the worse.

    A dot is the difference of a seed, in percentage points; below are their mean and its interval.
    The band holds what is smaller than `delta`.
    """
    for row, (better, worse, *_) in enumerate(decisions):
        apart = 100 * np.subtract(scores[better], scores[worse])
        mean, low, high = (100 * value for value in decisions[row].difference)
        top, bottom, size = row + 0.44, row + 0.98, 100 * delta
        ax.fill_between((-size, size), top, bottom, color="0.5", alpha=0.18, linewidth=0)
        ax.vlines(0, top, bottom, color="0.4", linewidth=0.9)
        text = f"{_label(better)}\n− {_label(worse)}"
        # Above the strip, for nothing is to cross it.
        ax.text(0, top - 0.03, text, va="bottom", fontsize=9, transform=ax.get_yaxis_transform())
        heights = row + 0.63 + np.linspace(-0.09, 0.09, len(apart))
        ax.plot(apart, heights, "o", color=COLORS[0], alpha=0.6, markersize=5.5, markeredgewidth=0)
        interval = [[mean - low], [high - mean]] if math.isfinite(low) else None
        look = {"color": "black", "markersize": 6, "linewidth": 1.6, "capsize": 3}
        ax.errorbar(mean, row + 0.86, xerr=interval, fmt="D", **look)
    ax.set(
        ylim=(len(decisions), 0.2 * (len(decisions) < 3)), yticks=[], xlabel="difference, points"
    )
    ax.set_title(f"every seed, mean and 95 % interval\nband: below {points_of(delta)}", fontsize=9)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.grid(visible=False)


def _label(variant: str) -> str:
    return variant.replace("_", " ")


def plot_curves(workdir: Path, results: Results) -> None:
    """Draws the metric over training, as Fig. 6 does: mean over seeds, one standard deviation.

    Beside it are the differences that a claim is decided by, where there are several seeds.
    """
    from matplotlib.figure import Figure

    setting, seeds, decisions, ends = results["setting"], seeds_of(results), judged(results), []
    strips = len(decisions) * (len(seeds) > 1)
    size, ratios = ((9, max(4.2, 1 + 0.9 * strips)), (5, 3)) if strips else ((7, 4.2), (1,))
    figure = Figure(figsize=size, layout="constrained")
    axes, *beside = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios).flat
    looks = cycle(product(LINES, COLORS))
    for variant, (line, color) in zip(results["runs"], looks, strict=False):
        logs = [workdir / variant / f"seed_{seed}" for seed in seeds]
        if (curves := read_curves(logs, results["metric"])) is None:
            continue
        look = {"linewidth": 1.8, "label": _label(variant)}
        mean = plot_band(axes, curves[0], curves[1].T, color, line, **look)
        ends.append(mean[-1])
    order = np.argsort(ends)[::-1]  # the legend in the order of the curves' ends
    if len(order) > 1:
        axes.legend(handles=[axes.lines[i] for i in order], frameon=False)
    axes.set(xlabel="training step", ylabel=f"{setting['metric']}, %")
    band = f"\nmean of {len(seeds)} seeds, band ±1 std" * (len(seeds) > 1)
    axes.set_title(f"{one_line(images_of(setting))}{band}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    for ax in beside:
        delta = results["config"].get("sweep.delta", DELTA)
        plot_differences(ax, decisions, scores_of(results), delta)
    figure.suptitle(setting["title"], fontsize=11)
    with replacing(workdir / CURVES) as partial:
        figure.savefig(partial, dpi=150, format="png")
