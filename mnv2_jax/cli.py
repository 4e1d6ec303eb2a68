"""The command line: one verb for each thing this project does.

Every mistake of a user ends as one line on standard error and exit status 2. Modules are imported
by the verb that needs them, so that `--help` answers at once.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from mnv2_jax.errors import UsageError

OVERRIDE = "--config."
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class Verb(NamedTuple):
    """What a verb is for, its arguments, and the function that runs it."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status: 0, 2 for a mistake, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        rest, overrides = split_overrides(argv)
        if rest and rest[0].startswith("--config"):
            rest.insert(0, "train")
        arguments = _parser().parse_args(rest)
        if overrides and arguments.run is not _train:
            raise UsageError(f"override {overrides[0]!r} belongs to the verb train.")
        arguments.overrides, arguments.argv = overrides, argv
        arguments.run(arguments)
    except UsageError as error:
        print(f"mnv2: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt as interrupt:
        print(f"mnv2: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return EXIT_INTERRUPTED
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


def _account_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=float, default=1.0, help="width multiplier (1.0)")
    parser.add_argument(
        "--resolution", default="224", metavar="N|HxW", help="of the image, e.g. 160 or 192x256"
    )
    parser.add_argument("--classes", type=int, default=1000, help="size of the classifier (1000)")
    parser.add_argument("--spec", default="imagenet", help="architecture: imagenet, small_32, …")
    parser.add_argument("--output-stride", type=int, help="8, 16 or 32; later strides dilate")
    parser.add_argument("--channels", type=int, default=3, help="of the image (3)")
    parser.add_argument("--layers", action="store_true", help="one row a layer, not one a block")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _account(arguments: argparse.Namespace) -> None:
    from mnv2_jax.accounting import account, bottleneck_memory
    from mnv2_jax.models.build import build
    from mnv2_jax.models.spec import unroll

    size = parse_size(arguments.resolution)
    if arguments.channels < 1:
        raise UsageError(f"--channels is {arguments.channels}: give at least 1.")
    model = build(
        width=arguments.width,
        num_classes=arguments.classes,
        spec=arguments.spec,
        output_stride=arguments.output_stride,
        in_channels=arguments.channels,
    )
    result = account(model, (1, *size, arguments.channels))
    layout = unroll(model.width, model.output_stride, model.spec)

    def peak(split: int | None) -> int:
        return max(n for _, n in bottleneck_memory(layout, size, split, arguments.channels))

    whole, parts = peak(None), {t: peak(t) for t in range(1, 6)}
    table = result if arguments.layers else result.grouped()
    if arguments.json:
        print(
            json.dumps(
                {
                    "params": result.params,
                    "kernel_params": result.kernel_params,
                    "madds": result.madds,
                    "activation_sum": result.activation_sum,
                    "activation_peak": whole,
                    "activation_peak_split": parts,
                    "layers": [layer._asdict() for layer in table.layers],
                }
            )
        )
        return
    print(table.markdown())
    print(f"\nparameters               {result.params:>14,}")
    print(f"  without norms, biases  {result.kernel_params:>14,}")
    print(f"multiply-adds            {result.madds:>14,}")
    print("peak activation memory of one image at 16 bit (Sec. 5.1)")
    print(f"  layer by layer         {whole * 2 / 1000:>14,.0f} kB")
    for t, elements in parts.items():
        print(f"  every block in {t} parts {elements * 2 / 1000:>15,.0f} kB")


def parse_size(text: str) -> tuple[int, int]:
    """Reads a resolution.

    >>> parse_size("224"), parse_size("192x256")
    ((224, 224), (192, 256))
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match or int(match[1]) < 1 or int(match[2] or 1) < 1:
        raise UsageError(
            f"resolution is {text!r}: write a number of pixels, or HxW, such as 192x256."
        )
    height = int(match[1])
    return height, int(match[2] or height)


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:PRESET]",
        help="an experiment, e.g. experiments/ablate_linear.py:fashion_mnist; "
        "--config.KEY=VALUE changes one of its keys",
    )
    parser.add_argument("--workdir", help="folder of the results (runs/NAME)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _train(arguments: argparse.Namespace) -> None:
    from mnv2_jax import host
    from mnv2_jax.config import load_config
    from mnv2_jax.train.sweep import default_workdir, run_sweep

    config = load_config(arguments.config, arguments.overrides)
    host.keep_freed_memory()
    host.use_compilation_cache()
    if config.sweep.at_once != 1 and len(config.sweep.seeds) > 1:
        host.split_cpu(host.cores())  # seeds are independent, so each core takes some
    chosen = arguments.workdir or default_workdir(config, arguments.overrides)
    workdir = Path(chosen).expanduser().absolute()
    command = ["python", "main.py", *arguments.argv]
    report = run_sweep(config, workdir, command, arguments.quiet)
    text = report.read_text()
    print(text)
    print(f"report, plot, logs and models are in {workdir}")


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    _model_argument(parser)
    parser.add_argument("--data", required=True, help="data set, e.g. fashion_mnist or folder")
    parser.add_argument("--split", default="test", help="train or test (test)")
    parser.add_argument("--root", help="folder of the data; embedded sets take none")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _evaluate(arguments: argparse.Namespace) -> None:
    from mnv2_jax import host
    from mnv2_jax.data import open_source
    from mnv2_jax.predict import evaluate
    from mnv2_jax.train.saved import load_model

    host.use_compilation_cache()
    source = open_source(arguments.data, arguments.split, arguments.root)
    scores = evaluate(load_model(arguments.model), source)
    if arguments.json:
        print(json.dumps({"images": len(source), **scores}))
        return
    print(f"{len(source):,} images of {arguments.data}, split {arguments.split}")
    for name, value in scores.items():
        print(f"{name:>10}  {value:.4f}")


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    _model_argument(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--top", type=int, default=5, help="how many classes to show (5)")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _predict(arguments: argparse.Namespace) -> None:
    from mnv2_jax import host
    from mnv2_jax.predict import predict
    from mnv2_jax.train.saved import load_model

    if arguments.top < 1:
        raise UsageError(f"--top is {arguments.top}: give at least 1.")
    host.use_compilation_cache()
    for path, guesses in predict(load_model(arguments.model), arguments.images, arguments.top):
        if arguments.json:
            print(json.dumps({"image": path, "classes": [guess._asdict() for guess in guesses]}))
            continue
        print(path)
        for guess in guesses:
            print(f"  {guess.probability:6.1%}  {guess.name}")


def _model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="folder of a trained model: runs/NAME/VARIANT/seed_N"
    )


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of a TensorFlow Datasets set, e.g. fashion_mnist")
    parser.add_argument("--root", help="folder for prepared sets (~/tensorflow_datasets)")
    parser.add_argument("--idx", help="folder of Fashion-MNIST's IDX files, if not Debian's")


def _prepare(arguments: argparse.Namespace) -> None:
    from mnv2_jax.data import prepare

    place = prepare(arguments.name, arguments.root, arguments.idx)
    print(f"prepared in {place}: train on it with --config.data.name=tfds:{arguments.name}")


VERBS = {
    "train": Verb(
        "Run an experiment: train its variants with its seeds, and report.",
        _train_arguments,
        _train,
    ),
    "evaluate": Verb(
        "Score a trained model on a data set.",
        _evaluate_arguments,
        _evaluate,
    ),
    "predict": Verb(
        "Name what single images show, by a trained model.",
        _predict_arguments,
        _predict,
    ),
    "prepare": Verb(
        "Make a data set readable through TensorFlow Datasets.",
        _prepare_arguments,
        _prepare,
    ),
    "account": Verb(
        "Parameters, multiply-adds and memory of a network, block by block.",
        _account_arguments,
        _account,
    ),
}
