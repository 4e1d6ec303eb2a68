"""Reads files of weights: one reader for every format, which takes bytes and returns tensors.

A file is read into memory once, within a limit, and its sha256 is of the very bytes that are
parsed. Nothing in a file is executed, every size that it claims is checked, and whatever is wrong
with it ends in one `UsageError`.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import UnreadableFile, read_file, user_path
from mnv2_jax.weights import limits
from mnv2_jax.weights.limits import DamagedError, shown
from mnv2_jax.weights.readers.hdf5 import read_graph, read_hdf5
from mnv2_jax.weights.readers.litert import read_litert
from mnv2_jax.weights.readers.onnx import read_onnx
from mnv2_jax.weights.readers.paddle import read_paddle
from mnv2_jax.weights.readers.pytorch import read_pytorch
from mnv2_jax.weights.readers.tensor_bundle import read_bundle
from mnv2_jax.weights.readers.tfjs import read_layers, read_tfjs, tfjs_files
from mnv2_jax.weights.wrapping import choose_network

Arrays = dict[str, np.ndarray]

MAX_HEADER = 1 << 24  # bytes, of safetensors; a tensor takes some 100


class Contents(NamedTuple):
    """What a file holds.

    The sha256 of a TensorFlow checkpoint is of `cat X.index X.data-*`, a TensorFlow.js model's of
    its model.json and then the files that it names.
    """

    tensors: Arrays  # without what wraps the network's names and the state of an optimizer
    averages: str  # "absent", or "used" or "left out" where the file has moving averages
    sha256: str
    graph: str = ""  # in JSON, the layers of a whole Keras model, or what an exported one says


def read_tensors(path: str | Path, ema: bool = True, sha256: str | None = None) -> Contents:
    """Reads the tensors of a file.

    Args:
      path: the file, whose ending tells its format; a TensorFlow checkpoint by its prefix, its
        `.index` or a data file; a TensorFlow.js model by its model.json.
      ema: where the file holds weights and moving averages of them, take the averages.
      sha256: the expected sha256; None accepts any.

    Raises:
      UsageError: the file cannot be read, is in no known format, or has another sha256.
    """
    path = user_path(path, "path of the weights")
    files = find_files(path)
    suffix = files[0].suffix.lower()
    data = [_read(file) for file in files]
    if suffix == ".json":
        with _explained(path, suffix):
            data += [_read(file) for file in tfjs_files(path, data[0])]
    digest = hashlib.sha256()
    for part in data:
        digest.update(part)
    if sha256 is not None and digest.hexdigest() != sha256.strip().lower():
        raise UsageError(
            f"{str(path)!r} has sha256 {digest.hexdigest()} where {sha256.strip()} was expected: "
            "the file is damaged or another one; download it again."
        )
    with _explained(path, suffix):
        tensors, averages = choose_network(READERS[suffix](*data), ema)
        graph = GRAPHS[suffix](*data) if suffix in GRAPHS else ""
    return Contents(tensors, averages, digest.hexdigest(), graph)


@contextmanager
def _explained(path: Path, suffix: str) -> Iterator[None]:
    """Makes one line of whatever a reader finds wrong."""
    try:
        yield
    except UsageError:
        raise
    except DamagedError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error}.") from error
    except Exception as error:  # parsers of damaged files raise anything
        raise UsageError(
            f"{str(path)!r} cannot be read as {suffix} ({first_line(error)}): it is damaged, or "
            "its ending does not tell its format; download it again."
        ) from error


def find_files(path: Path) -> list[Path]:
    """Returns the file at a path, or the index and data files of a TensorFlow checkpoint."""
    prefix = path.with_suffix("") if path.suffix.startswith((".index", ".data-")) else path
    index = prefix.with_name(prefix.name + ".index")
    endings = f"{', '.join(READERS)}, or a TensorFlow checkpoint by its name before .index"
    try:
        if (prefix != path or not path.exists()) and index.is_file():
            start = prefix.name + ".data-"
            return [index, *sorted(p for p in prefix.parent.iterdir() if p.name.startswith(start))]
        inside = sorted(p.name for p in path.iterdir() if p.suffix in READERS.keys() - {".json"})
        inside = ["model.json"] if (path / "model.json").exists() else inside
        hint = f"a file in it, such as {inside[0]}" if inside else "a file of weights"
        raise UsageError(f"{str(path)!r} is a folder: give {hint}.")
    except NotADirectoryError:
        if path.suffix.lower() in READERS:
            return [path]
        why = f"the ending of {str(path)!r} does not tell its format: give a file that ends in "
        raise UsageError(f"{why}{endings}.") from None
    except FileNotFoundError:
        raise UsageError(
            f"there is no file {str(path)!r}: give the path of a file of weights."
        ) from None
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {first_line(error)}.") from error


def _read(file: Path) -> bytes:
    try:
        data = read_file(file, limits.MAX_BYTES)
    except UnreadableFile as error:
        raise UsageError(f"{error} Give a file of weights alone.") from error
    if not data:
        raise UsageError(f"{str(file)!r} is empty: download it again.")
    return data


def _read_safetensors(data: bytes) -> Arrays:
    if (header := int.from_bytes(data[:8], "little")) > min(MAX_HEADER, len(data)):
        raise DamagedError(f"its header claims {header} bytes, more than that of weights has")
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
    with limits.zip_members(data) as (archive, members):
        return {
            name.removesuffix(".npy"): _read_npy(name, limits.read_member(archive, info))
            for name, info in members.items()
        }


def _read_npy(name: str, data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise DamagedError(f"{shown(name)} is in version {version} of the format; save it anew")
    read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise DamagedError(f"{shown(name)} is an array of Python objects, which could run code")
    limits.check_claim(name, shape, dtype.itemsize, len(data) - stream.tell())
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


def _keras_member(name: str, data: bytes) -> bytes:
    with limits.zip_members(data) as (archive, members):
        if name not in members:
            raise DamagedError(f"it has no member {name}, so it is not a Keras model")
        return limits.read_member(archive, members[name])


READERS: dict[str, Callable[..., Arrays]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".keras": lambda data: read_hdf5(_keras_member("model.weights.h5", data)),
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".tar"), read_pytorch),
    ".pdparams": read_paddle,
    ".index": read_bundle,
    ".onnx": lambda data: read_onnx(data)[0],
    ".tflite": lambda data: read_litert(data)[0],
    ".json": read_tfjs,
}
"""By the ending of a file's name. A reader takes the bytes of the file, or of the index and data
files of a TensorFlow checkpoint, or of TensorFlow.js' model.json and the files that it names.
PyTorch's examples call their checkpoints `.pth.tar`."""

GRAPHS: dict[str, Callable[..., str]] = {
    ".h5": read_graph,
    ".hdf5": read_graph,
    ".keras": lambda data: _keras_member("config.json", data).decode(),
    ".onnx": lambda data: json.dumps(read_onnx(data)[1]),
    ".tflite": lambda data: json.dumps(read_litert(data)[1]),
    ".json": read_layers,
}
"""Readers of what a file says of its network besides the tensors, by the ending likewise."""
