"""`mnv2 fit`: from a folder of pictures to a model and a report."""

import argparse

from mnv2_jax.lab.cli.verb import Verb, find_model


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="train/CLASS/ and val/CLASS/, or CLASS/ alone")
    add("--out", metavar="DIR", help="folder of the results (runs/ and the folder's name)")
    add("--time", default="10m", help="that the training may take, such as 10m or 2h (10m)")
    what = "evaluations without a better one that end the training (off)"
    add("--patience", type=int, default=0, metavar="N", help=what)
    what = "folder of a model to start from, or scratch (published weights that are in the cache)"
    add("--start", metavar="MODEL", type=find_model, help=what)
    what = "say what would be chosen; --config.KEY=VALUE chooses otherwise"
    add("--dry-run", action="store_true", help=what)
    add("--quiet", action="store_true", help="no progress bar")


def _fit(arguments: argparse.Namespace) -> None:
    from mnv2_jax.lab.devices import process as host
    from mnv2_jax.lab.fit import fit

    host.keep_freed_memory()
    host.use_compilation_cache()
    given = {n: getattr(arguments, n) for n in ("out", "time", "patience", "start", "dry_run")}
    fit(arguments.folder, **given, overrides=arguments.overrides, quiet=arguments.quiet)


FIT = Verb(
    "Train a classifier on a folder of pictures: one command to a model and a report.",
    _arguments, _fit, ("mnv2 fit my_images", "mnv2 fit my_images --start MODEL --time 30m"),
)  # fmt: skip
