"""Files of records and lists of names, read within bounds."""

from pathlib import Path
from typing import Any

from mnv2_jax import files
from mnv2_jax.files import UnreadableFile
from mnv2_jax.lab.data.source import BadRecord

MAX_RECORD_BYTES = 1 << 28
MAX_LIST_BYTES = 1 << 32  # COCO's annotations take half a gigabyte
MAX_UNZIPPED_BYTES = 1 << 28  # CIFAR takes 180 MB


def read_record(path: Path) -> bytes:
    """Reads the file of a record; `BadRecord` if it is missing, unreadable or too large."""
    try:
        return files.read_file(path, MAX_RECORD_BYTES)
    except UnreadableFile as error:
        raise BadRecord(str(path), error.reason) from error


def read_unzipped(path: Path) -> bytes:
    """Reads a file, decompressed where it ends in `.gz`; `UnreadableFile` if it is none."""
    if path.suffix != ".gz":
        return files.read_file(path, MAX_UNZIPPED_BYTES)
    try:
        return files.read_gzip(path, MAX_UNZIPPED_BYTES)
    except UnreadableFile as error:
        raise UnreadableFile(path, f"{error.reason}; download it again") from error


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a list that are not blank; `UnreadableFile` if it is not UTF-8."""
    return [s.strip() for s in files.read_text(path, MAX_LIST_BYTES).splitlines() if s.strip()]


def read_json(path: Path) -> Any:
    """Reads a file of JSON; `UnreadableFile` if it is none."""
    return files.read_json(path, MAX_LIST_BYTES)
