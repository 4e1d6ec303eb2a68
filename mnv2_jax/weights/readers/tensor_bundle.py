"""Reads TensorFlow's checkpoints (`.index` and `.data-*`) without TensorFlow.

The index is a sorted table in LevelDB's format: blocks of pairs of a key and a value, where keys
share prefixes, then a block that lists the blocks, and a footer. A value is a protocol buffer that
locates a tensor in the data. Blocks and tensors carry a CRC-32C, which is checked.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mnv2_jax.weights.limits import DamagedError, check_claim, shown
from mnv2_jax.weights.readers.crc32c import crc32c, unmask

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
TRAILER = 5  # compression and checksum of a block

DTYPES: dict[int, str] = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 6: "i1", 9: "<i8", 19: "<f2"}
"""TensorFlow's numbers of data types, as numpy's."""


def read_bundle(index: bytes, *shards: bytes) -> dict[str, np.ndarray]:
    """Reads the tensors of a checkpoint, given its index and its data files."""
    if len(index) < FOOTER or struct.unpack("<Q", index[-8:])[0] != MAGIC:
        raise DamagedError("it is not the index of a TensorFlow checkpoint, or was cut short")
    footer = index[-FOOTER:]
    _, at = _varint(footer, 0)
    _, at = _varint(footer, at)
    arrays = {}
    for _, handle in _pairs(*_block(index, footer, at)):
        for key, value in _pairs(*_block(index, handle, 0)):
            if key:  # the empty key holds the header
                name = key.decode()
                arrays[name] = _tensor(name, dict(_fields(value)), shards)
    return arrays


def _tensor(name: str, entry: dict[int, Any], shards: Sequence[bytes]) -> np.ndarray:
    """Reads the tensor that an entry of the index (TensorFlow's BundleEntryProto) locates."""
    number, shard, offset, size = (entry.get(field, 0) for field in (1, 3, 4, 5))
    dims = (dim for field, dim in _fields(entry.get(2, b"")) if field == 2)
    shape = tuple(dict(_fields(dim)).get(1, 0) for dim in dims)
    if number not in DTYPES:
        raise DamagedError(f"{shown(name)} has TensorFlow's data type {number}, which is not read")
    if 7 in entry:
        raise DamagedError(f"{shown(name)} is stored in slices, which are not read")
    if shard >= len(shards):
        raise DamagedError(f"{shown(name)} lies in data file {shard}, and there are {len(shards)}")
    dtype, stop = np.dtype(DTYPES[number]), offset + size
    check_claim(name, shape, dtype.itemsize, size)
    if stop > len(shards[shard]) or math.prod(shape) * dtype.itemsize != size:
        raise DamagedError(
            f"{shown(name)} lies at {offset} to {stop} of {len(shards[shard])} bytes"
        )
    stored = shards[shard][offset:stop]
    if 6 in entry and crc32c(stored) != unmask(struct.unpack("<I", entry[6])[0]):
        raise DamagedError(f"the checksum of {shown(name)} is wrong: the data is damaged")
    return np.frombuffer(stored, dtype).reshape(shape)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Reads a number of 7 bits a byte, the lowest first; returns it and where it ends."""
    value = shift = 0
    while shift < 64:
        if at >= len(data):
            raise DamagedError("the index was cut short")
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
    raise DamagedError("the index holds a number of more than 64 bits")


def _block(data: bytes, handle: bytes, at: int) -> tuple[bytes, int]:
    """Returns a block and where its pairs end, given the handle (offset and size) of it."""
    offset, at = _varint(handle, at)
    size, _ = _varint(handle, at)
    block, trailer = data[offset : offset + size], data[offset + size : offset + size + TRAILER]
    if len(block) != size or len(trailer) != TRAILER or size < 4:
        raise DamagedError("a block of the index lies outside it")
    if trailer[0]:
        raise DamagedError("the index is compressed; save it again with a newer TensorFlow")
    if crc32c(block + trailer[:1]) != unmask(struct.unpack("<I", trailer[1:])[0]):
        raise DamagedError("a checksum in the index is wrong: it is damaged")
    restarts = struct.unpack("<I", block[-4:])[0]
    return block, size - 4 - 4 * restarts


def _pairs(block: bytes, end: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields keys and values; a key shares its start with the key before it."""
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        rest, at = _varint(block, at)
        size, at = _varint(block, at)
        if shared > len(key) or at + rest + size > end:
            raise DamagedError("an entry of the index lies outside its block")
        key = key[:shared] + block[at : at + rest]
        yield key, block[at + rest : at + rest + size]
        at += rest + size


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields the numbers and values of a protocol buffer's fields, integers or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(message, at)
        else:
            size = {1: 8, 5: 4}.get(wire)
            if size is None and wire == 2:
                size, at = _varint(message, at)
            if size is None or at + size > len(message):
                raise DamagedError("an entry of the index is damaged")
            value, at = message[at : at + size], at + size
        yield tag >> 3, value
