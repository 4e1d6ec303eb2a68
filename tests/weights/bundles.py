"""Writes TensorFlow checkpoints, after the format's description and apart from the reader."""

import struct
from pathlib import Path

import numpy as np

DT = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}


def slow_crc32c(data: bytes) -> int:
    """CRC-32C bit by bit, only for what a test can wait for."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> bytes:
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value) if value else b""
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(array: np.ndarray, offset: int, data: bytes, crc32c) -> bytes:
    shape = b"".join(field(2, field(1, size)) for size in array.shape)
    head = field(1, DT[array.dtype.name]) + field(2, shape)
    checksum = varint(6 << 3 | 5) + masked(crc32c(data))
    return head + field(4, offset) + field(5, len(data)) + checksum


def table(pairs: list[tuple[bytes, bytes]], crc32c, per_block: int = 40) -> bytes:
    """A LevelDB table of sorted pairs, keys sharing prefixes within restarts of 16."""
    out, handles = bytearray(), []

    def block(pairs) -> bytes:
        body, restarts, before = bytearray(), [], b""
        for i, (key, value) in enumerate(pairs):
            shared = 0
            if i % 16 == 0:
                restarts.append(len(body))
            else:
                while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                    shared += 1
            body += varint(shared) + varint(len(key) - shared) + varint(len(value))
            body += key[shared:] + value
            before = key
        body += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
        return bytes(body)

    def add(content: bytes) -> bytes:
        handle = varint(len(out)) + varint(len(content))
        out.extend(content + b"\0" + masked(crc32c(content + b"\0")))
        return handle

    for start in range(0, len(pairs), per_block):
        part = pairs[start : start + per_block]
        handles.append((part[-1][0], add(block(part))))
    metaindex = add(struct.pack("<2I", 0, 1))  # empty
    index = add(block(handles))
    footer = (metaindex + index).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    return bytes(out) + footer


def write_bundle(prefix: Path, tensors: dict[str, np.ndarray], crc32c=slow_crc32c) -> None:
    """Writes `prefix.index` and `prefix.data-00000-of-00001`."""
    data, pairs = bytearray(), [(b"", field(1, 1))]
    for name in sorted(tensors):
        stored = np.ascontiguousarray(tensors[name]).tobytes()
        pairs.append((name.encode(), entry(tensors[name], len(data), stored, crc32c)))
        data += stored
    prefix.with_name(prefix.name + ".index").write_bytes(table(pairs, crc32c))
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(bytes(data))
