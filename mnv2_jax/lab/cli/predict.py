"""`mnv2 evaluate`, `mnv2 predict` and `mnv2 explain`: a trained model at work."""

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnv2_jax.errors import UsageError, one_line
from mnv2_jax.files import json_text, replacing, writable_place, write_file
from mnv2_jax.lab.cli.verb import Verb, json_argument, megabytes, model_argument, trained_model

if TYPE_CHECKING:
    from mnv2_jax.lab.tasks.task import TrainedModel

EXAMPLES = 8


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    parser.add_argument("--data", required=True, help="data set, e.g. fashion_mnist or folder")
    parser.add_argument(
        "--split", help="train, test, or test@3: split anew by seed 3 (what training held out)"
    )
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
        help="sizes at which a classifier or segmenter looks at each image, averaged (1); the "
        "paper's, for segmenters: 0.5 0.75 1 1.25 1.5 1.75",
    )
    parser.add_argument("--flip", action="store_true", help="and at each one's mirror image")
    parser.add_argument(
        "--out", metavar="DIR", help="keeps the scores in DIR/evaluation.json, for `mnv2 paper`"
    )
    parser.add_argument(
        "--report", metavar="HTML", help="page of scores by class, mistakes and worst pictures"
    )
    json_argument(parser)


def _evaluate(arguments: argparse.Namespace) -> None:
    from mnv2_jax.lab import predict
    from mnv2_jax.lab.corruptions import evaluate_corruptions
    from mnv2_jax.lab.data import open_source
    from mnv2_jax.lab.data.readers.robust import CORRUPTED
    from mnv2_jax.lab.devices import process as host
    from mnv2_jax.lab.tasks.draw import write_picture
    from mnv2_jax.lab.tasks.task import TestTimeAugmentation

    for name, folder in (("out", True), ("examples", False), ("report", False)):
        if (given := getattr(arguments, name)) is not None:
            setattr(arguments, name, writable_place(given, f"--{name}", folder, parents=True))
    host.use_compilation_cache()
    host.split_cpu(host.cores())  # images are independent, so each core takes some
    views = TestTimeAugmentation(tuple(arguments.scales), arguments.flip)
    model = trained_model(arguments)
    name, held_out = model.description.get("held_out", (arguments.data, "test"))
    held_out = held_out if name == arguments.data else "test"
    arguments.split = arguments.split or held_out
    if "@" in held_out and arguments.split != held_out:
        print(f"note: this model has not seen {held_out} of {name} alone", file=sys.stderr)
    if (arguments.data, arguments.split) == (CORRUPTED, "test"):
        for given in ("examples", "report"):
            if getattr(arguments, given):
                raise UsageError(f"--{given} shows images of one set: not those of imagenet_c.")
        images, scores = evaluate_corruptions(model, arguments.root, arguments.out, views)
        by_class = []
    else:
        source = open_source(arguments.data, arguments.split, arguments.root)
        if arguments.examples:
            picture = predict.examples(model, source, EXAMPLES, augmentation=views)
            write_picture(picture, arguments.examples)
        images, place = len(source), arguments.root or arguments.data
        if arguments.report:
            from mnv2_jax.lab.evaluation_report import write_report

            facts = {"Data": f"{place}, split {arguments.split}", "Model": arguments.model}
            facts["Command"] = shlex.join(["python", "main.py", *arguments.argv])
            folder = Path(arguments.model)
            found = write_report(arguments.report, model, source, facts, folder, views=views)
        else:
            found = predict.evaluator(model, augmentation=views)(source)
        scores, by_class = found.scores, found.classes
    if arguments.out:
        facts = {
            "data": arguments.data,
            "split": arguments.split,
            "images": images,
            "scores": scores,
            "classes": by_class,
            "views": views._asdict(),
            "folder": arguments.model,
            "command": shlex.join(["python", "main.py", *arguments.argv]),
        }
        predict.write_evaluation(arguments.out, model, facts)
    if arguments.json:
        print(json_text({"images": images, **scores} | ({"classes": by_class} if by_class else {})))
        return
    place = arguments.root or arguments.data
    print(f"{images:,} images of {place}, split {arguments.split}")
    for name, value in scores.items():
        print(f"{name:>14}  {_text(value)}")
    table = [list(row) for row in by_class[:1]]
    table += [[one_line(_text(cell)) for cell in row.values()] for row in by_class]
    width = max((len(line[0]) for line in table), default=0)
    for name, *cells in table:
        print(f"{name:<{width}}" + "".join(f"{cell:>9}" for cell in cells))


