"""`mnv2 export`: a model as a file for another runtime, checked in that runtime."""

import argparse
import sys
from typing import Any

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.files import json_text, writable_place, write_file
from mnv2_jax.lab.cli.account import parse_size
from mnv2_jax.lab.cli.verb import Verb, json_argument, model_argument, trained_model


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    parser.add_argument("--to", required=True, help="stablehlo, onnx, litert (tflite) or web")
    what = "file to write, of litert also in C (.h, .c, .cc); the folder of the page for web"
    parser.add_argument("path", help=what)
    parser.add_argument(
        "--runtime",
        metavar="DIST",
        help="of web: folder dist of the npm package onnxruntime-web (default: npm fetches it)",
    )
    parser.add_argument(
        "--preprocessing",
        action="store_true",
        help="let the file take pixels 0..255, and bring them to the network's range itself",
    )
    parser.add_argument("--size", metavar="N|HxW", help="size of the images (default: the model's)")
    parser.add_argument(
        "--int8",
        metavar="DATA",
        help="write 8-bit integers, calibrated on images of this data set, e.g. "
        "fashion_mnist_small or folder",
    )
    parser.add_argument("--root", help="folder of the data of --int8; embedded sets take none")
    parser.add_argument(
        "--split", default="train", help="split of the data of --int8 (default: train)"
    )
    parser.add_argument(
        "--images", type=int, default=256, help="number of images to calibrate on (default: 256)"
    )
    parser.add_argument(
        "--equalize",
        action="store_true",
        help="even out the channels first, which makes ReLU6 a ReLU",
    )
    what = "let a litert file of --int8 take and give 8-bit integers, as microcontrollers do"
    parser.add_argument("--integers", action="store_true", help=what)
    json_argument(parser)


def _export(arguments: argparse.Namespace) -> None:
    from mnv2_jax.export import FORMATS, export
    from mnv2_jax.lab.devices import process as host
    from mnv2_jax.lab.web import MODEL, page_files

    to = {"tflite": "litert"}.get(arguments.to, arguments.to)
    if to not in (known := (*FORMATS, "web")):
        raise unknown("export format", to, known)
    web = to == "web"
    path = writable_place(arguments.path, "folder of the page" if web else "file to write", web)
    if arguments.runtime is not None and not web:
        raise UsageError("--runtime is of a page: give --to web too.")
    if arguments.images < 1:
        raise UsageError(f"--images is {arguments.images}: give at least 1.")
    if arguments.equalize and not arguments.int8:
        raise UsageError("--equalize changes only int8 files: give --int8 DATA too.")
    if arguments.integers and not (arguments.int8 and to == "litert"):
        raise UsageError("--integers changes only int8 files of litert: give --int8 DATA too.")
    host.use_compilation_cache()
    saved = trained_model(arguments)
    size = parse_size(arguments.size) if arguments.size else (saved.resolution, saved.resolution)
    files = {}
    if web:
        if size[0] != size[1]:
            raise UsageError(f"the page takes square images, and --size is {arguments.size}.")
        files = page_files(saved, size[0], arguments.runtime, _say)
        path.mkdir(parents=True, exist_ok=True)
    report = export(
        saved.model,
        saved.variables,
        size,
        "onnx" if web else to,
        path / MODEL if web else path,
        saved.classes,
        arguments.preprocessing or web,
        _calibration(arguments, saved, size) if arguments.int8 else (),
        arguments.equalize,
        progress=_say,
        integers=arguments.integers,
    )
    for name, content in files.items():
        write_file(path / name, content)
    if web:
        _say(f"see it at http://localhost:8000 with: python -m http.server --directory {path}")
    if arguments.json:
        print(json_text(report._asdict()))
        return
    print(f"wrote {report.file}: {report.bytes / 1e6:.2f} MB, run by {report.runtime}")
    counted = ", ".join(f"{count} {name}" for name, count in report.operations.items())
    print(f"  operations  {counted}")
    for output, difference in report.difference.items():
        print(f"  {output:<10}  largest difference {difference:.1e} of the largest value")
    for output, (largest, mean) in report.simulated.items():
        print(
            f"  {output:<10}  from our simulation {mean:.2f} steps of int8, at most {largest:.0f}"
        )
    print(f"  latency     {report.latency_ms:.2f} ms for one image on one thread")
    if arguments.int8 and to == "onnx":
        print("  note        on x86, int8 makes ONNX Runtime slower and LiteRT faster")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _calibration(arguments: argparse.Namespace, saved: Any, size: tuple[int, int]) -> list[Any]:
    """Reads images, prepared as they are for this model's evaluation."""
    from mnv2_jax.inference.quantize import first_images
    from mnv2_jax.lab.data import eval_batches, open_source
    from mnv2_jax.lab.predict import image_transform

    if size[0] != size[1]:
        raise UsageError(f"--int8 calibrates on square images, and --size is {arguments.size}.")
    source = open_source(arguments.int8, arguments.split, arguments.root)
    batches = eval_batches(
        source,
        batch_size=min(64, arguments.images, len(source)),
        transform=image_transform(saved, size[0]),
    )
    images = (rows["image"][rows["mask"] > 0] for rows in batches)
    return list(first_images(images, arguments.images))


EXPORT = Verb(
    "Write a model as StableHLO, ONNX, LiteRT or a web page, and check it in its own runtime.",
    _export_arguments,
    _export,
    (
        "mnv2 export --model MODEL --to onnx model.onnx",
        "mnv2 export --model MODEL --to litert --int8 folder --root my_images model.tflite",
        "mnv2 export --model MODEL --to litert --int8 folder --root my_images --integers model.h",
        "mnv2 export --model MODEL --to web page",
    ),
)
