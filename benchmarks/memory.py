"""What do blocks computed in t parts (Sec. 5.1) save in memory, and cost in time?"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import paired, save
from mnv2_jax import MobileNetV2
from mnv2_jax.accounting import bottleneck_memory
from mnv2_jax.models.spec import unroll

MEGABYTE = 1e6


def compiled_with(split, size):
    """One image's logits with every block in `split` parts, and the variables to call it with."""
    model = MobileNetV2(split=split)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, size, size, 3)), jnp.float32)
    variables = jax.jit(MobileNetV2().init)(jax.random.key(0), images[:, :32, :32])
    return jax.jit(model.apply).lower(variables, images).compile(), variables, images


def sweep(size, splits, rounds):
    """Temporary memory as XLA allocates it and time in turn, for each number of parts."""
    programs = {t: compiled_with(t, size) for t in splits}
    seconds = {t: [] for t in splits}
    for _ in range(rounds + 1):  # the first one warms up
        for t, (run, variables, images) in programs.items():
            start = time.perf_counter()
            run(variables, images).block_until_ready()
            seconds[t].append(time.perf_counter() - start)
    counted = {
        t: max(n for _, n in bottleneck_memory(unroll(), (size, size), None if t == 1 else t, 3))
        for t in splits
    }
    temp = {t: programs[t][0].memory_analysis().temp_size_in_bytes for t in splits}
    whole = splits[0]
    return [
        {
            "t": t,
            "temporaries MB": f"{temp[t] / MEGABYTE:.2f}",
            "of unsplit": f"{temp[t] / temp[whole]:.2f}",
            "the formula's MB": f"{4 * counted[t] / MEGABYTE:.2f}",
            "median ms": f"{1e3 * statistics.median(seconds[t][1:]):.1f}",
            "time of unsplit": f"{paired(seconds[t][1:], seconds[whole][1:]):.2f}",
        }
        for t in splits
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 1024])
    parser.add_argument("--splits", nargs="+", type=int, default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    tables = {
        f"{size}×{size}": sweep(size, arguments.splits, arguments.rounds)
        for size in arguments.sizes
    }
    note = (
        "MobileNetV2 1.0, one image, float32. Temporaries are those of XLA's `memory_analysis()`; "
        "the formula is Sec. 5.1's, of inputs and outputs of the largest block."
    )
    save("memory", "Memory-efficient inference (Sec. 5.1)", tables, note)


if __name__ == "__main__":
    main()
