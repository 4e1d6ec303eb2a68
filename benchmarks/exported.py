"""What do exported files weigh, compute and cost beside the network they came from?

    python -m benchmarks.exported

Writes every network in every format, float and int8, runs each file in its own runtime, and writes
`results/exported.md`. Weights and statistics are random: speed and rounding do not depend on them.
"""

import argparse
import functools
import os
import tempfile
from pathlib import Path

import jax
import numpy as np

from mnv2_jax import build, fold, folded_apply, normalize
from mnv2_jax.export import FORMATS, export, latency
from mnv2_jax.markdown import markdown_table
from mnv2_jax.models.build import build_deeplab, build_ssdlite

NETWORKS = {
    "classifier, 224": (build(), 224),
    "SSDLite, 320": (build_ssdlite(), 320),
    "DeepLabv3, 257": (build_deeplab(), 257),
}
RESULTS = Path(__file__).parent / "results" / "exported.md"
HEADER = ("network", "file", "MB", "operations", "difference", "steps of int8", "ms")


def randomized(model, size):
    """Variables with every leaf random, statistics too; kernels by their fan-in."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            found = rng.normal(size=leaf.shape) * (1.3 / np.prod(leaf.shape[:-1])) ** 0.5
        else:
            low, high = (0.5, 1.5) if name in ("scale", "var") else (-0.5, 0.5)
            found = rng.uniform(low, high, leaf.shape)
        return found.astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(fill, shapes)


def rows_of(name, model, size, folder):
    """Exports one network in every way."""
    variables = randomized(model, size)
    pixels = np.random.default_rng(1).integers(0, 256, (8, size, size, 3)).astype(np.uint8)
    for to, format_ in FORMATS.items():
        for int8 in (False, True)[: 1 + format_.int8]:
            found = export(
                model, variables, (size, size), to, folder / to, calibration=[pixels] * int8
            )
            counted = sorted(found.operations.items(), key=lambda item: -item[1])
            listed = ", ".join(f"{count} {operation}" for operation, count in counted[:4])
            apart = max((mean for _, mean in found.simulated.values()), default=None)
            yield (
                name,
                f"{to}{' int8' * int8} ({found.runtime})",
                f"{found.bytes / 1e6:.1f}",
                f"{sum(found.operations.values())}: {listed}, …",
                f"{max(found.difference.values()):.0e}",
                "–" if apart is None else f"{apart:.2f}",
                f"{found.latency_ms:.1f}",
            )


def our_row(model, size):
    """The folded network in JAX, as the exported files are timed."""
    folded = fold(model, randomized(model, size))
    images = np.asarray(normalize(np.zeros((1, size, size, 3), np.uint8), model.dialect))
    call = jax.jit(functools.partial(folded_apply, model))
    time = latency(lambda: jax.block_until_ready(call(folded, images)))
    return ("classifier, 224", "none: folded, in JAX", "–", "–", "–", "–", f"{time:.1f}")


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = [our_row(*NETWORKS["classifier, 224"])]
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, size) in NETWORKS.items():
            rows += rows_of(name, model, size, Path(folder))
    text = (
        "# Exported files beside the network\n\n"
        "Largest difference from the float network, of its largest output; int8: mean distance "
        "from our simulation; median time of one image, files on one thread, JAX on all.\n\n"
        f"{markdown_table(HEADER, rows)}\n\n- command: `python -m benchmarks.exported`\n"
        f"- {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f} with this benchmark: above "
        "the number of cores, the times are upper bounds\n"
    )
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
