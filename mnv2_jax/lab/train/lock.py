"""One training at a time in a folder: a lock that says whose it is, and ends with its process."""

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import read_file

LOCK = ".lock"
BEAT = 10  # seconds between two signs of life, for hosts whose locks do not reach each other


class Lock:
    """A lock on a folder, released at the end of a `with` block.

    The system's own lock ends with the process that holds it, also after SIGKILL. Where a network
    file system keeps it to one host, or knows none, the holder's host and process id decide.
    """

    def __init__(self, folder: Path):
        self._path, self._file, self._released = folder / LOCK, -1, threading.Event()

    def __enter__(self) -> "Lock":
        return self

    def take(self) -> None:
        """Takes the lock of a folder, once; a UsageError names who holds it."""
        if self._file >= 0:
            return
        try:
            while self._file < 0:
                self._file = _try(self._path)
            os.ftruncate(self._file, 0)
            ours = [socket.gethostname(), *_process(os.getpid())]
            os.write(self._file, json.dumps(ours).encode())
        except OSError as error:
            why = f"{self._path.parent} cannot be used: {first_line(error)}"
            raise UsageError(f"{why}. Give another --workdir.") from error
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):
                os.utime(self._file)

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            self._released.set()
            with suppress(OSError):
                self._path.unlink()
            os.close(self._file)
            self._file = -1


def _try(path: Path) -> int:
    """Returns the locked file; -1 if its last holder has just removed it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o644)
    kept, locked = False, None
    try:
        with suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except OSError as error:  # some network file systems know no locks
                locked = False if isinstance(error, BlockingIOError) else None
        host, process, began = _holder(path)
        if locked is False or _alive(path, locked is not None, host, process, began):
            who = f"process {process} on {host}" if host else "another process"
            remedy = "wait for its end, stop it, or give another --workdir"
            raise UsageError(f"{path.parent} is in use by {who}: {remedy}.")
        kept = path.exists() and os.path.samestat(os.fstat(file), path.stat())
    finally:
        if not kept:
            os.close(file)
    return file if kept else -1


def _process(number: int) -> tuple[int, str]:
    """A process' id and, on Linux, when it began: ids are given again."""
    with suppress(OSError, IndexError):
        return number, Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    return number, ""


def _holder(path: Path) -> tuple[str, int, str]:
    """Host, process and its begin; no host if the lock is being written, or damaged."""
    with suppress(ValueError, TypeError, RecursionError):
        host, process, began = json.loads(read_file(path, 1 << 12))
        return str(host), int(process), str(began)
    return "", 0, ""


def _alive(path: Path, ours: bool, host: str, process: int, began: str) -> bool:
    """Whether the last holder still runs; `ours` says that its host's system gave us the lock."""
    if host == socket.gethostname():
        if ours or process == os.getpid() or _process(process)[1] != began:
            return False
        with suppress(ProcessLookupError, OverflowError):
            os.kill(process, 0)
            return True
    elif host:
        print(f"mnv2: looks whether {host} still uses {path.parent}", file=sys.stderr)
        before = path.stat().st_mtime_ns
        for _ in range(4 * BEAT):  # network file systems show changes late
            time.sleep(1)
            if not path.exists() or path.stat().st_mtime_ns != before:
                return path.exists()
    return False
