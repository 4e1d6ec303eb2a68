"""Sweeps: an experiment is {variants} × {seeds}, and a plain training is a sweep of one run."""

import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mnv2_jax.errors import UsageError, first_line, shown
from mnv2_jax.files import write_json
from mnv2_jax.lab.data import Source, summary
from mnv2_jax.lab.devices.hosts import agree, gather, together
from mnv2_jax.lab.devices.process import stoppable
from mnv2_jax.lab.train import provenance, record
from mnv2_jax.lab.train.check import check, check_sweep
from mnv2_jax.lab.train.config import as_kind, difference, flatten, group_of, plain, unknown_key
from mnv2_jax.lab.train.decision import planned_looks
from mnv2_jax.lab.train.lock import Lock
from mnv2_jax.lab.train.log import Tracker
from mnv2_jax.lab.train.loop import fit
from mnv2_jax.lab.train.per_image import keep_right
from mnv2_jax.lab.train.report import (
    cautions,
    decay_of,
    environment,
    judged,
    read_runs,
    write_report,
)
from mnv2_jax.lab.train.run import Run, make_run, open_data, settle
from mnv2_jax.version import __version__

# Keys that sweeps of earlier releases did not have, and what they meant without them.
ADDED = dict.fromkeys(("model.expand", "model.filter", "model.project"), "standard")
ADDED |= {
    "data.resplit": False,
    "data.eval_resolution": 0,
    "parallel.steps_per_call": 0,
    "profile": 0,
    "loss.class_weights": [],
    "model.stochastic_depth": 0.0,
}
Groups = list[tuple[str, tuple[int, ...]]]  # variants with the seeds that are trained together
log = logging.getLogger(__name__)


def run_sweep(
    config: Any, workdir: Path, command: Sequence[str], quiet: bool, tracker: Tracker | None = None
) -> Path | None:
    """Trains every variant with every seed that is not finished yet, and writes the report.

    With `sweep.looks`, it ends after the first of so many seeds that decide all of the claim; each
    of these looks has its report.

    A folder that holds the same configuration is continued; one of another is refused with a
    UsageError. Returns the path of the report, for which `command` is; None on other hosts.
    `tracker` is told as `log.tracked` says.
    """
    with stoppable() as stop, Lock(workdir) as lock:
        with together():
            settle(config)
            variants = check_variants(config)
            waiting = _waiting(config, workdir, lock)
            looks = planned_looks(config.sweep.looks, len(config.sweep.seeds))
        versions = {"version": __version__, "jax": jax.__version__}
        agree(plain(config) | {"left to train": waiting} | versions)
        sources: dict[Any, Any] = {}  # which variants share
        with together():  # all mistakes are found before the first is trained, or the folder made
            runs: dict[tuple[str, int], Run] = {}  # by variant and number of seeds at once
            _build(runs, variants, waiting[0], sources)
            for variant in variants.values():  # those of what is finished as well
                open_data(variant.data, sources)
            made = check_data(workdir, config, sources)
        agree({place: record.digest(content) for place, content in made.items()})
        # Now, for the code may change while it trains.
        here = {"commit": provenance.commit(), **environment()}
        prints: dict[tuple[str, int], dict[str, Any]] = {}  # fingerprints, as all seeds share
        telling = not quiet and jax.process_index() == 0
        if telling:
            _warn(variants, runs)
        try:
            identity = claim(workdir, config, lock)
            if jax.process_index() == 0:
                write_json(workdir / record.DATA, record.sealed(made, {"run": identity.run}))
                for (data, split, root), source in () if quiet else sources.items():
                    print(f"{split} of {root or data}: {summary(source)}", file=sys.stderr)
            report = None
            for look, groups in zip(looks, waiting, strict=True):
                _build(runs, variants, groups, sources)
                for name, seeds in groups:
                    number = list(variants).index(name) + 1
                    title = f"{name} ({number}/{len(variants)}) seed {', '.join(map(str, seeds))}"
                    began, own = time.monotonic(), identity._replace(variant=name, seeds=seeds)
                    run, place = runs[name, len(seeds)], workdir / name
                    place.mkdir(parents=True, exist_ok=True)
                    if (name, len(seeds)) not in prints:
                        own_print = provenance.of_run(run, variants[name], made, place)
                        prints[name, len(seeds)] = own_print
                    origin = here | prints[name, len(seeds)]
                    known = (run, variants[name], place, own, origin, stop, title, quiet, tracker)
                    ended = fit(*known)
                    if telling:
                        took = f"{time.monotonic() - began:.0f} s" + f", {ended}" * bool(ended)
                        print(f"{title}: {took}", file=sys.stderr)
                done = look == looks[-1] or _decided(workdir, config, look, telling)
                if jax.process_count() == 1 and look > 1:  # fewer seeds have no interval
                    known = (config.sweep.seeds[:look], identity, sources)
                    keep_right(workdir, variants, *known, _tell if telling else log.info)
                if jax.process_index() == 0:  # of what there is so far, if it goes on
                    report = write_report(workdir, config, command, look)
                if done:
                    break
            return report
        except OSError as error:
            why = f"{workdir} cannot be used: {first_line(error)}. What is there stays: free some "
            why += "space or choose another --workdir, and give the same command again to go on."
            raise UsageError(why) from error


