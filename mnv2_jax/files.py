"""Files: the one way to write them, whole or not at all, and the one way to read a bounded one."""

import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnv2_jax.errors import UsageError, first_line


class UnreadableFile(UsageError):
    """A file that cannot be read; `reason` says why, without its path."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{str(path)!r} {reason}.")
        self.reason = reason


def user_path(path: str | Path, what: str = "path") -> Path:
    """Returns a path as its user means it, with `~` for a home folder.

    Raises:
      UsageError: it is empty, which would mean the current folder, or `~NAME` is nobody.
    """
    if not str(path).strip():
        raise UsageError(f"the {what} is empty: give one, or . for the current folder.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"the {what} {str(path)!r} is of no user here: write it out.") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to, which takes its place once the block has ended.

    Readers see the old file or the new one, never a part, and so does whoever looks after a crash.
    The file has the permissions that the process' umask gives. Nothing is left of a block that
    fails.

    Raises:
      OSError: it cannot be written.
    """
    # Processes and threads may write the same file at once.
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a file that is there whole or not at all; text as UTF-8, other names escaped."""
    with replacing(path) as partial:
        text = isinstance(content, str)
        partial.write_bytes(content.encode("utf-8", "backslashreplace") if text else content)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, as `write_file` does."""
    write_file(path, json.dumps(value, indent=1))


def read_file(path: str | Path, limit: int) -> bytes:
    """Reads a regular file; never a pipe or a device, which may not end or never answer.

    Args:
      path: of the file.
      limit: the most bytes that it may have.

    Raises:
      UnreadableFile: it is missing, not a regular file, not readable, or larger than the limit.
    """
    try:
        # Without O_NONBLOCK, to open a pipe is to wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableFile(path, "is not a regular file")
            if status.st_size > limit:
                size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit:,} bytes"
                raise UnreadableFile(path, f"is larger than {size}")
            return file.read(status.st_size)
    except UnreadableFile:
        raise
    except IsADirectoryError as error:
        raise UnreadableFile(path, "is a folder, not a file") from error
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        raise UnreadableFile(path, f"cannot be read: {first_line(error)}") from error
