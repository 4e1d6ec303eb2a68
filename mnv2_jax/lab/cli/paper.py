"""`mnv2 paper`: reproduces the paper's tables and figures."""

import argparse
import json
import shlex
import sys
from functools import partial
from pathlib import Path

from mnv2_jax.errors import UsageError
from mnv2_jax.files import writable_place
from mnv2_jax.lab.cli.verb import Verb, json_argument

FOLDERS = ("runs", "results")


def _paper_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("items", nargs="*", metavar="ITEM", help="tables and figures, e.g. table-3 fig-7 (all)")
    add("--out", default="runs/paper", help="folder of the report (runs/paper)")
    what = "folders that hold results, or a sweep's own; earlier ones win (runs results)"
    add("--runs", nargs="+", metavar="DIR", help=what)
    add("--model", metavar="DIR", help="trained model for Fig. 7 (the ablation's on digits)")
    add("--quiet", action="store_true", help="print no line for each item")
    json_argument(parser)


def _paper(arguments: argparse.Namespace) -> None:
    from mnv2_jax.lab.devices import process as host
    from mnv2_jax.lab.paper.content import Sources
    from mnv2_jax.lab.paper.report import choose, write_paper

    choose(arguments.items)
    out = writable_place(arguments.out, "--out", folder=True)
    named = [("--runs", folder, "runs") for folder in arguments.runs or ()]
    named += [("--model", arguments.model, "runs/NAME/VARIANT/seed_0")] * bool(arguments.model)
    for flag, folder, example in named:
        if not Path(folder).is_dir():
            raise UsageError(f"{flag} {folder!r} is not a folder: give one such as {example}.")
    host.use_compilation_cache()
    folders = tuple(Path(folder) for folder in arguments.runs or FOLDERS if Path(folder).is_dir())
    sources = Sources(folders, Path(arguments.model) if arguments.model else None)
    command = shlex.join(["python", "main.py", *arguments.argv])
    say = [] if arguments.quiet else [partial(print, file=sys.stderr, flush=True)]
    files = write_paper(out, sources, arguments.items, command, *say)
    if arguments.json:
        print(json.dumps({"files": [str(file) for file in files]}))
    else:
        print(f"report: {files[0]}, and {files[1]} with {len(files) - 2} pictures")


PAPER = Verb(
    "Reproduce the paper's tables and figures, with the results of runs.",
    _paper_arguments, _paper,
    ("mnv2 paper", "mnv2 paper table-3 fig-7 --out tables"),
)  # fmt: skip
