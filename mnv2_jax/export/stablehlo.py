"""A graph as StableHLO by `jax.export`: any batch, one file for CPU, CUDA and TPU.

`jax.export.deserialize(bytes).call(images)` runs it again, in this version of JAX or a later one
within the six months that JAX promises. The format has no place for names of classes, but is a
flatbuffer, which nobody reads beyond its end: they follow there as a ZIP, as TensorFlow Lite's
metadata keeps its labels, and `unzip -p model.stablehlo classes.json` prints them.
"""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax import export

from mnv2_jax.export.runtimes import need
from mnv2_jax.inference.operations import Graph, run

PLATFORMS = ("cpu", "cuda", "tpu")
CLASSES = "classes.json"


def write_stablehlo(
    path: Path,
    graph: Graph,
    outputs: Sequence[str] = (),
    classes: Sequence[str] = (),
    quantized: None = None,
) -> None:
    """Writes a graph for all of `PLATFORMS`; on CPUs in the form that is fastest there.

    The names of classes are kept as JSON in the member `CLASSES` of a ZIP at the end. There is no
    place for `outputs` and `quantized`, which other formats take.
    """
    need("flatbuffers", "export")  # by jax.export
    pixels = graph.nodes[0].op == "normalize"
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct(
        (batch, *graph.input_shape[1:]), np.uint8 if pixels else np.float32
    )
    exported = export.export(jax.jit(lambda x: run(graph, x)), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())
    if classes:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(zipfile.ZipInfo(CLASSES), json.dumps(list(classes)))
