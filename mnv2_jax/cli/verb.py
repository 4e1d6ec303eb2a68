"""What a verb of the command line is, and the arguments that several of them share."""

import argparse
from collections.abc import Callable
from typing import NamedTuple


class Verb(NamedTuple):
    """What a verb is for, its arguments, the function that runs it, and commands as examples."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    examples: tuple[str, ...] = ()


def model_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`, a folder that training or importing wrote."""
    parser.add_argument(
        "--model", required=True, help="folder of a trained model: runs/NAME/VARIANT/seed_N"
    )


def json_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`."""
    parser.add_argument("--json", action="store_true", help="machine-readable output")
