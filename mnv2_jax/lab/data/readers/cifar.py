"""CIFAR-10 and CIFAR-100 from their official archives, without running what pickles name."""

import io
import operator
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.lab.data.readers.archives import read_tar_gz
from mnv2_jax.lab.data.readers.files import read_unzipped
from mnv2_jax.lab.data.source import ArraySource

PIXELS = 3 * 32 * 32
LAYOUT = "It holds cifar-{}-binary.tar.gz"


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
        "cifar-10-batches-py", ("batches.meta", b"label_names"), b"labels"),
    "cifar100": Layout(
        {"train": ("train",), "test": ("test",)}, "cifar-100-binary", "fine_label_names.txt", 2,
        "cifar-100-python", ("meta", b"fine_label_names"), b"fine_labels"),
}  # fmt: skip


def open_cifar(name: str, split: str, root: str) -> ArraySource:
    """Opens CIFAR-10 or CIFAR-100 from the official archive, or its unpacked folder, in `root`."""
    archive, layout, top = name.replace("cifar", "cifar-"), CIFAR[name], Path(root)
    binary, python = (top / f"{archive}-{kind}.tar.gz" for kind in ("binary", "python"))
    for tar, folder, suffix, names, read in (
        (binary, top / layout.binary_folder, ".bin", layout.binary_names, _read_binary),
        (python, top / layout.python_folder, "", layout.python_names[0], _read_python),
    ):
        files = (*(f"{file}{suffix}" for file in layout.files[split]), names)
        if tar.is_file():
            return ArraySource(*read(layout, read_tar_gz(tar, files), top))
        if folder.is_dir():
            contents = {name: read_unzipped(folder / name) for name in files}
            return ArraySource(*read(layout, contents, folder))
    raise UsageError(
        f"{name} is not in {top}: neither {binary.name} nor {python.name} is there. Get it with: "
        f"curl -L -o {binary} https://www.cs.toronto.edu/~kriz/{binary.name}"
    )


def _read_binary(layout: Layout, files: dict[str, bytes], folder: Path) -> tuple:
    *parts, (_, names) = files.items()
    row = layout.label_bytes + PIXELS
    for file, content in parts:
        if not content or len(content) % row:
            wrong = f"has {len(content)} bytes, not a multiple of {row}: it is cut short"
            raise UsageError(f"{file} in {folder} {wrong}. Download it again.")
    rows = np.frombuffer(b"".join(content for _, content in parts), np.uint8).reshape(-1, row)
    images = _planes_to_images(rows[:, layout.label_bytes :])
    classes = tuple(names.decode("ascii", "replace").split())
    return images, rows[:, layout.label_bytes - 1], classes


def _read_python(layout: Layout, files: dict[str, bytes], folder: Path) -> tuple:
    meta, names_key = layout.python_names
    images, labels, names = [], [], ()
    for file, content in files.items():
        try:
            values = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
            if file == meta:
                names = tuple(name.decode("ascii") for name in values[names_key])
                continue
            pixels = np.frombuffer(values[b"data"].buffer, np.uint8)
            listed = values[layout.python_labels]
            labels.append(np.fromiter(map(operator.index, listed), np.int64, len(listed)))
            images.append(_planes_to_images(pixels.reshape(len(labels[-1]), PIXELS)))
        except Exception as error:  # a damaged pickle raises anything
            wrong = f"is no CIFAR batch ({first_line(error)})"
            raise UsageError(f"{file} in {folder} {wrong}. Download it again.") from error
    return np.concatenate(images), np.concatenate(labels), names


def _planes_to_images(rows: np.ndarray) -> np.ndarray:
    """Turns rows of red, green and blue planes into (n, 32, 32, 3)."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class _ArrayStub:
    """Stands for a numpy object in a pickle: keeps its bytes and does nothing."""

    buffer = b""

    def __init__(self, *_): ...

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
