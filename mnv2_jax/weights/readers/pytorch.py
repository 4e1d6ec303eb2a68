"""Reads PyTorch's files through `torch.load(weights_only=True)` and in no other way."""

import argparse
import io
import math
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.weights.limits import MAX_BYTES, DamagedError, read_member, shown, zip_members
from mnv2_jax.weights.wrapping import TRAINING

MIN_TORCH = (2, 10)
"""Earlier releases had ways to run code from a file in spite of `weights_only=True`."""

INTEGERS = ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4")
MAX_OPCODES = 1_000_000  # of a pickle; a checkpoint with its optimizer has some 50,000


def read_pytorch(data: bytes) -> dict[str, np.ndarray]:
    """Reads every tensor of a state dict, or of the state dicts that a checkpoint nests."""
    stream, archive = io.BytesIO(data), data.startswith(b"PK")
    if archive:
        _check_archive(data)
    elif data.startswith(b"\x1f\x8b") or data[257:262] == b"ustar":
        raise DamagedError("it is packed by gzip or tar: unpack it, and give the file inside")
    torch = import_torch()
    if not archive:  # before PyTorch 1.6: magic number, protocol, system and object, then storages
        _check_storages(data, 4, len(data))
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
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
    return {name: _array(torch, name, tensor) for name, tensor in _tensors(torch, loaded)}


def _tensors(torch: Any, loaded: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the tensors of nested dictionaries by path, but those of optimizers."""
    waiting, seen = [("", loaded)], set()
    while waiting:
        path, state = waiting.pop()
        if id(state) not in seen:  # a pickle may hold itself
            seen.add(id(state))
            for key, value in state.items():
                if isinstance(key, str) and not TRAINING.search(key):
                    if isinstance(value, torch.Tensor):
                        yield path + key, value
                    elif isinstance(value, Mapping):
                        waiting.append((f"{path}{key}.", value))


def import_torch() -> Any:
    """Imports PyTorch; `UsageError` where there is none, or too old a one."""
    remedy = "install torch>=2.10, or give the weights as .safetensors or .npz."
    try:
        import torch
    except ImportError as error:
        what = "PyTorch is not installed, which is needed to read .pth, .pt and .bin"
        raise UsageError(f"{what}: {remedy}") from error
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < MIN_TORCH:
        what = f"PyTorch is {torch.__version__}, which could run code from a file of weights"
        raise UsageError(f"{what}: {remedy}")
    return torch


def _check_archive(data: bytes) -> None:
    """Rejects what `torch.save` does not write: it never compresses, and stores no code."""
    with zip_members(data) as (archive, members):
        pickles = [info for name, info in members.items() if name.endswith("/data.pkl")]
        why = {
            "it is a TorchScript program, which is code: load it with torch.jit.load, and save its "
            "state_dict()": any(n.endswith("/constants.pkl") or "/code/" in n for n in members),
            "it is an archive without PyTorch's data.pkl: unpack it first": not pickles,
            "it is a compressed archive, which PyTorch does not write": any(
                info.compress_type != zipfile.ZIP_STORED for info in members.values()
            ),
            "its members claim more bytes than the file has": len(data)
            < sum(info.file_size for info in members.values()),
        }
        for reason, holds in why.items():
            if holds:
                raise DamagedError(reason)
        for info in pickles:
            _check_storages(read_member(archive, info), 1, len(data))


def _check_storages(pickles: bytes, parts: int, available: int) -> None:
    """Rejects storages that claim more elements than the file has bytes, and bombs.

    The opcodes of the pickles are listed, not run. The number of elements is the last integer
    before the identity of a storage.
    """
    stream, last, count = io.BytesIO(pickles), 0, 0
    for _ in range(parts):
        for opcode, argument, _ in pickletools.genops(stream):
            count += 1
            if opcode.name in INTEGERS:
                last = argument
            elif opcode.name == "BINPERSID" and not 0 <= int(last or 0) <= available:
                raise DamagedError(f"a storage claims {last} elements, more than the file can hold")
            elif count > MAX_OPCODES or "bytearray" in str(argument)[:100]:
                raise DamagedError("its pickle is larger than that of weights")


def _array(torch: Any, name: str, tensor: Any) -> np.ndarray:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise DamagedError(f"{shown(name)} is not a plain tensor; save the float model")
    if math.prod(tensor.shape) * 8 > MAX_BYTES:
        raise DamagedError(
            f"{shown(name)} claims shape {list(tensor.shape)}, more than the file holds"
        )
    tensor = tensor.detach()
    return (tensor.to(torch.float32) if tensor.dtype == torch.bfloat16 else tensor).numpy()