def _text(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    what = "images, videos, or folders of them"
    parser.add_argument("images", nargs="*", metavar="FILE", help=what)
    what = "number of a camera to predict from, 0 for the first, until Ctrl-C"
    parser.add_argument("--camera", type=int, metavar="N", help=what)
    parser.add_argument("--top", type=int, help="how many classes a classifier names (5)")
    parser.add_argument(
        "--threshold", type=float, help="smallest score of a detector's boxes (0.3)"
    )
    parser.add_argument(
        "--out", default="predictions", help="folder for boxes and labels drawn (predictions)"
    )
    what = "most megabytes of the network's temporaries: its first blocks are computed in rows"
    parser.add_argument("--memory", type=megabytes, metavar="MB", help=what)
    json_argument(parser)


def _predict(arguments: argparse.Namespace) -> None:
    from mnv2_jax.lab.data.video import is_video
    from mnv2_jax.lab.devices import process as host
    from mnv2_jax.lab.predict import find_images, predictor, read_image
    from mnv2_jax.lab.tasks.draw import write_picture

    if arguments.top is not None and arguments.top < 1:
        raise UsageError(f"--top is {arguments.top}: give at least 1.")
    if arguments.threshold is not None and not 0 <= arguments.threshold <= 1:
        raise UsageError(f"--threshold is {arguments.threshold}: give a score from 0 to 1.")
    camera = arguments.camera
    if bool(arguments.images) == (camera is not None):
        raise UsageError("give either files and folders to predict, or --camera N.")
    host.use_compilation_cache()
    given = {name: getattr(arguments, name) for name in ("top", "threshold", "memory")}
    settings = {name: value for name, value in given.items() if value is not None}
    model = trained_model(arguments)
    draws = model.task.truth is not None
    out = writable_place(arguments.out, "--out", folder=True) if draws else Path(arguments.out)
    images = find_images(arguments.images, but=out if draws else None)
    images = images if camera is None else [(f"camera {camera}", f"camera_{camera}.mp4")]
    places = _places(images, out) if draws else []  # finds clashes before anything is predicted
    answer, unread = predictor(model, **settings), 0
    for number, (path, name) in enumerate(images):
        try:
            if is_video(name):
                place = places[number] if places else None
                _predict_video(model, answer, path, camera, place, arguments.json)
                continue
            pixels = read_image(path, model.backbone.in_channels)
        except UsageError as error:
            if len(images) == 1:
                raise
            print(f"mnv2: {error}", file=sys.stderr, flush=True)
            unread += 1
            continue
        prediction = answer(pixels)
        content = json_text({"image": path, **prediction.values})
        text = f"{path}\n{prediction.text}"
        if prediction.picture is not None:
            places = places or _places(images, out)
            write_picture(prediction.picture, places[number])
            write_file(places[number].with_suffix(".json"), content + "\n")
            text = f"{path}: {places[number]}"
        print(content if arguments.json else text)
    if unread:
        files = "files" if any(is_video(name) for _, name in images) else "images"
        raise UsageError(f"{unread} of {len(images)} {files} could not be read.")


def _predict_video(
    model: "TrainedModel", answer: Any, path: str, camera: int | None, place: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Prints a row for each frame of a video or camera, and draws a video if there is a place.

    The rows are written beside the drawing. What was predicted before Ctrl-C, or before a frame
    that cannot be read, is whole: as many rows as frames.
    """
    from mnv2_jax.lab.data.image import with_channels
    from mnv2_jax.lab.data.video import open_video
    from mnv2_jax.lab.devices.process import Interrupted, stoppable
    from mnv2_jax.lab.train.log import progress_bar

    frames, failed, quiet = 0, None, not sys.stderr.isatty()
    source = path if camera is None else camera
    with stoppable() as stop, open_video(source) as video, ExitStack() as files:
        stop.told = "stopped: nothing is predicted yet"
        bar = files.enter_context(progress_bar(video.count, 0, path, quiet, "frame"))
        keep = files.enter_context(_drawing(place, video.rate)) if place else None
        try:
            for number, seconds, pixels in video.frames:
                prediction = answer(with_channels(pixels, model.backbone.in_channels))
                stop.at_once = False  # from here on, each frame is written whole
                row = {"video": path, "frame": number, "time": round(seconds, 3)}
                content = json_text({**row, **prediction.values})
                text = f"{path}, frame {number}, {seconds:.3f} s\n{prediction.text}"
                if keep:
                    keep(content, prediction.picture)
                if as_json or not place:
                    bar.write(content if as_json else text)
                    sys.stdout.flush()  # so that a camera's can be followed
                bar.update()
                frames += 1
                if stop():
                    break
        except UsageError as error:
            if not frames:
                raise
            failed = error
    if place and not as_json:
        print(f"{path}: {place}")
    if failed:
        raise failed
    if stop() and camera is None:  # a camera has no other end
        raise Interrupted(f"stopped after {frames:,} frames of {path}", stop.number)


@contextmanager
def _drawing(place: Path, rate: float) -> Iterator[Callable[[str, Any], None]]:
    """Yields a function that adds a row to a file and a picture to the video beside it."""
    from mnv2_jax.lab.data.video import video_writer

    place.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(place.with_suffix(".jsonl")) as rows,
        rows.open("w", encoding="utf-8") as file,
        video_writer(place, rate) as draw,
    ):

        def keep(row: str, picture: Any) -> None:
            file.write(row + "\n")
            draw(picture)

        yield keep


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="a file")
    model_argument(parser)
    parser.add_argument("--class", dest="name", metavar="NAME", help="the likeliest, if left out")
    what = "picture of what the network sees, with the map over it (explanation.png)"
    parser.add_argument("--out", default="explanation.png", metavar="PICTURE", help=what)
    json_argument(parser)


def _explain(arguments: argparse.Namespace) -> None:
    from mnv2_jax.lab.devices import process as host
    from mnv2_jax.lab.explain import explainer
    from mnv2_jax.lab.predict import read_image
    from mnv2_jax.lab.tasks.draw import SHOWN_SIDE, enlarge, write_picture

    out = writable_place(arguments.out, "--out", parents=True)
    if out.suffix.lower() != ".png" or os.path.realpath(out) == os.path.realpath(arguments.image):
        raise UsageError(f"--out is {arguments.out!r}: give the name of a new .png file.")
    host.use_compilation_cache()
    model = trained_model(arguments)
    pixels = read_image(arguments.image, model.backbone.in_channels)
    found = explainer(model)(pixels, arguments.name)
    write_picture(enlarge(found.picture, SHOWN_SIDE), out)
    values = {"image": arguments.image, "class": found.name, "probability": found.probability}
    values |= {"map": found.map.tolist(), "picture": str(out)}
    shown = f"{arguments.image}\n  {found.probability:6.1%}  {found.name}\n{out}"
    print(json_text(values) if arguments.json else shown)


def _places(images: list[tuple[str, str]], folder: Path) -> list[Path]:
    """Returns where the pictures of predictions are written, with their values beside them."""
    from mnv2_jax.lab.data.video import WRITTEN, is_video

    endings = [WRITTEN if is_video(name) else ".png" for _, name in images]
    places = [folder / Path(n).with_suffix(e) for (_, n), e in zip(images, endings, strict=True)]
    times, given = Counter(places), {os.path.realpath(path) for path, _ in images}
    for place in places:
        if times[place] > 1:
            kind = "video" if is_video(place) else "image"
            raise UsageError(f"several {kind}s are called {place.stem!r}: predict them one by one.")
        if os.path.realpath(place) in given:
            raise UsageError(f"{place} is itself to be predicted: give another --out.")
    return places


EVALUATE = Verb(
    "Score a trained model on a data set.",
    _evaluate_arguments,
    _evaluate,
    (
        "mnv2 evaluate --model runs/ablate_linear/linear/seed_0 --data digits",
        "mnv2 evaluate --model MODEL --data folder --root my_images --report report.html",
        "mnv2 evaluate --model models/v1 --data imagenet2012 --root IMAGENET --out runs/v1",
        "mnv2 evaluate --model models/v1 --data imagenet_c --root IMAGENET_C --out runs/v1_c",
    ),
)
PREDICT = Verb(
    "Predict what images and videos show with a trained model: classes, boxes, labels of pixels.",
    _predict_arguments,
    _predict,
    (
        "mnv2 predict --model runs/ablate_linear/linear/seed_0 image.png",
        "mnv2 predict --model MODEL --top 1 --json my_images more.jpg",
        "mnv2 predict --model MODEL --json clip.mp4 > frames.jsonl",
        "mnv2 predict --model MODEL --memory 2MB image.png",
    ),
)
EXPLAIN = Verb(
    "Show where in an image a classifier sees its class.",
    _explain_arguments,
    _explain,
    (
        "mnv2 explain image.jpg --model MODEL --out map.png",
        "mnv2 explain image.jpg --model MODEL --class cat",
    ),
)
