"""`mnv2 train`, `finish`, `verify` and `prepare`: experiments, what they leave, their data."""

import argparse
import json
from pathlib import Path

from mnv2_jax.errors import UsageError
from mnv2_jax.files import user_path
from mnv2_jax.lab.cli.verb import Verb, json_argument

FINETUNE = "--config experiments/finetune.py --config.data.root="


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    add, file = parser.add_argument, "FILE[:PRESET]"
    add("experiment", nargs="?", metavar=file, help="as --config")
    what = "an experiment, e.g. experiments/ablate_linear.py:fashion_mnist; "
    add("--config", metavar=file, help=what + "--config.KEY=VALUE changes one of its keys")
    add("--workdir", help="folder of the results (runs/NAME)")
    add("--quiet", action="store_true", help="no progress bar")
    json_argument(parser)
    what = "the same command on each; processes started by Slurm or Open MPI find each other"
    add = parser.add_argument_group("several hosts", what).add_argument
    add("--distributed", action="store_true", help="find the others of a TPU pod")
    add("--coordinator", metavar="ADDRESS:PORT", help="where host 0 is")
    add("--hosts", type=int, metavar="N", help="number of processes")
    add("--host", type=int, metavar="I", help="index of this one, from 0")
    add("--wait", type=int, default=300, metavar="SECONDS", help="for all to come (300)")


def _train(arguments: argparse.Namespace) -> None:
    from mnv2_jax.lab.devices import hosts as cluster
    from mnv2_jax.lab.devices import process as host
    from mnv2_jax.lab.train.config import load_experiment
    from mnv2_jax.lab.train.report import RESULTS
    from mnv2_jax.lab.train.sweep import check_variants, default_workdir, run_sweep

    config, tracker = load_experiment(_experiment(arguments), arguments.overrides)
    check_variants(config)
    host.keep_freed_memory()
    host.use_compilation_cache()
    if arguments.wait < 1:
        raise UsageError(f"--wait is {arguments.wait}: give at least one second.")
    if config.sweep.at_once != 1 and len(config.sweep.seeds) > 1:
        host.split_cpu(host.cores())  # seeds are independent, so each core takes some
    chosen = arguments.workdir
    chosen = default_workdir(config, arguments.overrides) if chosen is None else chosen
    workdir = user_path(chosen, "--workdir").absolute()
    command = ["python", "main.py", *arguments.argv]
    given = (arguments.coordinator, arguments.hosts, arguments.host)
    with cluster.connected(*given, arguments.distributed, arguments.wait):
        report = run_sweep(config, workdir, command, arguments.quiet, tracker)
        if report is not None and arguments.json:
            print(report.with_name(RESULTS).read_text())
        elif report is not None:
            print(report.read_text())
            print(f"report, plot, logs and models are in {workdir}")


def _experiment(arguments: argparse.Namespace) -> str:
    given = arguments.config or arguments.experiment
    if given is None or (arguments.config and arguments.experiment):
        missing = "--config FILE is missing: " * (given is None)
        raise UsageError(
            f"{missing}train takes one experiment, such as --config experiments/ablate_linear.py; "
            f"on images of your own, {FINETUNE}FOLDER."
        )
    if Path(given).is_dir():
        raise UsageError(
            f"{given!r} is a folder, and train takes an experiment: for images there, {FINETUNE}"
            f"{given}; a training goes on when its own command is given again."
        )
    return given


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of a TensorFlow Datasets set, e.g. fashion_mnist")
    parser.add_argument("--root", help="folder for prepared sets (~/tensorflow_datasets)")
    parser.add_argument("--idx", help="folder of Fashion-MNIST's IDX files, if not Debian's")


def _prepare(arguments: argparse.Namespace) -> None:
    from mnv2_jax.lab.data import prepare

    place = prepare(arguments.name, arguments.root, arguments.idx)
    root = f" --config.data.root={arguments.root}" if arguments.root else ""
    print(f"prepared in {place}: train on it with --config.data.name=tfds:{arguments.name}{root}")


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", help="folder of a training, such as runs/ablate_linear")
    json_argument(parser)


def _verify(arguments: argparse.Namespace) -> None:
    from mnv2_jax.lab.verify import verify

    problems = []
    for finding in verify(user_path(arguments.workdir, "folder").absolute()):
        problems.append(finding.problem)
        line = f"{finding.what:<24} {finding.path:<48} {finding.problem or 'sound'}"
        print(json.dumps(finding._asdict()) if arguments.json else line, flush=True)
    if damaged := len(list(filter(None, problems))):
        where = f"{damaged} of {len(problems)} parts of {arguments.workdir}"
        raise UsageError(
            f"{where} are damaged, see above. The same command goes on from the newest sound "
            "checkpoint, and mends logs, results and models by what it holds; a seed is trained "
            "anew where its seed_N and checkpoints are removed."
        )


def _finish_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", help="folder of a training, such as runs/ablate_linear")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="the best checkpoint, not the newest")
    which.add_argument("--at", type=int, metavar="STEP", help="the checkpoint of that step")
    json_argument(parser)


def _finish(arguments: argparse.Namespace) -> None:
    from mnv2_jax.lab.train.finish import finish

    workdir = user_path(arguments.workdir, "folder").absolute()
    for made in finish(workdir, arguments.best, arguments.at):
        scores = ", ".join(f"{name} {value:.4g}" for name, value in made["metrics"].items())
        said = f"{made['model']}: step {made['step']}, {scores or 'not evaluated there'}"
        print(json.dumps(made) if arguments.json else said, flush=True)


FINISH = Verb(
    "Make the models of a training as far as it is; it can still go on.",
    _finish_arguments, _finish, ("mnv2 finish runs/mine", "mnv2 finish runs/mine --best"),
)  # fmt: skip
TRAIN = Verb(
    "Run an experiment: train its variants with its seeds, and report. Goes on where it stopped.",
    _train_arguments,
    _train,
    (
        "mnv2 train --config experiments/ablate_linear.py",
        "mnv2 train --config experiments/tradeoff.py:fashion_mnist_small --config.epochs=3",
        f"mnv2 train {FINETUNE}IMAGES --config.init.model=MODEL",
    ),
)
PREPARE = Verb(
    "Make a data set readable through TensorFlow Datasets.",
    _prepare_arguments, _prepare, ("mnv2 prepare fashion_mnist",),
)  # fmt: skip
VERIFY = Verb(
    "Read every checkpoint, log, model and result of a training, and say what is sound.",
    _verify_arguments, _verify, ("mnv2 verify runs/ablate_linear",),
)  # fmt: skip
