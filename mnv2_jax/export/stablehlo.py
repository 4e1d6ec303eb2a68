"""A graph as StableHLO by `jax.export`: any batch, one file for CPU, CUDA and TPU.

`jax.export.deserialize(bytes).call(images)` runs it again, in this version of JAX or a later one
within the six months that JAX promises. The format keeps no names of classes.
"""

import re
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from jax import export

from mnv2_jax.models.graph import Graph, run

PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(path: Path, graph: Graph) -> None:
    """Writes a graph for all of `PLATFORMS`; on CPUs in the form that is fastest there."""
    pixels = graph.nodes[0].op == "normalize"
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct(
        (batch, *graph.input_shape[1:]), np.uint8 if pixels else np.float32
    )
    exported = export.export(jax.jit(lambda x: run(graph, x)), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())


def count_operations(exported: export.Exported) -> Counter[str]:
    """Counts the operations of an exported program by name, all platforms together."""
    found = Counter(re.findall(r'[\s"]stablehlo\.(\w+)', exported.mlir_module()))
    del found["return"]  # the end of a region
    return found
