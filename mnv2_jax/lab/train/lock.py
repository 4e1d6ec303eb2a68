"""One training at a time in a folder: a lock that says whose it is, and ends with its process."""

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

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
        self._folder, self._file = folder, -1
        self._released = threading.Event()

    def __enter__(self) -> "Lock":
        return self

    def take(self) -> None:
        """Takes the lock of a folder that is there, unless it is held already.

        Raises:
          UsageError: another process holds it, or the folder cannot be written to.
        """
        if self._file >= 0:
            return
        try:
            while self._file < 0:
                self._file = _try(self._folder / LOCK)
            os.ftruncate(self._file, 0)
            os.write(self._file, json.dumps(_me()).encode())
        except OSError as error:
            raise UsageError(
                f"{self._folder} cannot be used: {first_line(error)}. Give another --workdir."
            ) from error
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):
                os.utime(self._file)

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            self._released.set()
            with suppress(OSError):
                (self._folder / LOCK).unlink()
            os.close(self._file)
            self._file = -1


def _try(path: Path) -> int:
    """Returns the locked file; -1 if its last holder has just removed it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o644)
    try:
        locked = _lock(file)
        if locked is False or _alive(path, locked is not None):
            holder = _holder(path)
            who = (
                f"process {holder['process']} on {holder['host']}" if holder else "another process"
            )
            raise UsageError(
                f"{path.parent} is in use by {who}: wait for its end, stop it, or give another "
                "--workdir."
            )
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            return file
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return -1


def _lock(file: int) -> bool | None:
    """Asks the system for the lock; None where it, or the file system, has none."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, ImportError):
        return None
    return True


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid(), "began": _began(os.getpid())}


def _began(process: int) -> str:
    """When a process began, on Linux: ids are given again."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _holder(path: Path) -> dict[str, Any]:
    """Who wrote a lock; {} if it is being written, or damaged."""
    try:
        found = json.loads(read_file(path, 1 << 12))
        return {**found, "host": str(found["host"]), "process": int(found["process"])}
    except (ValueError, TypeError, LookupError):
        return {}


def _alive(path: Path, ours: bool) -> bool:
    """Whether the holder still runs that a lock names which the system, if it knows, gave us."""
    holder = _holder(path)
    if holder and holder["host"] == socket.gethostname():
        process = holder["process"]
        if ours or process == os.getpid() or _began(process) != holder.get("began", ""):
            return False
        try:
            os.kill(process, 0)
        except OSError as error:
            return isinstance(error, PermissionError)  # another user's
        return True
    if holder:
        print(f"mnv2: looks whether {holder['host']} still uses {path.parent}", file=sys.stderr)
        before = path.stat().st_mtime_ns
        for _ in range(4 * BEAT):  # network file systems show changes late
            time.sleep(1)
            if not path.exists() or path.stat().st_mtime_ns != before:
                return path.exists()
    return False