def _build(
    runs: dict[tuple[str, int], Run], variants: dict[str, Any], groups: Groups, sources: Any
) -> None:
    """Builds what groups of seeds need to be trained, unless it is there."""
    for name, size in dict.fromkeys((name, len(seeds)) for name, seeds in groups):
        if (name, size) not in runs:
            runs[name, size] = make_run(variants[name], size, sources)


def _decided(workdir: Path, config: Any, look: int, telling: bool) -> bool:
    """Whether as many seeds decide all of a claim; the first host reads what all go by."""
    open_ones: list[str] = []
    if jax.process_index() == 0:
        decisions = judged(read_runs(workdir, config, look))
        open_ones = [f"{d.better} above {d.worse}" for d in decisions if not d.at]
    if telling:
        left = f"undecided: {', '.join(open_ones)}" if open_ones else "all is decided"
        print(f"after {look} seeds {left}", file=sys.stderr)
    return not any(gather("; ".join(open_ones)))


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _warn(variants: dict[str, Any], runs: dict[tuple[str, int], Run]) -> None:
    found = {}
    for (name, _), run in runs.items():
        known = (decay_of(run.model), run.steps, run.images["train_images"])
        found |= dict.fromkeys(cautions(flatten(variants[name]), *known))
    print(*(f"note: {caution}\n" for caution in found), sep="", end="", file=sys.stderr)


def _waiting(config: Any, workdir: Path, lock: Lock) -> list[Groups]:
    """The variants' groups of seeds that have no sound results yet, for each look."""
    identity = check_owner(workdir, config)
    if jax.process_index() == 0 and os.path.isdir(workdir):
        lock.take()

    def finished(variant: str, seed: int) -> bool:
        place = workdir / variant / f"seed_{seed}"
        if not os.path.lexists(place / record.RESULT):
            return False
        try:
            record.read_result(place, identity._replace(variant=variant, seeds=(seed,)))
        except record.Foreign as error:
            remedy = "Put back what was there, or remove that folder to train the seed again"
            raise UsageError(f"{place}: {error}. {remedy}.") from error
        except ValueError as error:
            log.warning("%s: %s; it is finished again", place, error)
            return False
        return True

    return [
        [
            (name, seeds)
            for name in config.sweep.variants
            for seeds in groups
            if not all(finished(name, seed) for seed in seeds)
        ]
        for groups in seed_groups(config)
    ]


def check_variants(config: Any) -> dict[str, Any]:
    """Returns the configuration of every variant, each checked for what shows without its data."""
    check_sweep(config)
    variants = {name: variant_config(config, name) for name in config.sweep.variants}
    for variant in variants.values():
        check(variant)
    return variants


