"""`mnv2 account`: counts what a network costs."""

import argparse
import json
import re

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.cli.verb import Verb, json_argument


def _account_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--width", type=float, default=1.0, help="width multiplier (1.0)")
    add("--resolution", default="224", metavar="N|HxW", help="image size, e.g. 160 or 192x256")
    add("--classes", type=int, default=1000, help="number of classes (1000)")
    add("--spec", default="imagenet", help="architecture: imagenet, small_32, … (imagenet)")
    add("--output-stride", type=int, help="8, 16 or 32; later strides dilate instead")
    add("--channels", type=int, default=3, help="channels of the image (3)")
    add("--layers", action="store_true", help="print a row for each layer, not for each block")
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
    ("mnv2 account --width 0.75 --resolution 160", "mnv2 account --layers --json"),
)  # fmt: skip
