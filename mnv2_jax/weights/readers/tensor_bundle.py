"""Reads TensorFlow's checkpoints (`.index` and `.data-*`) without TensorFlow.

The index is a sorted table in LevelDB's format: blocks of pairs of a key and a value, where keys
share prefixes, then a block that lists the blocks, and a footer. A value is a protocol buffer that
locates a tensor in the data. Blocks and tensors carry a CRC-32C, which is checked.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mnv2_jax.weights.limits import DamagedError, check_claim, shown
from mnv2_jax.weights.readers.crc32c import crc32c, unmask

AVERAGE = "/ExponentialMovingAverage"
"""Ending of the name of a variable's moving average."""

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
TRAILER = 5  # compression and checksum of a block

DTYPES: dict[int, str] = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 6: "i1", 9: "<i8", 19: "<f2"}
"""TensorFlow's numbers of data types, as numpy's."""


class Entry(NamedTuple):
    """Where a tensor lies: file, offset and size in bytes; `crc` is masked, None if not stored."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int | None
    partitioned: bool


def read_bundle(data: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Reads the tensors of a checkpoint, given its index and its data files.

    Raises:
      DamagedError: a file is damaged, or no part of a checkpoint.
    """
    index, *shards = data
    if len(index) < FOOTER or struct.unpack("<Q", index[-8:])[0] != MAGIC:
        raise DamagedError("it is no index of a TensorFlow checkpoint, or was cut short")
    footer = index[-FOOTER:]
    _, at = _varint(footer, 0)
    _, at = _varint(footer, at)
    arrays = {}
    for _, handle in _pairs(*_block(index, footer, at)):
        for key, value in _pairs(*_block(index, handle, 0)):
            if key:  # the empty key holds the header
                name = key.decode()
                arrays[name] = _tensor(name, _entry(value), shards)
    return arrays


def _tensor(name: str, entry: Entry, shards: Sequence[bytes]) -> np.ndarray:
    if entry.dtype not in DTYPES:
        raise DamagedError(
            f"{shown(name)} has TensorFlow's data type {entry.dtype}, which is not read"
        )
    if entry.partitioned:
        raise DamagedError(f"{shown(name)} is stored in slices, which are not read")
    if entry.shard >= len(shards):
        raise DamagedError(
            f"{shown(name)} lies in data file {entry.shard}, and there are {len(shards)}"
        )
    data, dtype = shards[entry.shard], np.dtype(DTYPES[entry.dtype])
    stop = entry.offset + entry.size
    check_claim(name, entry.shape, dtype.itemsize, entry.size)
    if stop > len(data) or np.prod(entry.shape, dtype=object) * dtype.itemsize != entry.size:
        raise DamagedError(f"{shown(name)} lies at {entry.offset} to {stop} of {len(data)} bytes")
    stored = data[entry.offset : stop]
    if entry.crc is not None and crc32c(stored) != unmask(entry.crc):
        raise DamagedError(f"the checksum of {shown(name)} is wrong: the data is damaged")
    return np.frombuffer(stored, dtype).reshape(entry.shape)


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


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields the numbers and values of a protocol buffer's fields."""
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


def _entry(message: bytes) -> Entry:
    """Parses TensorFlow's BundleEntryProto."""
    numbers = {1: 0, 3: 0, 4: 0, 5: 0}
    shape: list[int] = []
    crc, partitioned = None, False
    for field, value in _fields(message):
        if field in numbers and isinstance(value, int):
            numbers[field] = value
        elif field == 2 and isinstance(value, bytes):
            dims = [dim for number, dim in _fields(value) if number == 2 and isinstance(dim, bytes)]
            for dim in dims:
                sizes = [v for n, v in _fields(dim) if n == 1 and isinstance(v, int)]
                shape.append(sizes[0] if sizes else 0)
        elif field == 6 and isinstance(value, bytes):
            crc = struct.unpack("<I", value)[0]
        elif field == 7:
            partitioned = True
    return Entry(numbers[1], tuple(shape), numbers[3], numbers[4], numbers[5], crc, partitioned)
