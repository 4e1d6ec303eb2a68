"""What a verb of the command line is, and the arguments that several of them share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mnv2_jax.lab.tasks.task import TrainedModel

MODEL = "model.safetensors"
MOST = 4  # models that a message lists


class Verb(NamedTuple):
    """What a verb is for, its arguments, the function that runs it, and commands as examples."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    examples: tuple[str, ...] = ()


def model_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`, a folder that training or importing wrote, and `--code`."""
    what = "folder of a trained model: runs/NAME/VARIANT/seed_N, or above the only one"
    parser.add_argument("--model", required=True, type=find_model, help=what)
    what = "Python file with PARTS of your own that the model needs, such as its experiment; it is"
    parser.add_argument("--code", metavar="FILE", help=what + " executed")


def trained_model(arguments: argparse.Namespace) -> "TrainedModel":
    """Loads the model of `model_argument`."""
    from mnv2_jax.lab.model_folder import load_model
    from mnv2_jax.lab.train.config import execute
    from mnv2_jax.lab.train.record import say_what_changed

    if arguments.code is not None:
        execute(Path(arguments.code), "--code")
    say_what_changed(Path(arguments.model))
    return load_model(arguments.model)


def find_model(path: str) -> str:
    """Finds the model that is meant by the folder of a whole training, if it holds one only."""
    found: list[str] = []
    for below in ("*/seed_*", "*/seed_*/at_*", "at_*"):  # finished ones, or those of `mnv2 finish`
        found = found or sorted(str(f.parent) for f in Path(path).glob(f"{below}/{MODEL}"))
    if (Path(path) / MODEL).is_file() or not found:
        return path  # a folder without a model is refused when it is read
    if len(found) > 1:
        listed = ", ".join(found[:MOST]) + (", ..." if len(found) > MOST else "")
        raise argparse.ArgumentTypeError(f"{path} holds {len(found)} models, give one: {listed}")
    return found[0]


def json_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`."""
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def megabytes(text: str) -> float:
    """Reads megabytes, as 2 or 2MB, and returns bytes."""
    return 1e6 * float(text.upper().removesuffix("MB"))
