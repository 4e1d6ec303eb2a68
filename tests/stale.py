"""Which results were made by other code than this?

    python -m tests.stale [results]

For each `results.json` in the folders there it computes the fingerprint anew (see
`mnv2_jax.lab.train.provenance`), and says which parts differ. Nothing is trained. The status is 1
where a result was made by other code. What earlier releases made has no fingerprint; what needs
data that are not here is not checked; programs are compared with the same jax and jaxlib, on CPUs.
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
    from mnv2_jax.lab.train.config import load_config
    from mnv2_jax.lab.train.provenance import of_run, of_sources
    from mnv2_jax.lab.train.report import environment as versions
    from mnv2_jax.lab.train.run import make_run
    from mnv2_jax.lab.train.sweep import check_variants

    results, here, sources = read_json(Path(path)), versions(), {}
    differ, notes, command = defaultdict(list), {}, results["command"]
    again = f": make it again with `{command}`"
    rest, overrides = split_overrides(shlex.split(command)[2:])
    parsed = make_parser().parse_args(rest if rest[0] == "train" else ["train", *rest])
    try:
        variants = check_variants(load_config(parsed.config or parsed.experiment, overrides))
    except UsageError as error:
        return f"{OTHER} ({error}){again}"
    for name in results["origins"].keys() ^ variants.keys():
        differ["variants"].append(name)
    for name, own in results["origins"].items():
        for seeds in sorted(
            {origin["seeds_at_once"] for origin in own} if name in variants else ()
        ):
            try:
                run = make_run(variants[name], seeds, sources)
                now = of_run(run, variants[name], of_sources(sources))["fingerprint"]
            except UsageError as error:
                return f"not checked: {error}"
            for origin in (origin for origin in own if origin["seeds_at_once"] == seeds):
                parts = [part for part in now if now[part] != origin["fingerprint"][part]]
                if reason := incomparable(origin, here):
                    notes[f"; {reason}, so programs are not compared"] = None
                    parts = [part for part in parts if part != "program"]
                for part in parts:
                    differ[part].append(name)
    what = "; ".join(f"{part} of {', '.join(dict.fromkeys(own))}" for part, own in differ.items())
    return f"{OTHER} ({what}){''.join(notes)}{again}" if differ else f"current{''.join(notes)}"


def incomparable(origin: dict, here: dict) -> str:
    """Why programs that were lowered there and here are not compared, if so."""
    for package in ("jaxlib", "jax"):
        if (was := origin["versions"][package]) != here["versions"][package]:
            return f"made with {package} {was}"
    return f"made on {origin['device']}" * (origin["device"] != here["device"])


if __name__ == "__main__":
    sys.exit(main())
