"""One reader of tensors for every format that weights are published in: bytes in, tensors out."""

import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import safetensors

from mnv2_jax.weights.limits import DamagedError, check_claim, read_member, shown, zip_members
from mnv2_jax.weights.readers.hdf5 import read_hdf5
from mnv2_jax.weights.readers.pytorch import read_pytorch
from mnv2_jax.weights.readers.tensor_bundle import read_bundle, read_index

AVERAGE = "/ExponentialMovingAverage"
SLOTS = ("/RMSProp", "/RMSProp_1", "/Momentum", "/Adam", "/Adam_1")


class Tensors(NamedTuple):
    """The tensors of a file, and what became of moving averages of them.

    Attributes:
      arrays: by the name of the variable.
      averages: "absent", or "used" or "left out" where the file has them beside the weights.
    """

    arrays: dict[str, np.ndarray]
    averages: str


def choose_averages(names: Iterable[str], ema: bool) -> tuple[dict[str, str], str]:
    """Chooses between TensorFlow's variables and their moving averages; drops optimizer slots.

    Returns:
      The name of each variable with the name of the tensor taken for it, and `Tensors.averages`.

    >>> choose_averages(["w", "w/ExponentialMovingAverage", "w/RMSProp"], ema=True)
    ({'w': 'w/ExponentialMovingAverage'}, 'used')
    """
    names = [name for name in names if not name.endswith(SLOTS)]
    chosen = {name: name for name in names if not name.endswith(AVERAGE)}
    averages = {name.removesuffix(AVERAGE): name for name in names if name.endswith(AVERAGE)}
    if not averages:
        return chosen, "absent"
    return (chosen | averages, "used") if ema else (chosen, "left out")


def _safetensors(data: Sequence[bytes], ema: bool) -> Tensors:
    found = dict(safetensors.deserialize(data[0]))
    chosen, averages = choose_averages(found, ema)
    return Tensors({ours: _plain(ours, found[name]) for ours, name in chosen.items()}, averages)


PLAIN = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def _plain(name: str, tensor: dict) -> np.ndarray:
    if tensor["dtype"] not in PLAIN:
        raise DamagedError(f"{shown(name)} is stored as {tensor['dtype']}; save it as float32")
    array = np.frombuffer(tensor["data"], PLAIN[tensor["dtype"]]).reshape(tensor["shape"])
    if tensor["dtype"] == "BF16":  # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _npz(data: Sequence[bytes], ema: bool) -> Tensors:
    with zipfile.ZipFile(io.BytesIO(data[0])) as archive:
        members = {
            name.removesuffix(".npy"): info
            for name, info in zip_members(archive, len(data[0])).items()
        }
        chosen, averages = choose_averages(members, ema)
        arrays = {
            ours: _npy(ours, read_member(archive, members[name])) for ours, name in chosen.items()
        }
    return Tensors(arrays, averages)


def _npy(name: str, data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise DamagedError(f"{shown(name)} is in version {version} of the format; save it anew")
    one = version == (1, 0)
    read_header = (
        np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise DamagedError(f"{shown(name)} is an array of Python objects, which could run code")
    check_claim(name, shape, dtype.itemsize, len(data) - stream.tell())
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


def _hdf5(data: Sequence[bytes], ema: bool) -> Tensors:
    del ema
    return Tensors(read_hdf5(data[0]), "absent")


def _keras(data: Sequence[bytes], ema: bool) -> Tensors:
    with zipfile.ZipFile(io.BytesIO(data[0])) as archive:
        members = zip_members(archive, len(data[0]))
        if "model.weights.h5" not in members:
            raise DamagedError("it has no member model.weights.h5, so it is no model of Keras")
        weights = read_member(archive, members["model.weights.h5"])
    return _hdf5([weights], ema)


def _pytorch(data: Sequence[bytes], ema: bool) -> Tensors:
    return Tensors(*read_pytorch(data[0], ema))


def _bundle(data: Sequence[bytes], ema: bool) -> Tensors:
    index = read_index(data[0])
    chosen, averages = choose_averages(index, ema)
    entries = {ours: index[name] for ours, name in chosen.items()}
    return Tensors(read_bundle(entries, data[1:]), averages)


Reader = Callable[[Sequence[bytes], bool], Tensors]

READERS: dict[str, Reader] = {
    ".safetensors": _safetensors,
    ".npz": _npz,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".keras": _keras,
    ".pth": _pytorch,
    ".pt": _pytorch,
    ".bin": _pytorch,
    ".index": _bundle,
}
"""By the ending of a file's name. A reader takes the bytes of its files (a TensorFlow checkpoint
has several, the index first) and whether moving averages are wanted."""
