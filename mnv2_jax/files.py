"""Files: the one way to write them, whole or not at all, and the one way to read a bounded one."""

import codecs
import gzip
import io
import json
import math
import os
import stat
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mnv2_jax.errors import UsageError, first_line

MAX_TEXT = 1 << 26  # bytes of a file that a training writes: a log of a million rows takes less


class UnreadableFile(UsageError):
    """A file that cannot be read; `reason` says why, without its path."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{str(path)!r} {reason}.")
        self.reason = reason


def user_path(path: str | os.PathLike[str], what: str = "path") -> Path:
    """Returns a path as its user means it, with `~` for a home folder.

    `UsageError` if it is empty, which would mean the current folder, `~NAME` is neither a user nor
    a file, or no path can be so: too long a name, a loop of links, a null byte.
    """
    if not str(path).strip():
        raise UsageError(f"the {what} is empty: give one, or . for the current folder.")
    try:
        expanded = Path(os.path.expanduser(path))
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            expanded.stat()
    except (OSError, ValueError) as error:
        why = f"the {what} {str(path)!r} cannot be used ({first_line(error)}): give another."
        raise UsageError(why) from error
    if str(expanded).startswith("~") and not os.path.lexists(expanded):
        raise UsageError(f"the {what} {str(path)!r} is of no user here: write it out.")
    return expanded


def cache_folder() -> Path:
    """Returns the folder of what can be made or fetched again; it may be missing."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mnv2_jax"


def writable_place(
    path: str | Path, what: str, folder: bool = False, parents: bool = False
) -> Path:
    """Returns the `user_path` of what is written later; `UsageError` if that cannot be.

    Above a `folder`, or with `parents` above a file, folders may be missing, for they are made.
    """
    place = user_path(path, what)
    above = place if folder else place.parent
    while (folder or parents) and not os.path.lexists(above):
        above = above.parent
    for wrong, why in (
        (not folder and os.path.exists(place) and not os.path.isfile(place), "it is not a file"),
        (not os.path.isdir(above), f"{str(above)!r} is not a folder"),
        (not os.access(above, os.W_OK | os.X_OK), f"{str(above)!r} is not yours to write to"),
    ):
        if wrong:
            remedy = "Give a place in a folder that is there and that you may write to."
            raise UsageError(f"the {what} {str(path)!r} cannot be written: {why}. {remedy}")
    return place


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to, which takes its place once the block has ended.

    Readers see the old file or the new one, never a part, and so does whoever looks after a crash.
    Nothing is left of a block that fails. `OSError` of `path` if it cannot be written.
    """
    # Processes and threads may write the same file at once.
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno and str(error.filename or partial) == str(partial):
            error.filename = str(path)  # a full disk gives none
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a file that is there whole or not at all; text as UTF-8, other names escaped."""
    with replacing(path) as partial:
        text = isinstance(content, str)
        partial.write_bytes(content.encode("utf-8", "backslashreplace") if text else content)


def json_text(value: Any, **options: Any) -> str:
    """Returns a value as JSON, which has no NaN and no infinity: they become null.

    >>> json_text({"map": float("nan"), "loss": [0.5]})
    '{"map": null, "loss": [0.5]}'
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, as `write_file` does."""
    write_file(path, json_text(value, indent=1))


@contextmanager
def opened(path: str | Path, limit: int | None = None) -> Iterator[io.BufferedReader]:
    """Opens a regular file to read; never a pipe or a device, which may not end or never answer.

    `UnreadableFile` if it is none, is not readable, has more bytes than `limit`, or something goes
    wrong while it is read.
    """
    try:
        # Without O_NONBLOCK, to open a pipe is to wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableFile(path, "is not a regular file")
            if limit is not None and status.st_size > limit:
                raise UnreadableFile(path, f"is larger than {_size(limit)}")
            yield file
    except UsageError:
        raise
    except IsADirectoryError as error:
        raise UnreadableFile(path, "is a folder, not a file") from error
    except (OSError, ValueError, EOFError, zlib.error) as error:  # a null byte is a ValueError
        raise UnreadableFile(path, f"cannot be read: {first_line(error)}") from error


def read_file(path: str | Path, limit: int) -> bytes:
    """Reads a regular file of at most `limit` bytes; `UnreadableFile` if it is none."""
    with opened(path, limit) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def read_gzip(path: str | Path, limit: int) -> bytes:
    """Reads a compressed file of at most `limit` bytes inside; `UnreadableFile` if it is none."""
    content = io.BytesIO()  # one read of all would set aside `limit` bytes for a small file
    with opened(path) as file, gzip.open(file) as inside:
        while content.tell() <= limit and (block := inside.read(1 << 20)):
            content.write(block)
    if content.tell() > limit:
        raise UnreadableFile(path, f"has more than {_size(limit)} inside")
    return content.getvalue()


def read_text(path: str | Path, limit: int = MAX_TEXT) -> str:
    """Reads a file of UTF-8, or of Windows' UTF-16; `UnreadableFile` if it is none."""
    content = _read_written(path, limit)
    wide = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFile(path, f"is not text in UTF-8: {first_line(error)}") from error
    if "\0" in text:
        raise UnreadableFile(path, "is not text: it has bytes of zero")
    return text


def read_json(path: str | Path, limit: int = MAX_TEXT) -> Any:
    """Reads a file of JSON; `UnreadableFile` if it is none, too deep, or gives a key twice."""
    try:
        return json.loads(_read_written(path, limit), object_pairs_hook=_object)
    except UnreadableFile:
        raise
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(path, f"cannot be read as JSON: {first_line(error)}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has {next(k for k in found if keys.count(k) > 1)!r} twice")
    return found


def _read_written(path: str | Path, limit: int) -> bytes:
    """Reads a text; one of zeros, as a disk leaves it, is refused before they are in memory."""
    with opened(path, limit) as file:
        if (start := file.peek()) and not start.strip(b"\0"):
            raise UnreadableFile(path, "holds zeros where its text should begin")
        return file.read(os.fstat(file.fileno()).st_size)


def _size(limit: int) -> str:
    return f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit:,} bytes"
