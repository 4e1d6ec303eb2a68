"""Two finished runs, or variants of them, against each other by the test that decides claims."""

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.files import user_path
from mnv2_jax.lab.rules import check_value
from mnv2_jax.lab.seal import check_seal, read_json, readable
from mnv2_jax.lab.train.check import RULES
from mnv2_jax.lab.train.decision import (
    CONFIRMED,
    EQUIVALENT,
    REFUTED,
    UNDECIDED,
    Decision,
    Difference,
    decide,
    over_images,
    planned_looks,
)
from mnv2_jax.lab.train.record import CONFIG, DATA, IDLE, RESULT, Right, read_right
from mnv2_jax.lab.train.report import RESULTS, differences, points_of, scored, share

SPLITS = ("eval_ema", "eval")  # the first that both sides were evaluated with is compared
# What has to be the same, to compare at all; the last three name what `images` may tell apart.
SAME = ("task", "data.resplit", "data.name", "data.eval_split", "data.root")
ANEW = "give the command of its training again, which writes it anew"


class Side(NamedTuple):
    """A variant of a finished run."""

    name: str  # RUN, or RUN:VARIANT where it has several
    place: tuple[Path, str]  # the folder and the variant
    what: str  # was measured, and on which images
    scores: dict[str, dict[int, float]]  # by metric, such as "eval/accuracy", and seed; of 1
    config: dict[str, Any]  # by dotted keys, the variant's own, without what is the sweep's
    images: Any  # what the evaluation set is made of; None where that was not kept
    versions: dict[str, str]  # of packages, Python and device
    looks: list[int]  # at which the sweep might have ended; it has no others
    right: dict[int, Right]  # which images each seed gets right, where that was kept


class Comparison(NamedTuple):
    """What the test says of one side above another, and what else they differ in."""

    what: str  # was measured, and on which images
    metric: str
    seeds: list[int]  # that both have
    decision: Decision
    looks: list[int]  # that share the error rate, as the sweep of one side planned them
    left_out: tuple[list[int], list[int]]  # seeds of each side that the other has not
    settings: dict[str, tuple[Any, Any]]  # that differ; None is what a side does not have
    versions: dict[str, tuple[Any, Any]]
    over_images: Difference | None  # over seeds and test images, where both kept the same ones


def read_side(given: str) -> Side:
    """Reads `RUN[:VARIANT]`, where RUN is the folder of a run or its `results.json`."""
    place, variant = given, ""
    if ":" in given and not os.path.lexists(given):
        place, _, variant = given.rpartition(":")
    folder = user_path(place, "run")
    folder = folder.parent if folder.name == RESULTS else folder
    if not os.path.lexists(folder / RESULTS):
        raise _no_run(folder)
    with readable(folder / RESULTS, ANEW) as content:
        runs = content["runs"]
        if variant and variant not in runs:
            raise unknown(f"variant of {place}", variant, runs)
        if not variant and len(runs) > 1:
            example = f"{place}:{next(iter(runs))}"
            why = f"{place} has several variants, {', '.join(runs)}"
            raise UsageError(f"{why}: say which, as in {example}.")
        if not runs or not all(runs.values()):
            raise ValueError("it holds no runs")
        if "config" not in content:
            raise ValueError("it is of release 0.1.0, which did not keep the setting")
        name = given if variant else place
        variant = variant or next(iter(runs))
        own, config = f"sweep.variants.{variant}.", content["config"] | {}
        config |= {k.removeprefix(own): v for k, v in config.items() if k.startswith(own)}
        planned = list(map(int, config.get("sweep.looks", ())))
        looks = planned_looks(planned, len(config["sweep.seeds"])) if planned else []
        config = {"data.resplit": False} | config  # which earlier releases did not have
        config = {k: v for k, v in config.items() if not k.startswith("sweep.")}
        scores, metric = {}, content["metric"].partition("/")[2]
        for key in (f"{split}/{metric}" for split in SPLITS):
            if all(key in run["metrics"] for run in runs[variant]):
                scores[key] = {
                    int(run["seed"]): share(run["metrics"][key]) for run in runs[variant]
                }
        _, _, data, split, root = (config[key] for key in SAME)
        setting = {"metric": content["setting"]["metric"], "data": data, "split": split}
        what, images = scored(setting | {"root": root}), _images(folder, data, split, root)
        machine = content["environment"]
        versions = machine["versions"] | {k: machine[k] for k in ("python", "device")}
        right = {}
        for run in runs[variant]:
            with suppress(ValueError):
                right[int(run["seed"])] = read_right(folder / variant / f"seed_{run['seed']}", run)
        known = (what, scores, config, images, versions, looks, right)
        return Side(name, (folder.resolve(), variant), *known)


