"""Readers of the official distribution formats: IDX files, CIFAR archives and plain tar files.

Nothing here unpacks to disk or executes what it reads. A file that is cut short, has the wrong
layout or holds anything but plain files is refused with one line that names it.
"""

import gzip
import io
import math
import os
import pickle
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError

IDX_UNSIGNED_BYTE = 0x08
MAX_IN_MEMORY_BYTES = 4 << 30
MAX_MEMBER_BYTES = 1 << 28
TAR_BLOCK = 512
CIFAR_PIXELS = 3 * 32 * 32


class Cifar(NamedTuple):
    """Where one CIFAR set keeps its parts, in the binary and in the Python version."""

    binary_folder: str
    binary_files: dict[str, tuple[str, ...]]
    binary_names: str
    label_bytes: int  # the label is the last of them
    python_folder: str
    python_files: dict[str, tuple[str, ...]]
    python_names: tuple[str, bytes]
    python_labels: bytes


CIFAR = {
    "cifar10": Cifar(
        "cifar-10-batches-bin",
        {
            "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "test": ("test_batch.bin",),
        },
        "batches.meta.txt",
        1,
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        ("batches.meta", b"label_names"),
        b"labels",
    ),
    "cifar100": Cifar(
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        "fine_label_names.txt",
        2,
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        ("meta", b"fine_label_names"),
        b"fine_labels",
    ),
}


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes, gzip-compressed or plain.

    The layout: two zero bytes, the type code (8 for unsigned byte), the number of dimensions, every
    dimension as a big-endian 32-bit integer, then the values.

    Args:
        path: the file; one that ends in `.gz` is decompressed.
        dimensions: how many dimensions the array must have, 3 for images and 1 for labels.

    Raises:
        UsageError: the header says something else, or the file has more or fewer values than that.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if header[:4] != bytes((0, 0, IDX_UNSIGNED_BYTE, dimensions)):
                raise UsageError(
                    f"{path} is not an IDX file of {dimensions} dimensions of unsigned bytes "
                    f"(it starts with {header[:4].hex() or 'nothing'}). Download it again."
                )
            shape = tuple(int.from_bytes(header[i : i + 4]) for i in range(4, len(header), 4))
            expected = math.prod(shape)
            if len(header) != 4 + 4 * dimensions or expected > MAX_IN_MEMORY_BYTES:
                raise UsageError(f"{path} has an impossible IDX header. Download it again.")
            values = file.read(expected + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {error}. Download it again.") from error
    if len(values) != expected:
        amount = "more" if len(values) > expected else f"{len(values):,}"
        raise UsageError(
            f"{path} should hold {expected:,} values and holds {amount}. Download it again."
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def read_cifar(name: str, split: str, root: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Reads CIFAR-10 or CIFAR-100 from the official archive, or its unpacked folder, in `root`.

    The binary version is preferred to the Python version, whose pickles are read without running
    anything they name.

    Returns:
        images (n, 32, 32, 3), labels (n,) and the class names.
    """
    layout = CIFAR[name]
    archive = name.replace("cifar", "cifar-")
    binary, python = root / f"{archive}-binary.tar.gz", root / f"{archive}-python.tar.gz"
    for folder, tar, read in (
        (layout.binary_folder, binary, _read_cifar_binary),
        (layout.python_folder, python, _read_cifar_python),
    ):
        if tar.exists() or (root / folder).is_dir():
            return read(layout, split, tar, root / folder)
    raise UsageError(
        f"{name} is not in {root}: neither {binary.name} nor {python.name} is there. Get it with: "
        f"curl -L -o {binary} https://www.cs.toronto.edu/~kriz/{binary.name}"
    )


def _read_cifar_binary(layout: Cifar, split: str, tar: Path, folder: Path) -> tuple:
    files = _read_files(tar, folder, (*layout.binary_files[split], layout.binary_names))
    *parts, names = files.items()
    row = layout.label_bytes + CIFAR_PIXELS
    for file, content in parts:
        if not content or len(content) % row:
            raise UsageError(
                f"{file} of {tar.parent} has {len(content)} bytes, not a multiple of {row}: "
                "it is cut short. Download it again."
            )
    rows = np.concatenate([np.frombuffer(content, np.uint8) for _, content in parts])
    rows = rows.reshape(-1, row)
    images = _planes_to_images(rows[:, layout.label_bytes :])
    return images, rows[:, layout.label_bytes - 1], tuple(names[1].decode("ascii").split())


def _read_cifar_python(layout: Cifar, split: str, tar: Path, folder: Path) -> tuple:
    meta, names_key = layout.python_names
    files = _read_files(tar, folder, (*layout.python_files[split], meta))
    images, labels, names = [], [], ()
    for file, content in files.items():
        values = _unpickle_arrays(content, f"{file} of {tar.parent}")
        try:
            if file == meta:
                names = tuple(name.decode("ascii") for name in values[names_key])
                continue
            pixels = np.frombuffer(values[b"data"].buffer, np.uint8)
            labels.append(np.array(values[layout.python_labels], np.int64))
            images.append(_planes_to_images(pixels.reshape(len(labels[-1]), CIFAR_PIXELS)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"{file} of {tar.parent} is not a CIFAR batch. Download it again."
            ) from error
    return np.concatenate(images), np.concatenate(labels), names


def _planes_to_images(rows: np.ndarray) -> np.ndarray:
    """Turns rows of red, green and blue planes into (n, 32, 32, 3)."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _read_files(tar: Path, folder: Path, names: Collection[str]) -> dict[str, bytes]:
    """Reads files from a .tar.gz, or from the folder it unpacks to."""
    if tar.exists():
        return read_tar_gz(tar, names)
    try:
        return {name: (folder / name).read_bytes() for name in names}
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error}. Unpack it again.") from error


def read_tar_gz(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """Reads the plain files of these base names from a small .tar.gz, in the order of `names`."""
    files = {}
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                base = PurePosixPath(member.name).name
                if base not in names or not member.isreg() or member.size > MAX_MEMBER_BYTES:
                    continue
                file = archive.extractfile(member)
                files[base] = file.read() if file else b""
            while stream.read(1 << 20):  # gzip compares its checksum at the end
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {error}. Download it again.") from error
    missing = [name for name in names if name not in files]
    if missing:
        raise UsageError(f"{path} has no {', '.join(missing)}. Download it again.")
    return {name: files[name] for name in names}


class _ArrayStub:
    """Stands for a numpy object in a pickle: keeps its state and does nothing."""

    buffer = b""

    def __init__(self, *arguments):
        del arguments

    def __setstate__(self, state):
        if isinstance(state, tuple) and len(state) == 5 and isinstance(state[4], bytes):
            self.buffer = state[4]  # (version, shape, dtype, Fortran order, values)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain containers and the bytes of arrays; every other name in the pickle is refused."""

    STUBBED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module: str, name: str) -> type:
        if (module, name) in self.STUBBED:
            return _ArrayStub
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")


def _unpickle_arrays(content: bytes, name: str) -> dict:
    try:
        values = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises anything
        raise UsageError(f"{name} is refused: {error}. Download it again.") from error
    if not isinstance(values, dict):
        raise UsageError(f"{name} holds no dictionary. Download it again.")
    return values


class Member(NamedTuple):
    """One plain file in a tar file: where its bytes are."""

    name: str
    offset: int
    size: int


def tar_members(file: int, archive: str, start: int, end: int) -> Iterator[Member]:
    """Walks the headers of an uncompressed tar file that lies at [start, end) of an open file.

    Args:
        file: a file descriptor.
        archive: names the archive in errors.
        start: where the tar file begins, which is not 0 for a tar file inside another.
        end: where it ends.

    Raises:
        UsageError: it is cut short, damaged, or holds a link, a device or a path that climbs out.
    """
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
            raise UsageError(
                f"{archive} is damaged at byte {position - start:,}: {error}. Get it again."
            ) from error
        name, size, offset = entry.name, entry.size, position + TAR_BLOCK
        position = offset + -(-size // TAR_BLOCK) * TAR_BLOCK
        if size < 0 or position > end:
            raise UsageError(f"{archive} is cut short inside {name!r}. Get it again.")
        if entry.type in (tarfile.DIRTYPE, tarfile.XGLTYPE):
            continue
        if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise UsageError(f"{archive} holds {name!r}, which is no plain file: it is refused.")
        if name.startswith("/") or ".." in name.split("/"):
            raise UsageError(f"{archive} holds the unsafe path {name!r}: it is refused.")
        yield Member(name, offset, size)
