"""`mnv2 evaluate` and `mnv2 predict`: a trained model at work."""

import argparse
import json

from mnv2_jax.cli.verb import Verb, json_argument, model_argument
from mnv2_jax.errors import UsageError


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    parser.add_argument("--data", required=True, help="data set, e.g. fashion_mnist or folder")
    parser.add_argument("--split", default="test", help="train or test (test)")
    parser.add_argument("--root", help="folder of the data; embedded sets take none")
    json_argument(parser)


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
    model_argument(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--top", type=int, default=5, help="how many classes to show (5)")
    json_argument(parser)


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


EVALUATE = Verb(
    "Score a trained model on a data set.",
    _evaluate_arguments,
    _evaluate,
)
PREDICT = Verb(
    "Name what single images show, by a trained model.",
    _predict_arguments,
    _predict,
)
