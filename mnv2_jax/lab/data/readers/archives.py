"""Tar files: small compressed ones read whole, large plain ones by the offsets of their members.

Nothing is unpacked to disk; what is cut short, damaged or no plain file is refused.
"""

import io
import os
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.lab.data.readers.files import MAX_UNZIPPED_BYTES, read_unzipped

MAX_MEMBER_BYTES = 1 << 28
TAR_BLOCK = 512


def read_tar_gz(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """Reads the plain files of these base names from a small .tar.gz, in the order of `names`."""
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(read_unzipped(path)), mode="r:") as archive:
            for member in archive:
                base = PurePosixPath(member.name).name
                if base in names and member.isreg() and (file := archive.extractfile(member)):
                    if base in files or member.size > MAX_UNZIPPED_BYTES:  # of a sparse file
                        raise tarfile.TarError(f"it has {base} twice, or too large")
                    files[base] = file.read()
    except tarfile.TarError as error:
        why = first_line(error)
        raise UsageError(f"{path} cannot be read: {why}. Download it again.") from error
    missing = [name for name in names if name not in files]
    if missing:
        raise UsageError(f"{path} has no {', '.join(missing)}. Download it again.")
    return {name: files[name] for name in names}


class Member(NamedTuple):
    """One plain file in a tar file: where its bytes are."""

    name: str
    offset: int
    size: int


def tar_members(file: int, archive: str, start: int, end: int) -> Iterator[Member]:
    """Walks the headers of an uncompressed tar file at [start, end) of a file descriptor."""
    position = start
    while True:
        header = os.pread(file, TAR_BLOCK, position) if position + TAR_BLOCK <= end else b""
        if len(header) < TAR_BLOCK:
            raise UsageError(f"{archive} is cut short at byte {position - start:,}. Get it again.")
        if not any(header):
            return
        try:
            entry = tarfile.TarInfo.frombuf(header, "utf-8", "strict")  # checks the checksum
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            where = f"byte {position - start:,}: {first_line(error)}"
            raise UsageError(f"{archive} is damaged at {where}. Get it again.") from error
        name, size, offset = entry.name, entry.size, position + TAR_BLOCK
        position = offset + -(-size // TAR_BLOCK) * TAR_BLOCK
        if size < 0 or position > end:
            raise UsageError(f"{archive} is cut short inside {name!r}. Get it again.")
        if entry.type in (tarfile.DIRTYPE, tarfile.XGLTYPE):
            continue
        if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise UsageError(f"{archive} holds {name!r}, which is not a plain file: it is refused.")
        if name.startswith("/") or ".." in name.split("/"):
            raise UsageError(f"{archive} holds the unsafe path {name!r}: it is refused.")
        yield Member(name, offset, size)
