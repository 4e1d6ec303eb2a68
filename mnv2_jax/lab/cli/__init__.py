"""The command line: a verb for each thing this project does, which imports what it needs itself."""

import argparse
import io
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mnv2_jax.errors import UsageError, first_line, one_line, unknown
from mnv2_jax.files import user_path
from mnv2_jax.lab.cli.account import ACCOUNT
from mnv2_jax.lab.cli.compare import COMPARE
from mnv2_jax.lab.cli.export import EXPORT
from mnv2_jax.lab.cli.fit import FIT
from mnv2_jax.lab.cli.paper import PAPER
from mnv2_jax.lab.cli.plan import PLAN
from mnv2_jax.lab.cli.predict import EVALUATE, EXPLAIN, PREDICT
from mnv2_jax.lab.cli.train import FINISH, PREPARE, TRAIN, VERIFY
from mnv2_jax.lab.cli.weights import DOCTOR, EXPORT_WEIGHTS, IMPORT
from mnv2_jax.lab.train.config import OVERRIDE
from mnv2_jax.ops import compiler
from mnv2_jax.version import __version__

EXIT_USAGE = 2
AT_TRAINING = " Keys of the configuration are set with --config.KEY=VALUE, and a training goes on"
AT_TRAINING += " where it stopped when its command is given again."
SIGNALLED = 128  # and the number of the signal, as shells count

GROUPS = {
    "train": {"fit": FIT, "train": TRAIN, "plan": PLAN, "finish": FINISH, "compare": COMPARE,
              "prepare": PREPARE, "verify": VERIFY},
    "use a model": {"predict": PREDICT, "explain": EXPLAIN, "evaluate": EVALUATE,
                    "export": EXPORT},
    "weights of other projects":
        {"doctor": DOCTOR, "import": IMPORT, "export-weights": EXPORT_WEIGHTS},
    "the paper": {"account": ACCOUNT, "paper": PAPER},
}  # fmt: skip
# Verbs by what they were called before, and by what other programs call them.
RENAMED = {"eval": "evaluate", "test": "evaluate", "infer": "predict"}
RENAMED |= {"inspect": "doctor", "convert": "import", "check": "verify", "diff": "compare"}
EXPERIMENTS = (TRAIN.run, PLAN.run, FIT.run)  # which take overrides
VERBS = {name: verb for group in GROUPS.values() for name, verb in group.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns 0, 2 for a mistake, 130 after Ctrl-C, 143 after SIGTERM."""
    argv = list(sys.argv[1:] if argv is None else argv)
    compiler.apply()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that are not UTF-8
    try:
        rest, overrides = split_overrides(argv)
        first = rest[0] if rest else ""
        trains = overrides or any(word.startswith("--config") for word in rest)
        if first[:1] in ("", "-") and trains:
            rest.insert(0, "train")
        elif first in RENAMED:
            raise UsageError(f"the verb {first!r} is called {RENAMED[first]!r} here.")
        elif first[:1] not in ("", "-") and first not in VERBS:
            raise unknown("verb", first, VERBS)
        arguments, extra = make_parser().parse_known_args([_home(word) for word in rest])
        if extra:
            hint = AT_TRAINING * (arguments.run in EXPERIMENTS) + f" See `mnv2 {rest[0]} --help`."
            raise UsageError(f"unrecognized arguments: {' '.join(extra)}.{hint}")
        if overrides and arguments.run not in EXPERIMENTS:
            raise UsageError(f"override {overrides[0]!r} belongs to the verbs train, plan and fit.")
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
    except OSError as error:  # of a path that no check foresaw
        reason = f"{str(error.filename)!r}: {first_line(error)}" if error.filename else str(error)
        print(f"mnv2: {one_line(reason)}.", file=sys.stderr)
        return EXIT_USAGE
    return 0


def _home(word: str) -> str:
    """Expands `~` where shells do not, behind an option's equals sign."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{user_path(value)}" if value.startswith("~") else word


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
    def __init__(self, **options: Any) -> None:
        # Otherwise `import --out DIR` is --output-stride, which is no whole number.
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See `{self.prog} --help`.")


class _Completion(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        try:
            import shtab
        except ImportError as error:
            remedy = "install it with pip install 'mnv2_jax[completion]'"
            raise UsageError(f"{option_string} needs shtab: {remedy}.") from error
        print(shtab.complete(parser, shell=str(values)))
        parser.exit()


class _Root(_Parser):
    def format_help(self) -> str:
        lines = ["usage: mnv2 VERB ...", "", self.description or "", ""]
        for title, group in GROUPS.items():
            rows = (f"  {name:<15} {verb.help}" for name, verb in group.items())
            lines += [f"{title}:", *rows, ""]
        return "\n".join([*lines, self.epilog or "", ""])


def make_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line, without the overrides of configurations."""
    parser = _Root(
        prog="mnv2",
        description="MobileNetV2 (arXiv 1801.04381) in JAX and Flax.",
        epilog="`mnv2 VERB --help` has examples. `mnv2 --config FILE` trains.\n"
        "`mnv2 --version` and `mnv2 --print-completion bash`, or zsh, do what they say.",
    )
    parser.add_argument("--version", action="version", version=f"mnv2_jax {__version__}")
    parser.add_argument("--print-completion", action=_Completion, choices=("bash", "zsh", "tcsh"))
    add = parser.add_subparsers(
        metavar="VERB", required=True, prog="mnv2", parser_class=_Parser, title="verbs"
    ).add_parser
    raw = argparse.RawDescriptionHelpFormatter
    for name, verb in VERBS.items():
        examples = "\n  ".join(("examples:", *verb.examples))
        sub = add(name, help=verb.help, description=verb.help, epilog=examples, formatter_class=raw)
        verb.arguments(sub)
        sub.set_defaults(run=verb.run)
    return parser
