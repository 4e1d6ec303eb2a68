"""Reads a file of weights, and nothing but its tensors.

A file is read into memory once, within a limit, and its sha256 is of the very bytes that are parsed
then. Nothing in it is executed, no size that it claims is believed unchecked, and whatever is wrong
with it ends in one `UsageError`.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import UnreadableFile, read_file
from mnv2_jax.weights.limits import MAX_BYTES, DamagedError
from mnv2_jax.weights.readers.formats import READERS


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
      tensors: by name, as stored.
      averages: see `formats.Tensors`.
      sha256: of the file; of a TensorFlow checkpoint, of its index and data files in a row
        (`cat X.index X.data-* | sha256sum`).
    """

    tensors: dict[str, np.ndarray]
    averages: str
    sha256: str


def read_tensors(path: str | Path, ema: bool = True, sha256: str | None = None) -> Contents:
    """Reads the tensors of a file.

    Args:
      path: the file, its format told by the ending of its name; a TensorFlow checkpoint by its
        prefix, its `.index` or a data file.
      ema: where the file holds weights and moving averages of them, take the averages.
      sha256: what the file's sha256 has to be; None takes any.

    Raises:
      UsageError: the file cannot be read, is in no known format, or has another sha256.
    """
    path = Path(path)
    files = find_files(path)
    format_ = files[0].suffix
    data = [_read(file) for file in files]
    digest = hashlib.sha256()
    for part in data:
        digest.update(part)
    if sha256 is not None and digest.hexdigest() != sha256.strip().lower():
        raise UsageError(
            f"{str(path)!r} has sha256 {digest.hexdigest()} where {sha256.strip()} was asked for: "
            "it is another file or a damaged one; download it again."
        )
    try:
        tensors = READERS[format_](data, ema)
    except UsageError:
        raise
    except DamagedError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error}.") from error
    except Exception as error:  # parsers of damaged files raise anything
        reason = first_line(error)
        raise UsageError(
            f"{str(path)!r} cannot be read as {format_} ({reason}): it is damaged, or its name "
            "does not say what it is; download it again."
        ) from error
    return Contents(tensors.arrays, tensors.averages, digest.hexdigest())


def find_files(path: Path) -> list[Path]:
    """Returns the file that a path stands for, or a TensorFlow checkpoint's index and data files.

    Raises:
      UsageError: there is no file, it is a folder, or the ending of its name is not known.
    """
    prefix = path.with_suffix("") if path.suffix.startswith((".index", ".data-")) else path
    index = prefix.with_name(prefix.name + ".index")
    try:
        if (prefix != path or not path.exists()) and index.is_file():
            start = prefix.name + ".data-"
            return [index, *sorted(p for p in prefix.parent.iterdir() if p.name.startswith(start))]
        if path.is_dir():
            inside = sorted(p.name for p in path.iterdir() if p.suffix in READERS)
            hint = f"a file in it, such as {inside[0]}" if inside else "a file of weights"
            raise UsageError(f"{str(path)!r} is a folder: give {hint}.")
        is_file = path.is_file()
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error}.") from error
    if not is_file:
        raise UsageError(f"there is no file {str(path)!r}: give the path of a file of weights.")
    if path.suffix not in READERS:
        raise UsageError(
            f"the name of {str(path)!r} does not say what it is: files ending in "
            f"{', '.join(READERS)} are read, and TensorFlow checkpoints by the name before .index."
        )
    return [path]


def _read(file: Path) -> bytes:
    try:
        data = read_file(file, MAX_BYTES)
    except UnreadableFile as error:
        raise UsageError(f"{error} Give a file of weights alone.") from error
    if not data:
        raise UsageError(f"{str(file)!r} is empty: download it again.")
    return data
