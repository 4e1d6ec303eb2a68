"""Reads files of weights: one reader for every format, which takes bytes and returns tensors.

A file is read into memory once, within a limit, and its sha256 is of the very bytes that are
parsed. Nothing in a file is executed, every size that it claims is checked, and whatever is wrong
with it ends in one `UsageError`.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import UnreadableFile, read_file
from mnv2_jax.weights.limits import (
    MAX_BYTES,
    DamagedError,
    check_claim,
    read_member,
    shown,
    zip_members,
)
from mnv2_jax.weights.readers.hdf5 import read_hdf5
from mnv2_jax.weights.readers.pytorch import read_pytorch
from mnv2_jax.weights.readers.tensor_bundle import AVERAGE, read_bundle

Arrays = dict[str, np.ndarray]

SLOTS = ("/RMSProp", "/RMSProp_1", "/Momentum", "/Adam", "/Adam_1")
"""Endings of the names of an optimizer's state in TensorFlow."""

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DataParallel, `torch.compile` and trainers put before every name."""


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
      tensors: by name, without wrappers and the state of an optimizer.
      averages: "absent", or "used" or "left out" where the file has moving averages of the weights.
      sha256: of the file; of a TensorFlow checkpoint, of its index and data files in a row
        (`cat X.index X.data-* | sha256sum`).
    """

    tensors: Arrays
    averages: str
    sha256: str


def read_tensors(path: str | Path, ema: bool = True, sha256: str | None = None) -> Contents:
    """Reads the tensors of a file.

    Args:
      path: the file, whose ending tells its format; a TensorFlow checkpoint by its prefix, its
        `.index` or a data file.
      ema: where the file holds weights and moving averages of them, take the averages.
      sha256: the expected sha256; None accepts any.

    Raises:
      UsageError: the file cannot be read, is in no known format, or has another sha256.
    """
    path = Path(path)
    files = find_files(path)
    data = [_read(file) for file in files]
    digest = hashlib.sha256()
    for part in data:
        digest.update(part)
    if sha256 is not None and digest.hexdigest() != sha256.strip().lower():
        raise UsageError(
            f"{str(path)!r} has sha256 {digest.hexdigest()} where {sha256.strip()} was expected: "
            "the file is damaged or another one; download it again."
        )
    try:
        arrays = READERS[files[0].suffix](*data)
    except UsageError:
        raise
    except DamagedError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error}.") from error
    except Exception as error:  # parsers of damaged files raise anything
        raise UsageError(
            f"{str(path)!r} cannot be read as {files[0].suffix} ({first_line(error)}): it is "
            "damaged, or its ending does not tell its format; download it again."
        ) from error
    return Contents(*choose_averages(arrays, ema), digest.hexdigest())


def find_files(path: Path) -> list[Path]:
    """Returns the file at a path, or the index and data files of a TensorFlow checkpoint."""
    prefix = path.with_suffix("") if path.suffix.startswith((".index", ".data-")) else path
    index = prefix.with_name(prefix.name + ".index")
    try:
        if (prefix != path or not path.exists()) and index.is_file():
            start = prefix.name + ".data-"
            return [index, *sorted(p for p in prefix.parent.iterdir() if p.name.startswith(start))]
        is_file, is_folder = path.is_file(), path.is_dir()
        inside = sorted(p.name for p in path.iterdir() if p.suffix in READERS) if is_folder else []
    except (OSError, ValueError) as error:
        raise UsageError(f"{str(path)!r} cannot be read: {first_line(error)}.") from error
    if is_folder:
        hint = f"a file in it, such as {inside[0]}" if inside else "a file of weights"
        raise UsageError(f"{str(path)!r} is a folder: give {hint}.")
    if not is_file:
        raise UsageError(f"there is no file {str(path)!r}: give the path of a file of weights.")
    if path.suffix not in READERS:
        raise UsageError(
            f"the ending of {str(path)!r} does not tell its format: give a file that ends in "
            f"{', '.join(READERS)}, or a TensorFlow checkpoint by its name before .index."
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


def choose_averages(arrays: Mapping[str, np.ndarray], ema: bool) -> tuple[Arrays, str]:
    """Chooses between weights and their moving averages; drops the state of an optimizer.

    Returns:
      The arrays by the names of the variables, and `Contents.averages`.

    >>> choose_averages({"w": 1, "w/ExponentialMovingAverage": 2, "w/RMSProp": 3}, ema=True)
    ({'w': 2}, 'used')
    """
    weights, averages = {}, {}
    for name, array in arrays.items():
        if name.endswith(AVERAGE):
            averages[name.removesuffix(AVERAGE)] = array
        elif not name.endswith(SLOTS):
            weights[name] = array
    weights, averages = _unwrapped(weights), _unwrapped(averages)
    if not averages:
        return weights, "absent"
    return (weights | averages, "used") if ema else (weights, "left out")


def _unwrapped(arrays: Arrays) -> Arrays:
    """Removes wrappers that every name begins with, such as `module.` of DataParallel."""
    for prefix in WRAPPERS:
        if arrays and all(name.startswith(prefix) for name in arrays):
            return _unwrapped({name.removeprefix(prefix): a for name, a in arrays.items()})
    return arrays


def _read_safetensors(data: bytes) -> Arrays:
    return {name: _plain(name, tensor) for name, tensor in safetensors.deserialize(data)}


def _plain(name: str, tensor: Mapping[str, Any]) -> np.ndarray:
    if tensor["dtype"] == "BF16":  # the upper half of a float32
        halves = np.frombuffer(tensor["data"], "<u2").astype(np.uint32)
        return (halves << 16).view(np.float32).reshape(tensor["shape"])
    match = re.fullmatch(r"([FIU])(8|16|32|64)", tensor["dtype"])
    if match is None:
        raise DamagedError(f"{shown(name)} is stored as {tensor['dtype']}; save it as float32")
    dtype = f"<{match[1].lower()}{int(match[2]) // 8}"
    return np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])


def _read_npz(data: bytes) -> Arrays:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {
            name.removesuffix(".npy"): _read_npy(name, read_member(archive, info))
            for name, info in zip_members(archive, len(data)).items()
        }


def _read_npy(name: str, data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise DamagedError(f"{shown(name)} is in version {version} of the format; save it anew")
    if dtype.hasobject:
        raise DamagedError(f"{shown(name)} is an array of Python objects, which could run code")
    check_claim(name, shape, dtype.itemsize, len(data) - stream.tell())
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


def _read_keras(data: bytes) -> Arrays:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = zip_members(archive, len(data))
        if "model.weights.h5" not in members:
            raise DamagedError("it has no member model.weights.h5, so it is not a Keras model")
        return read_hdf5(read_member(archive, members["model.weights.h5"]))


READERS: dict[str, Callable[..., Arrays]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".keras": _read_keras,
    ".pth": read_pytorch,
    ".pt": read_pytorch,
    ".bin": read_pytorch,
    ".index": read_bundle,
}
"""By the ending of a file's name. A reader takes the bytes of the file, or of the index and data
files of a TensorFlow checkpoint. All readers name moving averages as TensorFlow does."""
