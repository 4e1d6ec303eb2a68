"""Files of records and lists of names, read within bounds."""

import json
from pathlib import Path
from typing import Any

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import UnreadableFile, read_file
from mnv2_jax.lab.data.source import BadRecord

MAX_RECORD_BYTES = 1 << 28
MAX_LIST_BYTES = 1 << 32  # COCO's annotations take half a gigabyte


def read_record(path: Path) -> bytes:
    """Reads the file of a record.

    Raises:
      BadRecord: it is missing, unreadable or too large.
    """
    try:
        return read_file(path, MAX_RECORD_BYTES)
    except UnreadableFile as error:
        raise BadRecord(str(path), error.reason) from error


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a list that are not blank.

    Raises:
      UsageError: the file cannot be read, or is not text.
    """
    try:
        lines = read_file(path, MAX_LIST_BYTES).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not text in UTF-8: {first_line(error)}. Save it as UTF-8."
        ) from error
    return [line.strip() for line in lines if line.strip()]


def read_json(path: Path) -> Any:
    """Reads a file of JSON.

    Raises:
      UsageError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_file(path, MAX_LIST_BYTES))
    except UnreadableFile:
        raise
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {first_line(error)}.") from error
