"""`mnv2 import`, `mnv2 export-weights` and `mnv2 doctor`: weights of other projects, in and out."""

import argparse
import functools
import json
import re
import sys
from typing import Any

from mnv2_jax.errors import UsageError
from mnv2_jax.files import user_path, writable_place
from mnv2_jax.lab.cli.verb import Verb, json_argument, model_argument, trained_model

# Options of `load_weights` in messages, as they are written here.
FLAGS = {
    "drop_head=True": "--drop-head", "drop_head": "--drop-head", "ema=False": "--raw",
    "ema=True": "without --raw", "drop_background=True": "import without --keep-background",
    "output_stride": "--output-stride",
}  # fmt: skip
SOURCE = "without ECOSYSTEM, the source library is inferred from the tensor names"
SWITCHES = {
    "raw": "import raw weights where the file also has averages",
    "drop-head": "leave out the classifier, for fine-tuning",
    "keep-background": "keep the classifier's class \"background\", or a detector's unused ids",
}


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part]


OPTIONS: dict[str, tuple[Any, str, str]] = {
    "sha256": (str, "DIGEST", "expected sha256; a file with another one is rejected"),
    "classes-file": (str, "FILE", "names of the classes, one a line"),
    "output-stride": (int, "S", "of a segmenter: 8, 16 or 32 (default: as beside the file)"),
    "resolution": (int, "N", "height and width of the images (default: as beside the file)"),
    "mean": (_floats, "X", "the network takes (pixel / 255 - mean) / std; one number or three"),
    "std": (_floats, "X", "see --mean"),
}


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    what = f"published weights, by name, such as timm:mobilenetv2_140, or by file; {SOURCE}"
    parser.add_argument("source", metavar="NAME|[ECOSYSTEM:]FILE", help=what)
    parser.add_argument("folder", help="folder to write the model to")
    for name, help in SWITCHES.items():
        parser.add_argument(f"--{name}", action="store_true", help=help)
    for name, (kind, metavar, help) in OPTIONS.items():
        count = "+" if kind is _floats else None
        parser.add_argument(f"--{name}", type=kind, nargs=count, metavar=metavar, help=help)
    json_argument(parser)


