"""Processes that tests start: the command line, and several hosts on one machine."""

import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAIN = [sys.executable, str(ROOT / "main.py")]


def environment(cache: Path, devices: int = 1, optimized: bool = False) -> dict[str, str]:
    """The environment of a process on some CPU devices, with a compilation cache in `cache`."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    ours |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "NPROC": "1",  # XLA's bits depend on the number of threads
        "PYTHONPATH": str(ROOT),
    }
    return ours if optimized else ours | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def spawn(command: Sequence[str], env: dict[str, str], cwd: Path = ROOT) -> subprocess.Popen:
    """Starts a process whose output and errors are kept."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(list(command), env=env, cwd=cwd, text=True, **pipes)


def finish(
    processes: Sequence[subprocess.Popen], timeout: float = 300
) -> list[tuple[str, str, int]]:
    """Waits for processes; returns output, errors and status of each, and leaves none running."""
    try:
        return [
            (*process.communicate(timeout=timeout), process.returncode) for process in processes
        ]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def free_port() -> int:
    """A port that nobody listens on, and below those that systems hand out to connections."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as free:
            if free.connect_ex(("localhost", port)):
                return port
