"""This process: signals to stop, and what is set before JAX starts: memory, CPU devices, caches.

XLA takes its temporary memory anew for every step on a CPU and gives it back after; by default
glibc returns it to the kernel, which zeroes every page again. Memory that stays in the process
makes a small training step 1.4 times as fast.
"""

import ctypes
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mnv2_jax.files import cache_folder

# glibc's mallopt parameters, from malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
NEVER = -1


def keep_freed_memory() -> bool:
    """Makes glibc, unless the environment sets it up, keep freed memory; returns whether it did."""
    theirs = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if sys.platform != "linux" or any(name.startswith(theirs) for name in os.environ):
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
    """Makes the CPU appear as several devices, unless the environment says how many there are.

    Independent work, such as several seeds, then runs on all cores. Call it before JAX is used.
    """
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" not in os.environ and "device_count" not in flags:
        jax.config.update("jax_num_cpu_devices", devices)


@functools.cache
def prediction_options() -> dict[str, str]:
    """Returns options for `jax.jit(..., compiler_options=...)` under which prediction is fastest.

    On CPUs XLA gives matrix products to YNNPACK, which wins in training; the few rows of an image
    are faster in Eigen, on all cores (benchmarks/infer_cpu.py). Empty where that is unknown.
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
        place = cache_folder() / "xla"
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            return  # a home that cannot be written only costs time
        jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


class Interrupted(KeyboardInterrupt):
    """A stop on a signal, with everything saved; `number` is the signal's."""

    def __init__(self, message: str, number: int | None = None):
        super().__init__(message)
        self.number = number or signal.SIGTERM


class Stop:
    """A request to stop, by signal; it is remembered until something stops."""

    number: int | None = None  # of the first signal that came
    at_once = True  # whether nothing has to be saved first, so that the signal itself stops
    told = "stopped: the same command goes on"  # what is said then

    def __call__(self) -> bool:
        return self.number is not None

    def check(self) -> None:
        """Raises `Interrupted` if a stop was requested and nothing has to be saved first."""
        if self() and self.at_once:
            raise Interrupted(self.told, self.number)

    def note(self, number: int, frame: Any) -> None:
        """Handles a signal; a second Ctrl-C leaves at once."""
        if self() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number
        self.check()


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Makes SIGTERM, SIGHUP and Ctrl-C requests to stop; those that are ignored stay so."""
    stop, before = Stop(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop.note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
