"""Sweeps: an experiment is {variants} × {seeds}, and a plain training is a sweep of one run."""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import write_json
from mnv2_jax.lab.devices.hosts import agree, together
from mnv2_jax.lab.train.check import check, check_sweep
from mnv2_jax.lab.train.config import difference, flatten, plain, unknown_key
from mnv2_jax.lab.train.log import RESULT
from mnv2_jax.lab.train.loop import fit
from mnv2_jax.lab.train.report import write_report
from mnv2_jax.lab.train.run import make_run
from mnv2_jax.version import __version__

# Keys that sweeps of earlier releases did not have, and what they meant without them.
ADDED = dict.fromkeys(("model.expand", "model.filter", "model.project"), "standard")
CONFIG = "config.json"


def run_sweep(config: Any, workdir: Path, command: Sequence[str], quiet: bool) -> Path | None:
    """Trains every variant with every seed that is not finished yet, and writes the report.

    A folder that holds the same configuration is continued; one of another is refused with a
    UsageError. Returns the path of the report, for which `command` is; None on other hosts.
    """
    with together():
        variants = check_variants(config)
        check_owner(workdir, config)
    groups = list(seed_groups(config))
    waiting = {n: [s for s in groups if not _finished(workdir / n, s)] for n in variants}
    versions = {"version": __version__, "jax": jax.__version__}
    agree(plain(config) | {"left to train": waiting} | versions)
    sources: dict[Any, Any] = {}  # which variants share
    with together():  # all mistakes are found before the first is trained, or the folder made
        runs = {
            name: {n: make_run(variants[name], n, sources) for n in {len(seeds) for seeds in left}}
            for name, left in waiting.items()
        }
    try:
        claim(workdir, config)
        for number, (name, variant) in enumerate(variants.items(), 1):
            by_size = runs.pop(name)
            for seeds in waiting[name]:
                began = time.monotonic()
                title = f"{name} ({number}/{len(variants)}) seed {', '.join(map(str, seeds))}"
                fit(by_size[len(seeds)], seeds, variant, workdir / name, title, quiet)
                if not quiet and jax.process_index() == 0:
                    print(f"{title}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        return write_report(workdir, config, command) if jax.process_index() == 0 else None
    except OSError as error:
        raise UsageError(
            f"{workdir} cannot be used: {first_line(error)}. What is there stays: free some space "
            "or choose another --workdir, and give the same command again to go on."
        ) from error


def _finished(folder: Path, seeds: tuple[int, ...]) -> bool:
    return all((folder / f"seed_{seed}" / RESULT).is_file() for seed in seeds)


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
        raise UsageError(f"variant {name!r} of the sweep is {changes!r}: {want}.")
    for key, value in flatten(changes).items():
        if key not in known and value != {}:
            raise unknown_key(key, known, f"configuration key of variant {name!r}")
    try:
        variant.update(changes.to_dict())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"variant {name!r} of the sweep cannot be applied: {first_line(error)}."
        raise UsageError(why) from error
    return variant


def seed_groups(config: Any) -> Iterator[tuple[int, ...]]:
    """Yields the seeds that are trained together."""
    seeds = config.sweep.seeds
    size = config.sweep.at_once or len(seeds)
    yield from (seeds[start : start + size] for start in range(0, len(seeds), size))


def check_owner(workdir: Path, config: Any) -> None:
    """Refuses a folder that holds a sweep of another configuration, with the difference."""
    path = workdir / CONFIG
    try:
        theirs = json.loads(path.read_text()) if path.is_file() else plain(config)
        changes = difference(ADDED | dict(theirs), plain(config))
    except (OSError, ValueError, TypeError) as error:
        why = f"{path} cannot be read: {first_line(error)}"
        raise UsageError(f"{why}. Give another --workdir, or remove this one.") from error
    if changes:
        what = f"{workdir} holds a sweep of another configuration ({changes})"
        raise UsageError(f"{what}: give another --workdir, or remove this one.")


def claim(workdir: Path, config: Any) -> None:
    """Makes the folder of a sweep, which all hosts have to see; it belongs to the configuration."""
    path = workdir / CONFIG
    with together():
        try:
            if jax.process_index() == 0 and not path.is_file():
                workdir.mkdir(parents=True, exist_ok=True)
                write_json(path, plain(config))
        except OSError as error:
            why = f"{workdir} cannot be used: {first_line(error)}. Give another --workdir."
            raise UsageError(why) from error
    with together():
        if not path.is_file():
            remedy = "give a --workdir on a file system that all hosts share"
            raise UsageError(f"{workdir} is not the folder that host 0 made: {remedy}.")


def default_workdir(config: Any, overrides: Sequence[str]) -> Path:
    """Names the folder of a sweep after its experiment, and after its overrides if it has any."""
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:6]
    return Path("runs") / (config.name + f"-{digest}" * bool(overrides))
