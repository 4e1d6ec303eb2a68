"""Settings of this process, made before JAX starts its backend: memory, CPU devices, caches.

XLA takes its temporary memory anew for every step on a CPU and gives it back after; by default
glibc returns it to the kernel, which zeroes every page again. Memory that stays in the process
makes a small training step 1.4 times as fast.
"""

import ctypes
import functools
import os
import sys
from pathlib import Path

# glibc's mallopt parameters, from malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
NEVER = -1


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for the next allocation; returns whether it did.

    Does nothing where glibc is not the allocator, or where the user's environment sets it up.
    """
    if sys.platform != "linux" or any(
        name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")
        for name in os.environ
    ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library
    settings = {
        M_MMAP_MAX: 0,  # large blocks come from the heap, where they can be kept
        M_TRIM_THRESHOLD: NEVER,
        M_TOP_PAD: 1 << 26,
        M_ARENA_MAX: 1,  # one heap, so that what one thread frees another can use
    }
    return all([mallopt(name, value) for name, value in settings.items()])


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split_cpu(devices: int) -> None:
    """Makes the CPU appear as several devices; call before JAX is used.

    Independent work, such as several seeds, then runs on all cores. An environment that says how
    many CPU devices there are is left alone.
    """
    import jax

    if "JAX_NUM_CPU_DEVICES" not in os.environ and "device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        jax.config.update("jax_num_cpu_devices", devices)


@functools.cache
def prediction_options() -> dict[str, str]:
    """Returns options for `jax.jit(..., compiler_options=...)` under which prediction is fastest.

    On CPUs XLA gives matrix products to YNNPACK, which wins in training; the few rows that a
    predicted image has are faster in Eigen, which also spreads them over cores
    (benchmarks/infer_cpu.py has both). Empty elsewhere, and where XLA does not know the option.
    """
    import jax

    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless JAX is told of another place."""
    import jax

    if not jax.config.values["jax_compilation_cache_dir"]:
        place = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mnv2_jax/xla"
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            return  # a home that cannot be written only costs time
        jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
