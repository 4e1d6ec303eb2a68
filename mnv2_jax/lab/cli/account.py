"""`mnv2 account`: counts what a network costs."""

import argparse
import json
import re
from typing import Any

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.cli.verb import Verb, json_argument, megabytes


def _account_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--width", type=float, default=1.0, help="width multiplier (1.0)")
    add("--resolution", default="224", metavar="N|HxW", help="image size, e.g. 160 or 192x256")
    add("--classes", type=int, default=1000, help="number of classes (1000)")
    add("--spec", default="imagenet", help="architecture: imagenet, small_32, … (imagenet)")
    add("--output-stride", type=int, help="8, 16 or 32; later strides dilate instead")
    add("--channels", type=int, default=3, help="channels of the image (3)")
    add("--layers", action="store_true", help="print a row for each layer, not for each block")
    add(
        "--memory-plan",
        type=megabytes,
        metavar="MB",
        help="say instead how one image is predicted with so many megabytes of temporaries",
    )
    json_argument(parser)


def _account(arguments: argparse.Namespace) -> None:
    from mnv2_jax.accounting import account, bottleneck_memory
    from mnv2_jax.models.build import build
    from mnv2_jax.models.spec import unroll

    size = parse_size(arguments.resolution)
    if arguments.channels < 1:
        raise UsageError(f"--channels is {arguments.channels}: give at least 1.")
    model = build(
        width=arguments.width, num_classes=arguments.classes, spec=arguments.spec,
        output_stride=arguments.output_stride, in_channels=arguments.channels,
    )  # fmt: skip
    if arguments.memory_plan is not None:
        return _memory_plan(model, size, arguments.memory_plan, arguments.json)
    result = account(model, (1, *size, arguments.channels))
    layout = unroll(model.width, model.output_stride, model.spec)

    def peak(split: int | None) -> int:
        return max(n for _, n in bottleneck_memory(layout, size, split, arguments.channels))

    whole, parts = peak(None), {t: peak(t) for t in range(1, 6)}
    table = result if arguments.layers else result.grouped()
    if arguments.json:
        totals = ("params", "kernel_params", "madds", "activation_sum")
        content = {name: getattr(result, name) for name in totals}
        content |= {"activation_peak": whole, "activation_peak_split": parts}
        print(json.dumps(content | {"layers": [layer._asdict() for layer in table.layers]}))
        return
    print(table.markdown())
    print(f"\nparameters               {result.params:>14,}")
    print(f"  without norms, biases  {result.kernel_params:>14,}")
    print(f"multiply-adds            {result.madds:>14,}")
    print("peak activation memory of one image at 16 bit (Sec. 5.1)")
    print(f"  layer by layer         {whole * 2 / 1000:>14,.0f} kB")
    for t, elements in parts.items():
        print(f"  every block in {t} parts {elements * 2 / 1000:>15,.0f} kB")


def _memory_plan(model: Any, size: tuple[int, int], memory: float, json_: bool) -> None:
    """Prints what `folded_apply(..., memory=...)` does, in float32."""
    import jax

    from mnv2_jax.inference.graph import structure
    from mnv2_jax.inference.stream import cost, flow, schedule

    images = jax.ShapeDtypeStruct((1, *size, model.in_channels), np.float32)
    graph, _ = structure(model, jax.eval_shape(model.init, jax.random.key(0), images), size)
    groups = schedule(graph, memory)
    (whole, plain), (bytes_, work) = cost(graph, []), cost(graph, groups)
    told: dict[str, Any] = {
        "temporaries": bytes_, "of_the_whole": round(bytes_ / whole, 3),
        "work": round(work / plain, 2),
    }  # fmt: skip
    for first, last, rows in groups:
        steps = flow(graph.nodes[first : last + 1], rows)
        names = {"first": graph.nodes[first].name, "last": graph.nodes[last].name}
        told |= names | {"rows": rows, "steps": steps.fill + steps.steps}
    if json_:
        print(json.dumps(told))
        return
    in_rows = "{first} to {last}: {rows} row(s) of the last at a time, in {steps} steps"
    print(in_rows.format(**told) if groups else "every tensor is computed whole")
    print(
        f"estimated temporaries  {bytes_ / 1e6:.2f} MB, {bytes_ / whole:.2f} of the whole tensors'"
    )
    print(f"estimated work         {work / plain:.2f} times")


def parse_size(text: str) -> tuple[int, int]:
    """Reads a resolution.

    >>> parse_size("224"), parse_size("192x256")
    ((224, 224), (192, 256))
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    height, width = (int(side) for side in match.groups(match[1])) if match else (0, 0)
    if height < 1 or width < 1:
        want = "write a number of pixels, or HxW, such as 192x256"
        raise UsageError(f"resolution is {text!r}: {want}.")
    return height, width


ACCOUNT = Verb(
    "Count a network's parameters, multiply-adds and memory, block by block.",
    _account_arguments, _account,
    ("mnv2 account --width 0.75 --resolution 160", "mnv2 account --layers --json",
     "mnv2 account --memory-plan 1.5"),
)  # fmt: skip
