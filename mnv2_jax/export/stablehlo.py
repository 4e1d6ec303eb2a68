"""A graph as StableHLO by `jax.export`: any batch, one file for CPU, CUDA and TPU.

`jax.export.deserialize(bytes).call(images)` runs it again, in this version of JAX or a later one
within the six months that JAX promises. The format has no place for names of classes, or for a
detector's anchors, but is a flatbuffer, which nobody reads beyond its end: they follow there as a
ZIP, as TensorFlow Lite's metadata keeps its labels. `unzip -p model.stablehlo classes.json` prints
them.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax import export

from mnv2_jax.export.runtimes import need
from mnv2_jax.inference.operations import Graph, run

PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(
    path: Path,
    graph: Graph,
    outputs: Sequence[str] = (),
    notes: Mapping[str, Any] = MappingProxyType({}),
    quantized: None = None,
) -> None:
    """Writes a graph for all of `PLATFORMS`; on CPUs in the form that is fastest there.

    Each of the `notes` is kept as JSON in a member NAME.json of a ZIP at the end. There is no place
    for `outputs` and `quantized`, which other formats take.
    """
    need("flatbuffers", "export")  # by jax.export
    pixels = graph.nodes[0].op == "normalize"
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct(
        (batch, *graph.input_shape[1:]), np.uint8 if pixels else np.float32
    )
    exported = export.export(jax.jit(lambda x: run(graph, x)), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())
    if notes:
        with zipfile.ZipFile(path, "a") as archive:
            for name, note in notes.items():
                archive.writestr(zipfile.ZipInfo(f"{name}.json"), json.dumps(note))
