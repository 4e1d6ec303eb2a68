"""What do blocks computed in parts (Sec. 5.1) save in memory, and cost in time?"""

import argparse
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import paired, save
from mnv2_jax import MobileNetV2, fold, folded_apply

BANDS = {"bands of 2 MiB": 1 << 21, "bands of 1 MiB": 1 << 20, "bands of 0.5 MiB": 1 << 19}


def programs(size, splits):
    """The network compiled for one image, by how its blocks are cut, with its arguments."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, size, size, 3)), jnp.float32)
    variables = jax.jit(MobileNetV2().init)(jax.random.key(0), images[:, :32, :32])
    folded = fold(MobileNetV2(), variables)
    cut = {f"{t} groups of channels": MobileNetV2(split=t).apply for t in splits}
    by_rows = {"whole": np.inf, **BANDS}
    forms = {
        name: (apply, variables) for name, apply in {"whole": MobileNetV2().apply, **cut}.items()
    }
    forms |= {
        f"folded, {name}": (partial(folded_apply, MobileNetV2(), band=band), folded)
        for name, band in by_rows.items()
    }
    return {
        name: (jax.jit(apply).lower(given, images).compile(), given, images)
        for name, (apply, given) in forms.items()
    }


def sweep(size, splits, rounds):
    """Temporary memory as XLA allocates it and time in turn, for each form."""
    compiled = programs(size, splits)
    seconds = {name: [] for name in compiled}
    for _ in range(rounds + 1):  # the first one warms up
        for name, (run, given, images) in compiled.items():
            start = time.perf_counter()
            run(given, images).block_until_ready()
            seconds[name].append(time.perf_counter() - start)
    temp = {name: c.memory_analysis().temp_size_in_bytes for name, (c, *_) in compiled.items()}
    rows = []
    for name in compiled:
        whole = "folded, whole" if name.startswith("folded") else "whole"
        rows.append(
            {
                "": name,
                "temporaries MB": f"{temp[name] / 1e6:.2f}",
                "of whole": f"{temp[name] / temp[whole]:.2f}",
                "median ms": f"{1e3 * statistics.median(seconds[name][1:]):.1f}",
                "time of whole": f"{paired(seconds[name][1:], seconds[whole][1:]):.2f}",
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 1024])
    parser.add_argument("--splits", nargs="+", type=int, default=[2, 3, 4, 5, 6])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    tables = {
        f"{size}×{size}": sweep(size, arguments.splits, arguments.rounds)
        for size in arguments.sizes
    }
    note = (
        "MobileNetV2 1.0, one image, float32. Temporaries are those of XLA's `memory_analysis()`. "
        "Groups of channels are the paper's t; bands of rows cut every block whose expanded tensor "
        "is above the given size."
    )
    save("memory", "Memory-efficient inference (Sec. 5.1)", tables, note)


if __name__ == "__main__":
    main()
