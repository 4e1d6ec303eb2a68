"""`mnv2 evaluate` and `mnv2 predict`: a trained model at work."""

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mnv2_jax.errors import UsageError
from mnv2_jax.files import write_file
from mnv2_jax.lab.cli.verb import Verb, json_argument, model_argument

if TYPE_CHECKING:
    from mnv2_jax.lab.model_folder import TrainedModel

EXAMPLES = 8


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    parser.add_argument("--data", required=True, help="data set, e.g. fashion_mnist or folder")
    parser.add_argument("--split", default="test", help="train or test (test)")
    parser.add_argument("--root", help="folder of the data; embedded sets take none")
    parser.add_argument(
        "--examples",
        metavar="PNG",
        help="draws eight images, what is true above what a detector or segmenter sees",
    )
    parser.add_argument(
        "--scales",
        nargs="+",
        type=float,
        default=[1.0],
        metavar="S",
        help="sizes at which a segmenter looks at each image, averaged (1); the paper's: "
        "0.5 0.75 1 1.25 1.5 1.75",
    )
    parser.add_argument("--flip", action="store_true", help="and at each one's mirror image")
    parser.add_argument(
        "--out", metavar="DIR", help="keeps the scores in DIR/evaluation.json, for `mnv2 paper`"
    )
    json_argument(parser)


def _evaluate(arguments: argparse.Namespace) -> None:
    from mnv2_jax.lab import predict, regions
    from mnv2_jax.lab.data import open_source
    from mnv2_jax.lab.devices import process as host
    from mnv2_jax.lab.model_folder import load_model
    from mnv2_jax.lab.tasks.draw import write_picture
    from mnv2_jax.lab.tasks.segment import ONCE, Views

    host.use_compilation_cache()
    host.split_cpu(host.cores())  # images are independent, so each core takes some
    views = Views(tuple(arguments.scales), arguments.flip)
    source = open_source(arguments.data, arguments.split, arguments.root)
    saved = load_model(arguments.model)
    classifier = saved.task.name == "classify"
    if arguments.examples and classifier:
        raise UsageError("--examples draws boxes and labels, and this model is a classifier.")
    if classifier and views != ONCE:
        raise UsageError("--scales and --flip are for segmenters, and this model is a classifier.")
    if classifier:
        scores = predict.evaluate(saved, source)
    else:
        scores = regions.evaluate(saved, source, views=views)
    if arguments.examples:
        picture = regions.examples(saved, source, EXAMPLES, views=views)
        write_picture(picture, Path(arguments.examples))
    if arguments.out:
        facts = {
            "data": arguments.data,
            "split": arguments.split,
            "images": len(source),
            "scores": scores,
            "views": views._asdict(),
            "folder": arguments.model,
            "command": shlex.join(["python", "main.py", *arguments.argv]),
        }
        predict.write_evaluation(Path(arguments.out), saved, facts)
    if arguments.json:
        print(json.dumps({"images": len(source), **scores}))
        return
    print(f"{len(source):,} images of {arguments.data}, split {arguments.split}")
    for name, value in scores.items():
        print(f"{name:>10}  {value:.4f}")


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--top", type=int, default=5, help="how many classes to show (5)")
    parser.add_argument(
        "--threshold", type=float, default=0.3, help="smallest score of a box (0.3)"
    )
    parser.add_argument(
        "--out", default="predictions", help="folder for boxes and labels drawn (predictions)"
    )
    json_argument(parser)


def _predict(arguments: argparse.Namespace) -> None:
    from mnv2_jax.lab.devices import process as host
    from mnv2_jax.lab.model_folder import load_model
    from mnv2_jax.lab.predict import predict

    if arguments.top < 1:
        raise UsageError(f"--top is {arguments.top}: give at least 1.")
    if not 0 <= arguments.threshold <= 1:
        raise UsageError(f"--threshold is {arguments.threshold}: give a score from 0 to 1.")
    host.use_compilation_cache()
    saved = load_model(arguments.model)
    if saved.task.name != "classify":
        _draw(saved, arguments)
        return
    for path, guesses in predict(saved, arguments.images, arguments.top):
        if arguments.json:
            print(json.dumps({"image": path, "classes": [guess._asdict() for guess in guesses]}))
            continue
        print(path)
        for guess in guesses:
            print(f"  {guess.probability:6.1%}  {guess.name}")


def _draw(saved: "TrainedModel", arguments: argparse.Namespace) -> None:
    """Writes NAME.png with the regions drawn, and NAME.json with the same as values."""
    from mnv2_jax.lab.regions import look
    from mnv2_jax.lab.tasks.draw import write_picture

    folder = Path(arguments.out)
    stems = [Path(path).stem for path in arguments.images]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise UsageError(f"several images are called {twice!r}: predict them one by one.")
    for path, seen in look(saved, arguments.images, arguments.threshold):
        place = folder / f"{Path(path).stem}.png"
        write_picture(seen.picture, place)
        content = json.dumps({"image": path, **seen.values})
        write_file(place.with_suffix(".json"), content + "\n")
        print(content if arguments.json else f"{path}: {place}")


EVALUATE = Verb(
    "Score a trained model on a data set.",
    _evaluate_arguments,
    _evaluate,
    (
        "mnv2 evaluate --model runs/ablate_linear/linear/seed_0 --data digits",
        "mnv2 evaluate --model MODEL --data folder --root my_images --split val",
        "mnv2 evaluate --model models/v1 --data imagenet2012 --root IMAGENET --out runs/v1",
    ),
)
PREDICT = Verb(
    "Say what images show, by a trained model: classes, boxes or labels of pixels.",
    _predict_arguments,
    _predict,
    (
        "mnv2 predict --model runs/ablate_linear/linear/seed_0 image.png",
        "mnv2 predict --model MODEL --top 1 --json *.jpg",
    ),
)