def _no_run(folder: Path) -> UsageError:
    above = folder.parent
    if (folder / CONFIG).is_file() and not (folder / RESULT).is_file():
        return UsageError(
            f"{folder} has no {RESULTS}, so it is not finished: give the command of its training "
            "again, which goes on to its end; a smaller --config.steps brings that nearer. "
            "`mnv2 finish` makes models of what is there, but no results."
        )
    meant = f"{above}:{folder.name}" if (above / RESULTS).is_file() else "runs/ablate_linear"
    return UsageError(f"{str(folder)!r} is no run, for it has no {RESULTS}: give one, as {meant}.")


def _images(folder: Path, name: str, split: str, root: str | None) -> Any:
    try:
        content = read_json(folder / DATA)
        check_seal(content, must=True)
    except ValueError:
        return None
    return content.get(f"{split} of {root or name}")


def compare(a: Side, b: Side, delta: float) -> Comparison:
    """Tests that `a` is above `b` on the seeds that both have; alike is less than `delta` apart.

    Seeds are paired by their number. Raises a UsageError where the two cannot be compared: task,
    data or metric is another, or fewer than two seeds are in both.
    """
    check_value("delta", delta, RULES["sweep.delta"])
    if a.place == b.place:
        raise UsageError(f"{a.name} is given twice: give two runs, or two variants.")
    for key in SAME[:2] if a.images is not None and a.images == b.images else SAME:
        if (one := a.config[key]) != (other := b.config[key]):
            why = f"{key} is {one!r} in {a.name} and {other!r} in {b.name}"
            raise UsageError(f"{why}: give runs that were evaluated on the same images.")
    if None not in (a.images, b.images) and a.images != b.images:
        why = f"{a.name} and {b.name} were evaluated on other images, which {DATA} of each tells"
        raise UsageError(f"{why}: train one of them again on the data of the other.")
    metric = next((key for key in a.scores if key in b.scores), "")
    if not metric:
        theirs = " and ".join(f"{s.name} by {', '.join(s.scores) or 'nothing'}" for s in (a, b))
        raise UsageError(f"no metric is in both: {theirs} are scored. Give runs with one metric.")
    one, other = a.scores[metric], b.scores[metric]
    seeds = sorted(one.keys() & other.keys())
    if len(seeds) < 2:
        has = (f"{s.name} has {', '.join(map(str, s.scores[metric]))}" for s in (a, b))
        common = f"only seed {seeds[0]} is" if seeds else "no seed is"
        remedy = "train both with the same --config.sweep.seeds, two at least"
        raise UsageError(f"{common} in both, for {' and '.join(has)}: {remedy}.")
    scores = {side.name: [side.scores[metric][n] for n in seeds] for side in (a, b)}
    looks = sorted({*a.looks, *b.looks})
    (decision,) = decide((a.name, b.name), scores, delta, looks)
    apart = None
    known = {*seeds} <= a.right.keys() & b.right.keys()
    if known and a.images is not None and a.images == b.images:
        # Other folders may hold the same images.
        one_right, other_right = ([s.right[n]._replace(data="") for n in seeds] for s in (a, b))
        apart = differences(one_right, other_right, metric.partition("/")[0])
    return Comparison(
        a.what + ", with averaged weights" * metric.startswith(f"{SPLITS[0]}/"),
        metric, seeds, decision, looks,
        (sorted(one.keys() - other.keys()), sorted(other.keys() - one.keys())),
        _unequal(*({k: v for k, v in s.config.items() if k not in {*IDLE, *SAME}} for s in (a, b))),
        _unequal(a.versions, b.versions), None if apart is None else over_images(apart),
    )  # fmt: skip


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The values that differ; a key that one release lacks means what is empty or 0 in another."""
    pairs = {key: (one.get(key), other.get(key)) for key in sorted(one.keys() | other.keys())}
    return {key: (x, y) for key, (x, y) in pairs.items() if (x or None) != (y or None)}


def in_words(decision: Decision, delta: float) -> str:
    """Says what came out for A above B, to someone who knows no statistics."""
    n, p, found = decision.n, 100 * decision.p, 100 * decision.detectable
    too_few = math.isinf(decision.difference.low)
    chance = f"were they alike, chance would show such a difference in {p:.2g} of 100 comparisons"
    power = f"they would find differences of {found:.1f} points in nine of ten comparisons"
    few = "so few never show that one is better, for that may be chance; train more"
    return {
        CONFIRMED: f"A is better than B: {chance}.",
        REFUTED: f"A is worse than B: {chance}.",
        EQUIVALENT: f"A and B are alike: they differ by less than {points_of(delta)}.",
        UNDECIDED: f"{n} seeds cannot tell A from B: {few if too_few else power}.",
    }[decision.outcome]
