"""What do blocks computed in parts (Sec. 5.1) save in memory, and cost in time?"""

import argparse
import contextlib
import ctypes
import re
import statistics
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import paired, save
from mnv2_jax import MobileNetV2, UsageError, fold, folded_apply
from mnv2_jax.inference.graph import structure
from mnv2_jax.inference.stream import cost, schedule

BANDS = {"bands of 2 MiB": 1 << 21, "bands of 1 MiB": 1 << 20, "bands of 0.5 MiB": 1 << 19}
SHARES = (0.4, 0.2, 0.15, 0.13, 0.1)  # budgets, of what the whole takes by estimate
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
    graph, _ = structure(MobileNetV2(), jax.eval_shape(lambda: variables), (size, size))
    whole, _ = cost(graph, [])
    for memory in (round(share * whole, -4) for share in SHARES):
        with contextlib.suppress(UsageError):  # less than the least
            schedule(graph, memory)
            apply = partial(folded_apply, MobileNetV2(), memory=memory)
            forms[f"folded, rows within {memory / 1e6:.2f} MB"] = apply, folded
    return {
        name: (jax.jit(apply).lower(given, images).compile(), given, images)
        for name, (apply, given) in forms.items()
    }


def resident(field):
    """Bytes of this process, by a field of its status; NaN where there is none."""
    found = (
        re.search(rf"^{field}:\s*(\d+) kB", STATUS.read_text(), re.M) if STATUS.exists() else None
    )
    return 1024 * int(found[1]) if found else float("nan")


def risen(call):
    """Bytes by which the process grows at most during a call, beyond what it returns to."""
    if CLEAR.exists():
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)  # what it keeps would be used again unseen
        CLEAR.write_text("5")  # the peak from here on
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


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
    peaks = {
        name: statistics.median(
            risen(lambda c=c: c[0](*c[1:]).block_until_ready()) for _ in range(5)
        )
        for name, c in compiled.items()
    }
    rows = []
    for name in compiled:
        whole = "folded, whole" if name.startswith("folded") else "whole"
        rows.append(
            {
                "": name,
                "temporaries MB": f"{temp[name] / 1e6:.2f}",
                "of whole": f"{temp[name] / temp[whole]:.2f}",
                "process grows by MB": f"{peaks[name] / 1e6:.1f}",
                "median ms": f"{1e3 * statistics.median(seconds[name][1:]):.1f}",
                "time of whole": f"{paired(seconds[name][1:], seconds[whole][1:]):.2f}",
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 1024])
    parser.add_argument("--splits", nargs="+", type=int, default=[2, 3, 4, 5, 6])
    parser.add_argument("--name", default="memory", help="of the result (memory)")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    tables = {
        f"{size}×{size}": sweep(size, arguments.splits, arguments.rounds)
        for size in arguments.sizes
    }
    note = (
        "MobileNetV2 1.0, one image, float32. Temporaries are those of XLA's `memory_analysis()`. "
        "Groups of channels are the paper's t; bands of rows cut every block whose expanded tensor "
        "is above the given size; rows stream through the first blocks within the given budget "
        "(`folded_apply(..., memory=...)`). The process grows by what a call has at its peak "
        "beyond what was there before it (Linux, glibc), or by less where the allocator has kept "
        "memory of an earlier call."
    )
    save(arguments.name, "Memory-efficient inference (Sec. 5.1)", tables, note)


if __name__ == "__main__":
    main()
