"""CIFAR-10 and CIFAR-100 from their official archives, in the binary or the Python version.

Pickles of the Python version are read without running anything they name.
"""

import io
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import read_file
from mnv2_jax.lab.data.readers.archives import MAX_MEMBER_BYTES, read_tar_gz
from mnv2_jax.lab.data.source import ArraySource

PIXELS = 3 * 32 * 32


class Layout(NamedTuple):
    """Where one of the sets keeps its parts; a binary row has its label before the pixels."""

    files: dict[str, tuple[str, ...]]  # binary ones end in .bin
    binary_folder: str
    binary_names: str
    label_bytes: int  # the label is the last of them
    python_folder: str
    python_names: tuple[str, bytes]
    python_labels: bytes


CIFAR = {
    "cifar10": Layout(
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        "cifar-10-batches-bin", "batches.meta.txt", 1,
        "cifar-10-batches-py", ("batches.meta", b"label_names"), b"labels",
    ),
    "cifar100": Layout(
        {"train": ("train",), "test": ("test",)},
        "cifar-100-binary", "fine_label_names.txt", 2,
        "cifar-100-python", ("meta", b"fine_label_names"), b"fine_labels",
    ),
}  # fmt: skip


def open_cifar(name: str, split: str, root: str) -> ArraySource:
    """Opens CIFAR-10 or CIFAR-100 from the official archive, or its unpacked folder, in `root`.

    The binary version is preferred to the Python version.

    Raises:
        UsageError: neither is there, or a file is damaged.
    """
    archive, layout, top = name.replace("cifar", "cifar-"), CIFAR[name], Path(root)
    binary, python = (top / f"{archive}-{kind}.tar.gz" for kind in ("binary", "python"))
    for folder, tar, read in (
        (top / layout.binary_folder, binary, _read_binary),
        (top / layout.python_folder, python, _read_python),
    ):
        if tar.exists() or folder.is_dir():
            return ArraySource(*read(layout, split, tar, folder))
    raise UsageError(
        f"{name} is not in {top}: neither {binary.name} nor {python.name} is there. Get it with: "
        f"curl -L -o {binary} https://www.cs.toronto.edu/~kriz/{binary.name}"
    )


def _read_binary(layout: Layout, split: str, tar: Path, folder: Path) -> tuple:
    files = (*(f"{file}.bin" for file in layout.files[split]), layout.binary_names)
    *parts, (_, names) = _read_files(tar, folder, files).items()
    row = layout.label_bytes + PIXELS
    for file, content in parts:
        if not content or len(content) % row:
            raise UsageError(
                f"{file} in {tar.parent} has {len(content)} bytes, not a multiple of {row}: "
                "it is cut short. Download it again."
            )
    rows = np.concatenate([np.frombuffer(content, np.uint8) for _, content in parts])
    rows = rows.reshape(-1, row)
    images = _planes_to_images(rows[:, layout.label_bytes :])
    return images, rows[:, layout.label_bytes - 1], tuple(names.decode("ascii").split())


def _read_python(layout: Layout, split: str, tar: Path, folder: Path) -> tuple:
    meta, names_key = layout.python_names
    images, labels, names = [], [], ()
    for file, content in _read_files(tar, folder, (*layout.files[split], meta)).items():
        values = _unpickle_arrays(content, f"{file} in {tar.parent}")
        try:
            if file == meta:
                names = tuple(name.decode("ascii") for name in values[names_key])
                continue
            pixels = np.frombuffer(values[b"data"].buffer, np.uint8)
            labels.append(np.array(values[layout.python_labels], np.int64))
            images.append(_planes_to_images(pixels.reshape(len(labels[-1]), PIXELS)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"{file} in {tar.parent} is not a CIFAR batch. Download it again."
            ) from error
    return np.concatenate(images), np.concatenate(labels), names


def _planes_to_images(rows: np.ndarray) -> np.ndarray:
    """Turns rows of red, green and blue planes into (n, 32, 32, 3)."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _read_files(tar: Path, folder: Path, names: Collection[str]) -> dict[str, bytes]:
    """Reads files from a .tar.gz, or from the folder it unpacks to."""
    if tar.exists():
        return read_tar_gz(tar, names)
    return {name: read_file(folder / name, MAX_MEMBER_BYTES) for name in names}


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

    MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")

    def find_class(self, module: str, name: str) -> type:
        if module in self.MODULES and name in ("_reconstruct", "ndarray", "dtype"):
            return _ArrayStub
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not an array")


def _unpickle_arrays(content: bytes, name: str) -> dict:
    try:
        values = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises anything
        raise UsageError(f"{name} is refused: {first_line(error)}. Download it again.") from error
    if not isinstance(values, dict):
        raise UsageError(f"{name} holds no dictionary. Download it again.")
    return values
