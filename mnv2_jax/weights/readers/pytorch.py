"""Reads PyTorch's files through `torch.load(weights_only=True)` and in no other way."""

import io
import math
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.weights.limits import MAX_BYTES, DamagedError, read_member, shown, zip_members
from mnv2_jax.weights.readers.tensor_bundle import AVERAGE

MIN_TORCH = (2, 10)
"""Earlier releases had ways to run code from a file in spite of `weights_only=True`."""

AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict")
INTEGERS = ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4")
WEIGHTS = ("state_dict", "model", "model_state_dict", "net")


def read_pytorch(data: bytes) -> dict[str, np.ndarray]:
    """Reads a state dict, which is the file's whole content or an entry of a checkpoint.

    Moving averages, which are an entry of their own, get the ending of TensorFlow's.
    """
    torch, stream = _import_torch(), io.BytesIO(data)
    if zipfile.is_zipfile(stream):
        _check_archive(data)
    else:  # before PyTorch 1.6: magic number, protocol, system and object, then the storages
        _check_storages(data, 4, len(data))
    stream.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about deprecated storages in old files
            loaded = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise DamagedError(
                "it holds more than tensors, and loading that could run code; save "
                "model.state_dict() alone, best as .safetensors"
            ) from error
        raise
    if not isinstance(loaded, Mapping):
        raise DamagedError(f"it holds a {type(loaded).__name__} where a state dict is needed")
    weights = next((loaded[key] for key in WEIGHTS if isinstance(loaded.get(key), Mapping)), loaded)
    averages = next((loaded[key] for key in AVERAGES if isinstance(loaded.get(key), Mapping)), {})
    return {
        name + ending: _array(torch, name, value)
        for state, ending in ((weights, ""), (averages, AVERAGE))
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            "PyTorch is not installed, which is needed to read .pth, .pt and .bin: install "
            "torch>=2.10, or give the weights as .safetensors or .npz."
        ) from error
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < MIN_TORCH:
        raise UsageError(
            f"PyTorch is {torch.__version__}, which could run code from a file of weights: install "
            "torch>=2.10, or give the weights as .safetensors or .npz."
        )
    return torch


def _check_archive(data: bytes) -> None:
    """Rejects archives that unpack to more than their size: PyTorch never compresses."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = zip_members(archive, len(data))
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise DamagedError("it is a compressed archive, which PyTorch does not write")
        if sum(info.file_size for info in members.values()) > len(data):
            raise DamagedError("its members claim more bytes than the file has")
        for name, info in members.items():
            if name.endswith("/data.pkl"):
                _check_storages(read_member(archive, info), 1, len(data))


def _check_storages(pickles: bytes, parts: int, available: int) -> None:
    """Rejects storages that claim more elements than the file has bytes.

    The opcodes of the pickles are listed, not run. The number of elements is the last integer
    before the identity of a storage.
    """
    stream, last = io.BytesIO(pickles), 0
    for _ in range(parts):
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in INTEGERS:
                last = argument
            elif opcode.name == "BINPERSID" and not 0 <= int(last or 0) <= available:
                raise DamagedError(f"a storage claims {last} elements, more than the file can hold")


def _array(torch: Any, name: str, tensor: Any) -> np.ndarray:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise DamagedError(f"{shown(name)} is not a plain tensor; save the float model")
    if math.prod(tensor.shape) * 8 > MAX_BYTES:
        raise DamagedError(
            f"{shown(name)} claims shape {list(tensor.shape)}, more than the file holds"
        )
    tensor = tensor.detach()
    return (tensor.to(torch.float32) if tensor.dtype == torch.bfloat16 else tensor).numpy()
