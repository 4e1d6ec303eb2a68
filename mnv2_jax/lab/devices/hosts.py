"""Several hosts that train as one: connecting them, and agreeing before anyone waits for anyone.

A host that fails alone leaves the others in a collective operation that never ends, and hosts that
differ in a constant compute a wrong sum without a word. So what could differ is compared before the
first step, and what can fail on one host (`together`) fails on all.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from mnv2_jax.errors import UsageError, first_line

# Where programs that start processes tell each of them how many there are.
STARTERS = {"Slurm": "SLURM_STEP_NUM_TASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}
DEAD_AFTER = 20  # seconds without a sign of life of a host
EXCHANGE_EVERY = 1.0  # seconds between two exchanges of requests
STATUS = 2  # of a process that leaves with a message


@contextmanager
def connected(
    coordinator: str | None = None,
    hosts: int | None = None,
    host: int | None = None,
    detect: bool = False,
    wait: int = 300,
) -> Iterator[None]:
    """Connects this process, `host` of `hosts` from 0 on, to the others of its training.

    `coordinator` is the ADDRESS:PORT of process 0. Without it, processes that Slurm or Open MPI
    started find each other by what these tell them, and `detect` asks for the same on Cloud TPUs
    and Kubernetes; a process without others is left alone. All have `wait` seconds to come.
    `UsageError` if only some of the first three are given, or they cannot be right.
    """
    explicit = (coordinator, hosts, host)
    counts = {starter: os.environ.get(name, "") for starter, name in STARTERS.items()}
    starter = next((k for k, n in counts.items() if n.isdecimal() and int(n) > 1), None)
    where = f"the address that {starter or 'the environment'} gives"
    if explicit != (None, None, None):
        where = _check(coordinator, hosts, host)
    elif not detect and starter is None:
        yield
        return
    _connect(explicit, where, wait)
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        leave(error)
    # Whoever gets here does so together with the others, so nobody waits in vain.
    jax.distributed.shutdown()


def _check(coordinator: str | None, hosts: int | None, host: int | None) -> str:
    if coordinator is None or hosts is None or host is None:
        raise UsageError("--coordinator, --hosts and --host belong together: give all three.")
    name, colon, port = coordinator.rpartition(":")
    if not name or not colon or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(
            f"--coordinator is {coordinator!r}: write ADDRESS:PORT of host 0, as in 10.0.0.1:12345."
        )
    if not 0 <= host < hosts:
        raise UsageError(f"--host is {host}: with --hosts {hosts} it is from 0 to {hosts - 1}.")
    return coordinator


def _connect(explicit: tuple[Any, Any, Any], where: str, wait: int) -> None:
    import jax

    _, hosts, host = explicit
    index = "a host" if host is None else f"host {host} of {hosts}"
    me = f"{index} (process {os.getpid()} on {socket.gethostname()})"
    print(f"mnv2: {me} connects to {where}", file=sys.stderr, flush=True)
    # Its handler of SIGTERM would take the signal from the training, which hosts agree on itself.
    jax.config.update("jax_enable_preemption_service", False)

    # JAX's own limit ends in an abort of the process, with a stack of C++.
    message = (
        f"{me} waited {wait} s, and not all hosts came to {where}: start the same command on each, "
        "and see that the address can be reached from there."
    )
    patience = threading.Timer(wait, _end_process, [message])
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            *explicit,
            initialization_timeout=wait + 60,
            heartbeat_timeout_seconds=DEAD_AFTER,
            shutdown_timeout_seconds=DEAD_AFTER,
        )
        jax.devices()  # hosts exchange what they have
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise UsageError(
            f"{me} cannot join the others at {where}: {first_line(error)}. Give "
            "--coordinator ADDRESS:PORT, --hosts and --host."
        ) from error
    finally:
        patience.cancel()


def _end_process(message: str) -> None:
    """Ends this process at once: to clean up would be to wait for the other hosts."""
    print(f"mnv2: {message}", file=sys.stderr, flush=True)
    os._exit(STATUS)


def leave(error: Exception) -> None:
    """Raises an error of JAX's; ends this process at once if it is one of several hosts."""
    import jax

    if jax.process_count() == 1:
        raise error
    _end_process(
        f"host {jax.process_index()} stops, since another one did or cannot be reached "
        f"({first_line(error)}). Checkpoints are as they were: the same command on all hosts "
        "goes on there."
    )


def gather(text: str) -> list[str]:
    """Every host's text, in the order of hosts; a collective operation."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return [text]
    mine = np.frombuffer(text.encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(mine))))
    padded = np.zeros(max(1, int(lengths.max())), np.uint8)
    padded[: len(mine)] = mine
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:n].tobytes().decode() for row, n in zip(rows, lengths, strict=True)]


def agree(values: Mapping[str, Any]) -> None:
    """Refuses, on every host, JSON values that hosts differ in by name; a collective operation."""
    first, *others = map(json.loads, gather(json.dumps(values, default=str)))
    for i, other in enumerate(others, 1):
        lines = [
            f"{key}: {first.get(key)!r} on host 0, {other.get(key)!r} on host {i}"
            for key in sorted(first.keys() | other.keys())
            if first.get(key) != other.get(key)
        ]
        if lines:
            raise UsageError(
                f"the hosts do not agree ({'; '.join(lines)[:600]}): give the same command, with "
                "the same files, on each of them."
            )


@contextmanager
def together() -> Iterator[None]:
    """Raises a `UsageError` of this host, or the first of another's; a collective operation."""
    try:
        yield
    except UsageError as error:
        gather(str(error))
        raise
    for i, text in enumerate(gather("")):
        if text:
            raise UsageError(f"host {i} cannot go on: {text}")


class HostRequests:
    """Requests to save, by the clock, and to stop, on a signal, which all hosts answer together.

    Clocks differ and a signal may reach one host only. So several hosts exchange their requests, at
    steps that they agree on ahead: every second or so, since an exchange waits for the devices.
    """

    def __init__(
        self,
        save_after: float,
        stop: Callable[[], bool] = lambda: False,
        is_over: Callable[[], bool] = lambda: False,
    ):
        """Starts counting: a request to save every `save_after` seconds, one to stop by `stop`.

        Once `is_over` is true, `over` becomes so on all hosts together.
        """
        self.stop, self._save_after, self._saved = stop, save_after, time.monotonic()
        self.over, self._is_over = False, is_over
        self._interval, self._next, self._exchanged = 1, 0, time.monotonic()

    def saved(self) -> None:
        """Starts counting anew."""
        self._saved = time.monotonic()

    def __call__(self, step: int, wait: Callable[[], Any]) -> tuple[bool, bool]:
        """Whether to save, and whether to stop, after a step; the same on all hosts.

        All give the step that was started last. `wait` blocks until all steps are done, for two
        programs at once could wait for each other.
        """
        import jax

        now = time.monotonic()
        own = (now - self._saved > self._save_after, self.stop())
        if jax.process_count() == 1:
            self.over = self._is_over()
            return own
        if step < self._next:
            return False, False
        wait()
        words = json.dumps([*own, now - self._exchanged, self._is_over()])
        told = [json.loads(words) for words in gather(words)]
        self.over = any(any(more) for _, _, _, *more in told)
        self._exchanged = time.monotonic()
        # All go by host 0's clock.
        pace = min(EXCHANGE_EVERY, self._save_after) / max(told[0][2], 1e-3)
        self._interval = max(1, min(2 * self._interval, int(self._interval * pace)))
        self._next = step + self._interval
        return any(save for save, *_ in told), any(stop for _, stop, *_ in told)
