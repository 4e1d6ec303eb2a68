"""The command line: one verb for each thing this project does.

Every mistake of a user ends as one line on standard error and exit status 2. Libraries are imported
by the verb that needs them, so that `--help` answers at once.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from mnv2_jax.cli.account import ACCOUNT
from mnv2_jax.cli.export import EXPORT
from mnv2_jax.cli.predict import EVALUATE, PREDICT
from mnv2_jax.cli.train import PREPARE, TRAIN
from mnv2_jax.cli.weights import DOCTOR, EXPORT_WEIGHTS, IMPORT
from mnv2_jax.config import OVERRIDE
from mnv2_jax.errors import UsageError

EXIT_USAGE = 2
SIGNALLED = 128  # and the number of the signal, as shells count

VERBS = {
    "train": TRAIN,
    "evaluate": EVALUATE,
    "predict": PREDICT,
    "prepare": PREPARE,
    "import": IMPORT,
    "export-weights": EXPORT_WEIGHTS,
    "export": EXPORT,
    "doctor": DOCTOR,
    "account": ACCOUNT,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status.

    It is 0, 2 for a mistake, 130 after Ctrl-C, 143 after SIGTERM.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        rest, overrides = split_overrides(argv)
        if rest and rest[0].startswith("--config"):
            rest.insert(0, "train")
        arguments = _parser().parse_args(rest)
        if overrides and arguments.run is not TRAIN.run:
            raise UsageError(f"override {overrides[0]!r} belongs to the verb train.")
        arguments.overrides, arguments.argv = overrides, argv
        arguments.run(arguments)
    except UsageError as error:
        print(f"mnv2: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt as interrupt:
        print(f"mnv2: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return SIGNALLED + getattr(interrupt, "number", signal.SIGINT)
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        sys.stderr.close()
        return 0
    return 0


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes the overrides out of a command line.

    >>> split_overrides(["train", "--config.epochs=3", "--config", "a.py", "--config.steps", "9"])
    (['train', '--config', 'a.py'], ['epochs=3', 'steps=9'])
    """
    rest, overrides = [], []
    words = iter(argv)
    for word in words:
        if not word.startswith(OVERRIDE):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix(OVERRIDE).partition("=")
        if not equals:
            value = next(words, None)
            if value is None:
                raise UsageError(f"override {word!r} has no value: write {word}=VALUE.")
        overrides.append(f"{key}={value}")
    return rest, overrides


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mnv2", description="MobileNetV2 (arXiv 1801.04381) in JAX and Flax.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, verb in VERBS.items():
        sub = verbs.add_parser(name, help=verb.help, description=verb.help)
        verb.arguments(sub)
        sub.set_defaults(run=verb.run)
    return parser
