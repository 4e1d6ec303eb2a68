"""How much memory does an int8 file take on a microcontroller, by LiteRT Micro's own planner?

pip install tflite-micro; python -m benchmarks.arena
"""

import argparse
import os
import re
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.exported import randomized
from benchmarks.harness import save
from mnv2_jax import account, build
from mnv2_jax.export import export
from mnv2_jax.export.runtimes import open_litert
from mnv2_jax.inference import stream
from mnv2_jax.inference.graph import trace

KB = 1024  # as memories of microcontrollers and MCUNetV2 count
BUDGET = 256 * KB
NETWORKS = (
    (0.3, 64, 1000), (0.35, 96, 2), (0.35, 96, 1000), (0.35, 112, 1000), (0.35, 128, 1000),
    (0.35, 144, 1000), (0.5, 128, 1000), (1.0, 224, 1000),
)  # fmt: skip
# MCUNetV2 (arXiv 2110.15352, Fig. 1), and MCUNet's list of models, measured with TinyEngine.
PUBLISHED = {(0.35, 144): "308", (1.0, 224): "1372; in 4×4 patches 172"}


def allocations(path, image):
    """Runs a file in LiteRT Micro: its output, and bytes of tensors and of what stays."""
    from tflite_micro.python.tflite_micro import runtime  # pyright: ignore[reportMissingImports]

    interpreter = runtime.Interpreter.from_file(str(path))
    interpreter.set_input(image, 0)
    interpreter.invoke()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as told:
        os.dup2(told.fileno(), 2)
        interpreter.print_allocations()
        os.dup2(terminal, 2)
        told.seek(0)
        text = told.read().decode()
    head, tail = (int(n) for n in re.findall(r"allocation (?:head|tail) (\d+) bytes", text))
    return interpreter.get_output(0), head, tail


def in_rows(graph):
    """Bytes of int8 values: all whole, and by the schedule that takes least; its multiply-adds.

    Integer kernels read no padded copies, and a step costs nothing but its multiply-adds.
    """
    ends = stream.block_ends(graph)
    rows = [(k, n) for k in ends for n in stream.ROWS if n <= graph.nodes[k].shape[1] // 2]
    with mock.patch.multiple(stream, _padded=lambda *_: 0, OVERHEAD=0):
        whole, madds = stream.cost(graph, [], itemsize=1)
        least, more = min(stream.cost(graph, [stream.Group(0, *r)], itemsize=1) for r in rows)
    return whole, least, more / madds


def row_of(width, size, classes, folder):
    model, rng = build(width=width, num_classes=classes), np.random.default_rng(1)
    variables, path = randomized(model, size), folder / "model.tflite"
    pixels = rng.integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    report = export(model, variables, (size, size), "litert", path, calibration=[pixels])
    given = rng.uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
    logits, head, tail = allocations(path, given)
    theirs = open_litert(path, 1).call(given)[0]
    whole, rows, work = in_rows(trace(model, variables, (size, size)))
    assert whole <= head, "LiteRT Micro's planner has less than what is live"
    image = 3 * size**2
    fits = head + tail <= BUDGET, rows + image + tail <= BUDGET
    return {
        "": f"{width:g} at {size}, {classes} classes",
        "M multiply-adds": f"{account(model, (1, size, size, 3)).madds / 1e6:.1f}",
        "file kB": f"{report.bytes / KB:.0f}",
        "tensors kB": f"{head / KB:.0f}",
        "live kB": f"{whole / KB:.0f}",
        "what stays kB": f"{tail / KB:.0f}",
        "from LiteRT": f"{np.abs(logits - theirs).max() / np.abs(theirs).max():.0e}",
        "in rows kB": f"{rows / KB:.0f}",
        "image kB": f"{image / KB:.0f}",
        "multiply-adds in rows": f"{work:.2f}",
        "in 256 kB": "as it is" if fits[0] else "in rows" if fits[1] else "no",
        "published kB": PUBLISHED.get((width, size), "–"),
    }


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row_of(*network, Path(folder)) for network in NETWORKS]
    note = (
        "int8 files of `mnv2 export --to litert --int8` in LiteRT Micro, with its reference "
        "kernels, which need no scratch memory; a kB is 1024 bytes. Tensors are what its planner "
        "shares out, the float image of the first operation included, and live is what is needed "
        "at once; what stays are structures and the scales of channels, with the pointers of a "
        "machine of 64 bits. Kernels and biases stay in the file. The difference from LiteRT is of "
        "the largest logit. In rows is what is live at once by the schedule of "
        "`mnv2_jax.inference.stream` that takes least, which LiteRT Micro cannot run: one byte for "
        "each value, counted as for the whole, and the output of the first blocks twice. "
        "Accumulators are not counted, which integer kernels have for one output at a time; nor is "
        "the image, which may come in rows too. In 256 kB says whether tensors and what stays fit, "
        "or what is in rows, with the whole image and what stays. Published are MCUNetV2's figures "
        "for whole layers and for patches, and what TinyEngine takes of a network with fewer "
        "channels at its end."
    )
    save("arena", "int8 on a microcontroller", {"LiteRT Micro": rows}, note)


if __name__ == "__main__":
    main()
