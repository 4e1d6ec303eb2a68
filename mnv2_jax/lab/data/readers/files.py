"""Files of records and lists of names, read within bounds."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import UnreadableFile, read_file
from mnv2_jax.lab.data.source import BadRecord

MAX_RECORD_BYTES = 1 << 28
MAX_LIST_BYTES = 1 << 32  # COCO's annotations take half a gigabyte
MAX_UNZIPPED_BYTES = 1 << 28  # CIFAR takes 180 MB


def read_record(path: Path) -> bytes:
    """Reads the file of a record; `BadRecord` if it is missing, unreadable or too large."""
    try:
        return read_file(path, MAX_RECORD_BYTES)
    except UnreadableFile as error:
        raise BadRecord(str(path), error.reason) from error


def read_unzipped(path: Path) -> bytes:
    """Reads a file, decompressed where it ends in `.gz`.

    Raises:
      UsageError: it cannot be read, is damaged, or large once it is decompressed.
    """
    if path.suffix != ".gz":
        return read_file(path, MAX_UNZIPPED_BYTES)
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_UNZIPPED_BYTES + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise UsageError(
            f"{path} cannot be read: {first_line(error)}. Download it again."
        ) from error
    if len(content) > MAX_UNZIPPED_BYTES:
        raise UsageError(
            f"{path} has more than {MAX_UNZIPPED_BYTES >> 20} MiB inside. Download it again."
        )
    return content


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a list that are not blank; `UsageError` if it is not a file of UTF-8."""
    try:
        lines = read_file(path, MAX_LIST_BYTES).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not text in UTF-8: {first_line(error)}. Save it as UTF-8."
        ) from error
    return [line.strip() for line in lines if line.strip()]


def read_json(path: Path) -> Any:
    """Reads a file of JSON; `UsageError` if it is none."""
    try:
        return json.loads(read_file(path, MAX_LIST_BYTES))
    except UnreadableFile:
        raise
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {first_line(error)}.") from error