def _import(arguments: argparse.Namespace) -> None:
    from mnv2_jax.lab.model_folder import describe_weights, save_model
    from mnv2_jax.weights.inspect import check_statistics, parts

    folder = writable_place(arguments.folder, "folder", folder=True)
    loaded = _load(arguments)
    segments = hasattr(loaded.model, "backbone")
    offset = 0 if segments else loaded.model.class_offset
    classes = list(loaded.names[offset:])
    if arguments.classes_file is not None:
        classes = read_classes(arguments.classes_file, (loaded.classes or 0) - offset)
    if segments and not classes:
        classes = [f"class {i}" for i in range(loaded.classes)]
    save_model(folder, loaded.variables, describe_weights(loaded, classes))
    if loaded.left_out:
        print(f"left out, with their tensors: {parts(loaded.left_out)}", file=sys.stderr)
    if (statistics := check_statistics(loaded)).change:
        print(f"{statistics.found}: {statistics.change}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"folder": str(folder), "task": loaded.task, "sha256": loaded.sha256}))
        return
    print(f"sha256 {loaded.sha256}")
    does = f"python main.py predict --model {folder} IMAGE"
    if loaded.task == "classify" and not loaded.classes:
        does = f"features, to start a training from by --config.init.model={folder}"
    print(f"wrote {folder}: {does}", file=sys.stderr)


def _load(arguments: argparse.Namespace) -> Any:
    """Loads weights as they can be used here: without background, on images that are read."""
    from mnv2_jax.weights import load_weights
    from mnv2_jax.weights.published import resolve, with_names

    mean, std = (
        None if given is None else [number for part in given for number in part]
        for given in (arguments.mean, arguments.std)
    )
    try:
        load = functools.partial(
            load_weights,
            resolve(arguments.source),
            arguments.sha256,
            drop_head=arguments.drop_head,
            ema=not arguments.raw,
            output_stride=arguments.output_stride,
            resolution=arguments.resolution,
            mean=mean,
            std=std,
        )
        loaded = load()
        if loaded.nameless and not arguments.keep_background:
            loaded = load(drop_background=True)
    except UsageError as error:
        raise UsageError(_in_flags(str(error))) from error
    if loaded.backbone.in_channels not in (1, 3):
        raise UsageError(
            f"{arguments.source!r} takes images of {loaded.backbone.in_channels} channels, and the "
            "images that are read here have 1 or 3: use load_weights in Python."
        )
    if loaded.classes == 1 and loaded.task != "detect":
        return _two_classes(loaded)
    return with_names(loaded)


def _in_flags(text: str) -> str:
    return functools.reduce(lambda t, o: re.sub(rf"\b{o}\b", FLAGS[o], t), FLAGS, text)


def _two_classes(loaded: Any) -> Any:
    """Makes a network of one output, whose sigmoid is a probability, one of two classes.

    The softmax of (0, z) is the sigmoid of z; of one output it is 1 for every image.
    """
    import numpy as np

    head = loaded.variables["params"]["classifier"].items()
    head = {name: np.concatenate([np.zeros_like(v), v], axis=-1) for name, v in head}
    params = {**loaded.variables["params"], "classifier": head}
    variables = {**loaded.variables, "params": params}
    return loaded._replace(model=loaded.model.clone(num_classes=2), variables=variables, names=())


def read_classes(path: str, count: int) -> list[str]:
    """Reads the names of `count` classes, one a line."""
    from mnv2_jax.lab.data.readers.files import read_lines

    names = read_lines(user_path(path, "--classes-file"))
    if len(names) == count + 1 and names[0].lower() == "background":
        return names[1:]
    if len(names) != count:
        raise UsageError(
            f"{path!r} names {len(names)} classes and the classifier has {count}, without the "
            "background: write one name a line."
        )
    return names


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    what = "library that names and orders the tensors: slim, keras, torchvision, timm, hf, …"
    parser.add_argument("--to", required=True, metavar="ECOSYSTEM", help=what)
    parser.add_argument("path", help="file to write: .safetensors or .npz; for keras also .h5")


def _export(arguments: argparse.Namespace) -> None:
    from mnv2_jax.lab.tasks import DETECT, SEGMENT
    from mnv2_jax.weights import export_weights

    path = writable_place(arguments.path, "file to write")
    saved = trained_model(arguments)
    if saved.task is DETECT:
        raise UsageError(
            f"{arguments.model!r} is a detector: only classifiers and segmenters can be exported "
            "to another library."
        )
    export_weights(saved.model, saved.variables, arguments.to, path)
    print(f"wrote {path}")
    if saved.task is SEGMENT and arguments.to == "hf":
        stride = saved.model.backbone.output_stride
        print(f"load it with MobileNetV2Config(output_stride={stride})", file=sys.stderr)


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    what = f"weights by published name or by file; {SOURCE}"
    parser.add_argument("checkpoint", metavar="NAME|[ECOSYSTEM:]FILE", help=what)
    json_argument(parser)


def _doctor(arguments: argparse.Namespace) -> None:
    from mnv2_jax.weights import inspect_weights

    findings = inspect_weights(arguments.checkpoint)
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in findings]))
        return
    for finding in findings:
        print(f"{finding.topic:>13}  {finding.found}")
        if finding.change:
            print(f"{'':>13}  -> {_in_flags(finding.change)}")


IMPORT = Verb(
    "Turn published weights into a model of this project.",
    _import_arguments,
    _import,
    ("mnv2 import torchvision models/v1", "mnv2 import mobilenet_v2-b0353104.pth models/v1"),
)
EXPORT_WEIGHTS = Verb(
    "Write a model's weights under the names of another library.",
    _export_arguments,
    _export,
    ("mnv2 export-weights --model models/v1 --to timm v1.safetensors",),
)
DOCTOR = Verb(
    "Describe a file of weights and what has to agree with it.",
    _doctor_arguments,
    _doctor,
    ("mnv2 doctor mobilenet_v2-b0353104.pth",),
)
