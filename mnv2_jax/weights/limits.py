"""Checks what a file claims about its contents before anything is allocated or followed."""

import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

MAX_BYTES = 256 * 2**20
"""The size of a file: width 1.4 takes 100 MB with optimizer state and moving averages."""

MAX_RATIO = 16
"""The unpacked size over the size of the file: trained weights hardly compress at all."""

MAX_MEMBERS = 10_000
"""Files in an archive: a network with its optimizer and moving averages has some 1,500 tensors."""


class DamagedError(Exception):
    """A reader found something wrong in a file; the message completes "cannot be read: ..."."""


def shown(name: str) -> str:
    """Returns a name from a file as messages show it: short, on one line, controls escaped."""
    plain = name.encode("unicode_escape").decode()
    return plain if len(plain) <= 100 else f"{plain[:97]}..."


def max_unpacked(size: int) -> int:
    """Returns how many bytes a file of `size` bytes may unpack to."""
    return min(MAX_BYTES, MAX_RATIO * size + 2**20)


def check_claim(name: str, shape: tuple[int, ...], itemsize: int, available: int) -> None:
    """Raises a `DamagedError` for a tensor that claims more bytes than there are."""
    if any(size < 0 for size in shape) or math.prod(shape) * itemsize > available:
        raise DamagedError(f"{shown(name)} claims shape {list(shape)}, more than the file can hold")


@contextmanager
def zip_members(data: bytes) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """Opens an archive; yields it and its members, once number, names and sizes are checked."""
    if (count := data.count(b"PK\1\2")) > MAX_MEMBERS:
        raise DamagedError(f"it is an archive of {count} members, more than weights have")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        for name in members:
            parts = name.replace("\\", "/").split("/")
            if ".." in parts or not parts[0] or ":" in parts[0]:
                raise DamagedError(f"its member {shown(name)} points outside the archive")
        total = sum(info.file_size for info in archive.infolist())
        if total > max_unpacked(len(data)):
            raise DamagedError(f"its {len(data)} bytes unpack to {total}, more than weights can")
        yield archive, members


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Reads at most the bytes that a member claims; a wrong checksum raises."""
    with archive.open(info) as stream:
        return stream.read(info.file_size)
