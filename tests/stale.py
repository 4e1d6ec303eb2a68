"""Which results were made by other code than this?

    python -m tests.stale [results]

For each `results.json` in the folders there it computes the fingerprint anew (see
`mnv2_jax.lab.train.provenance`), and says which parts differ. Nothing is trained. The status is 1
where a result was made by other code. What earlier releases made has no fingerprint. Where data are
not here, the configuration alone is checked; programs are compared with the same jax and jaxlib, on
CPUs, and of variants that differ by their learning rate alone those of the first.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.cli import make_parser, split_overrides
from mnv2_jax.lab.seal import read_json
from tests.processes import ROOT, environment

OTHER = "made by other code"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stale")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "results")
    paths = sorted(parser.parse_args(arguments).folder.absolute().glob("*/results.json"))
    # A process for each, for the number of devices is part of a program; the longest begin.
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(os.cpu_count()) as pool:
        first = sorted(paths, key=lambda path: len(origins(path)), reverse=True)
        told = {path: pool.submit(ask, path, Path(cache)) for path in first}
        for path in paths:
            print(f"{path.parent.name}: {told[path].result()}", flush=True)
    return int(any(said.result().startswith(OTHER) for said in told.values()))


def origins(path: Path) -> list[dict]:
    """Those that a result has of all its variants; none if an earlier release made it."""
    return [origin for own in read_json(path).get("origins", {}).values() for origin in own]


def ask(path: Path, cache: Path) -> str:
    """What a process with as many devices as a result was made on says of it."""
    if not (every := origins(path)):
        return "no fingerprint recorded"
    env = environment(cache, int(every[0]["device"].split()[0]), optimized=True)
    program = f"from tests import stale; print(stale.compare({str(path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=ROOT, text=True, capture_output=True
    )
    if done.returncode:
        raise RuntimeError(f"{path} cannot be checked:\n{done.stderr}")
    return done.stdout.splitlines()[-1]


def compare(path: str) -> str:
    """What differs between a result and what this code would make, in a line."""
    from mnv2_jax.lab.train import provenance
    from mnv2_jax.lab.train.config import load_config, plain
    from mnv2_jax.lab.train.report import environment as versions
    from mnv2_jax.lab.train.run import make_run
    from mnv2_jax.lab.train.sweep import check_variants

    results, here, sources = read_json(Path(path)), versions(), {}
    differ, notes, seen, known = defaultdict(list), {}, set(), {}
    command = results["command"]
    rest, overrides = split_overrides(shlex.split(command)[2:])
    parsed = make_parser().parse_args(rest if rest[0] == "train" else ["train", *rest])
    try:
        variants = check_variants(load_config(parsed.config or parsed.experiment, overrides))
    except UsageError as error:
        return f"{OTHER} ({error}): make it again with `{command}`"
    every = [(k, o) for k, own in results["origins"].items() for o in own if k in variants]
    differ["variants"] = sorted(results["origins"].keys() ^ variants.keys())
    for name, origin in every:
        config, seeds = variants[name], origin["seeds_at_once"]
        if (name, seeds) not in known:
            known[name, seeds] = {"configuration": provenance.of_configuration(config)}
            settings = {k: v for k, v in plain(config).items() if not k.startswith("sweep.")}
            # Another rate is another constant in the same network, which takes seconds to trace.
            alike = str(settings | {"optimizer.learning_rate": 0, "seeds": seeds})
            try:
                if alike not in seen:
                    run = make_run(config, seeds, sources)
                    made = provenance.of_sources(sources)
                    known[name, seeds] = provenance.of_run(run, config, made)["fingerprint"]
            except UsageError as error:
                notes[f"; data and programs are not checked: {error}"] = None
            seen.add(alike)
        for part, now in known[name, seeds].items():
            if part == "program" and (reason := incomparable(origin, here)):
                notes[f"; {reason}, so programs are not compared"] = None
            elif now != origin["fingerprint"][part]:
                differ[part].append(name)
    told = [f"{part} of {', '.join(dict.fromkeys(own))}" for part, own in differ.items() if own]
    if told:
        return f"{OTHER} ({'; '.join(told)}){''.join(notes)}: make it again with `{command}`"
    return f"current{''.join(notes)}"


def incomparable(origin: dict, here: dict) -> str:
    """Why programs that were lowered there and here are not compared, if so."""
    for package in ("jaxlib", "jax"):
        if (was := origin["versions"][package]) != here["versions"][package]:
            return f"made with {package} {was}"
    return f"made on {origin['device']}" * (origin["device"] != here["device"])


if __name__ == "__main__":
    sys.exit(main())