def variant_config(config: Any, name: str) -> Any:
    """Returns the configuration of one variant: the sweep's with the variant's changes."""
    variant, changes = config.copy_and_resolve_references(), config.sweep.variants[name]
    known = {key: value for key, value in flatten(config).items() if "sweep.variants." not in key}
    if not isinstance(changes, ConfigDict):
        want = "give the keys that it changes, as in {'model': {'bottleneck': 'relu6'}}"
        raise UsageError(f"variant {name!r} of the sweep is {shown(changes)}: {want}.")
    for key in flatten(changes):
        if key not in known:
            raise unknown_key(key, known, f"configuration key of variant {name!r}")
    try:
        for key, value in flatten(changes).items():
            group, leaf = group_of(variant, key)
            group[leaf] = as_kind(group, leaf, value)
    except TypeError as error:
        why = f"variant {name!r} of the sweep cannot be applied: {first_line(error)}."
        raise UsageError(why) from error
    return variant


def seed_groups(config: Any) -> Iterator[list[tuple[int, ...]]]:
    """Yields, for each look, the seeds that it adds, in groups that are trained together."""
    seeds, start = config.sweep.seeds, 0
    size = config.sweep.at_once or len(seeds)
    for look in planned_looks(config.sweep.looks, len(seeds)):
        added, start = seeds[start:look], look
        yield [added[i : i + size] for i in range(0, len(added), size)]


def check_owner(workdir: Path, config: Any) -> record.Identity:
    """Returns whose a folder is, and refuses that of another configuration with the difference.

    What changes no step may differ, and a training may be made shorter that has no results yet.
    """
    if str(workdir) != str(workdir).encode("utf-8", "replace").decode():
        raise UsageError(f"{workdir} is not UTF-8, which checkpoints need: give another --workdir.")
    if not os.path.lexists(workdir / record.CONFIG):
        return record.identity_of(record.sealed(plain(config)))
    theirs, ours = record.read_config(workdir), plain(config)
    known = {k: v for k in record.LENGTH if type(v := theirs.get(k)) in (int, float)}
    shorter = any(0 < ours[key] < known.get(key, 0) for key in record.LENGTH)
    shorter = shorter and all(ours[key] <= known.get(key, 0) for key in record.LENGTH)
    finished = any(workdir.glob(f"*/seed_*/{record.RESULT}"))
    free = (*record.FREE, record.SEAL, *(record.LENGTH if shorter and not finished else ()))
    changes = difference(
        *({k: v for k, v in side.items() if k not in free} for side in (ADDED | theirs, ours))
    )
    if changes:
        what = f"{workdir} holds a sweep of another configuration ({changes})"
        remedy = "or remove this one; `mnv2 finish` makes models of what is there"
        raise UsageError(f"{what}: give another --workdir, {remedy}.")
    return record.identity_of(theirs)


def check_data(workdir: Path, config: Any, sources: dict[Any, Source]) -> dict[str, Any]:
    """Returns what data are made of; refuses others than those that a run began with."""
    made = provenance.of_sources(sources)
    theirs = record.read_data(workdir, check_owner(workdir, config).run) or {}
    for place, now in made.items():
        if changes := difference(theirs.get(place, now), now):
            raise UsageError(
                f"{place} is not what the training in {workdir} began with ({changes}): put back "
                "what was there, or give another --workdir; to go on with what is there now, "
                f"remove {workdir / record.DATA}."
            )
    return made


def claim(workdir: Path, config: Any, lock: Lock) -> record.Identity:
    """Makes the folder of a sweep, which all hosts have to see; it belongs to the configuration."""
    path, ours = workdir / record.CONFIG, plain(config)
    with together():
        try:
            if jax.process_index() == 0:
                workdir.mkdir(parents=True, exist_ok=True)
                lock.take()
                new = record.read_config(workdir) if os.path.lexists(path) else record.sealed(ours)
                new |= {key: ours[key] for key in (*record.FREE, *record.LENGTH)}
                sealed = new.pop(record.SEAL, "")
                write_json(path, record.sealed(new) if sealed else new)
        except OSError as error:
            why = f"{workdir} cannot be used: {first_line(error)}. Give another --workdir."
            raise UsageError(why) from error
    with together():
        if not path.is_file():
            remedy = "give a --workdir on a file system that all hosts share"
            raise UsageError(f"{workdir} is not the folder that host 0 made: {remedy}.")
        return record.identity_of(record.read_config(workdir))


def default_workdir(config: Any, overrides: Sequence[str]) -> Path:
    """Names the folder of a sweep after its experiment, and after its overrides if it has any."""
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:6]
    return Path("runs") / (config.name + f"-{digest}" * bool(overrides))
