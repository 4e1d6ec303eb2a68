"""Writes models for other runtimes: StableHLO, ONNX and LiteRT, in float or in int8.

Every format is written from the same `Graph` (batch norm folded, plain convolutions), and every
written file is run in its own runtime and compared with the network.
"""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.export.litert import c_source, write_litert
from mnv2_jax.export.onnx import write_onnx
from mnv2_jax.export.runtimes import C, Opened, open_litert, open_onnx, open_stablehlo
from mnv2_jax.export.stablehlo import write_stablehlo
from mnv2_jax.files import replacing, writable_place
from mnv2_jax.inference.graph import option, trace
from mnv2_jax.inference.quantize import Quantized, equalize, quantize, simulate
from mnv2_jax.models.build import look_up
from mnv2_jax.models.dialect import SLIM, normalize

__all__ = ["FORMATS", "Report", "export"]


class Format(NamedTuple):
    """A file format: how it is written and opened, and whether it can hold int8."""

    write: Callable[..., None]
    open: Callable[[Path, int], Opened]
    int8: bool


FORMATS = {
    "stablehlo": Format(write_stablehlo, open_stablehlo, int8=False),
    "onnx": Format(write_onnx, open_onnx, int8=True),
    "litert": Format(write_litert, open_litert, int8=True),
}
CHECKED = 2  # images that a file is compared on


class Report(NamedTuple):
    """What was written, and how it did in its own runtime."""

    file: str
    bytes: int
    runtime: str  # what it was run in
    operations: dict[str, int]  # how often it has each
    difference: dict[str, float]  # of every output, relative to the float network's largest value
    # How far outputs in int8 are from our simulation: (largest, mean) steps of their scale.
    simulated: dict[str, tuple[float, float]]
    latency_ms: float  # median of one image on one thread


def export(
    model: Any,
    variables: Any,
    size: tuple[int, int],
    to: str,
    path: str | Path,
    classes: Sequence[str] = (),
    preprocessing: bool = False,
    calibration: Sequence[np.ndarray] = (),
    equalized: bool = False,
    progress: Callable[[str], None] = lambda line: None,
    integers: bool = False,
) -> Report:
    """Writes a network in a format, runs the file and compares.

    Args:
      model: a `MobileNetV2`, `SSDLite` or `DeepLabV3`, or another module of images, which are then
        in the range of its `dialect` (-1..1 where it has none). The file has its raw outputs.
      variables: its `params` and `batch_stats`.
      size: height and width of the images.
      to: one of `FORMATS`.
      path: of the file; an older one is replaced once the new one is complete. To litert, one that
        ends in .h, .c or .cc is an array in C.
      classes: their names, kept in the file as JSON; so are the anchors of a detector.
      preprocessing: take uint8 pixels, and bring them to the dialect's input range inside.
      calibration: batches of uint8 pixels, to write the network in int8.
      equalized: with `calibration`, applies cross-layer equalization first.
      progress: called with a line before the network is compiled.
      integers: with `calibration`, to litert: take and give int8, as microcontrollers do.

    Raises:
      UsageError: the format is unknown, cannot hold int8 or an operation of the network, its
        packages are not installed, or the file cannot be written.
    """
    path, format_ = writable_place(path, "file to write"), look_up("export format", to, FORMATS)
    if len(calibration) and not format_.int8:
        able = ", ".join(name for name, other in FORMATS.items() if other.int8)
        raise UsageError(f"{to} is written in float: for int8 export to {able}.")
    if integers and not (to == "litert" and len(calibration)):
        raise UsageError("integers at both ends are for int8 files to litert: calibrate one.")
    progress(f"compiling for images of {size[0]}x{size[1]}, which may take a while …")
    dialect = option(model, "dialect", SLIM)
    graph = trace(model, variables, size, dialect if preprocessing else None)

    def entering(pixels: Any) -> np.ndarray:
        return np.asarray(pixels if preprocessing else normalize(pixels, dialect))

    quantized = None
    if len(calibration):
        quantized = quantize(equalize(graph) if equalized else graph, map(entering, calibration))
        graph = quantized.graph
    known, count = {1: ("logits",), 2: ("codes", "logits")}, len(graph.outputs)
    outputs = known.get(count) or tuple(f"output_{i}" for i in range(count))
    notes: dict[str, Any] = {"classes": list(classes)} if classes else {}
    if hasattr(model, "anchors"):
        notes["anchors"] = np.asarray(model.anchors(size), float).round(6).tolist()
    with replacing(path) as partial:
        format_.write(partial, graph, outputs, notes, quantized, *[integers] * integers)
        if to == "litert" and path.suffix in C:
            partial.write_text(c_source(partial.read_bytes(), classes))
    if len(calibration):
        pixels = calibration[0][:CHECKED]  # int8 holds for images like those it was calibrated on
    else:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (CHECKED, *graph.input_shape[1:])).astype(np.uint8)
    expected = jax.jit(model.apply)(variables, normalize(jnp.asarray(pixels), dialect))
    opened, given = format_.open(path, 1), entering(pixels)
    results = opened.call(given)
    compared = zip(outputs, map(np.asarray, jax.tree.leaves(expected)), results, strict=True)
    return Report(
        file=str(path),
        bytes=path.stat().st_size,
        runtime=opened.runtime,
        operations=dict(opened.operations.most_common()),
        difference={
            name: float(np.abs(ours - theirs).max() / np.abs(ours).max())
            for name, ours, theirs in compared
        },
        simulated={} if quantized is None else _steps_apart(quantized, outputs, given, results),
        latency_ms=latency(functools.partial(opened.call, given[:1])),
    )


def _steps_apart(
    quantized: Quantized, outputs: Sequence[str], images: np.ndarray, results: list[np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Returns how far outputs are from the simulation, as (largest, mean) steps of int8."""
    wanted = jax.jit(lambda x: simulate(quantized, x))(images)
    apart = {}
    names = quantized.graph.outputs
    for output, name, ours, theirs in zip(outputs, names, wanted, results, strict=True):
        steps = np.abs(np.asarray(ours) - theirs) / quantized.activations[name].scale
        apart[output] = (float(steps.max()), float(steps.mean()))
    return apart


def latency(call: Callable[[], Any], runs: int = 15) -> float:
    """Returns the median time of a call in ms, after two calls that are not counted."""
    times = []
    for _ in range(runs + 2):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[2:])
