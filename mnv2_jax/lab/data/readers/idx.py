"""MNIST and Fashion-MNIST in their official format: IDX files of unsigned bytes."""

import math
from pathlib import Path

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data.readers.files import MAX_UNZIPPED_BYTES, read_unzipped
from mnv2_jax.lab.data.source import ArraySource

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
DIGIT_CLASSES = tuple("0123456789")
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def open_mnist(split: str, root: str) -> ArraySource:
    """Opens MNIST from its four files."""
    get = f"wget -nc -P {root} {MNIST_URL}{{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte.gz"
    return _open_idx("mnist", DIGIT_CLASSES, split, Path(root), get)


def open_fashion_mnist(split: str, root: str | None) -> ArraySource:
    """Opens Fashion-MNIST from its four files, by default where Debian's package puts them."""
    get = "apt-get install dataset-fashion-mnist, or download the four files named at "
    get += "https://github.com/zalandoresearch/fashion-mnist and give their folder as the root"
    folder = Path(root or DEBIAN_FASHION_MNIST)
    return _open_idx("fashion_mnist", FASHION_CLASSES, split, folder, get)


def _open_idx(name: str, classes: tuple, split: str, folder: Path, get: str) -> ArraySource:
    prefix, arrays = "train" if split == "train" else "t10k", []
    for part, dimensions in (("images-idx3", 3), ("labels-idx1", 1)):
        stem = f"{prefix}-{part}-ubyte"
        path = next((p for p in (folder / f"{stem}.gz", folder / stem) if p.is_file()), None)
        if path is None:
            raise UsageError(f"{name}: {stem}.gz is not in {folder}. Get it with: {get}")
        arrays.append(read_idx(path, dimensions))
    return ArraySource(arrays[0][..., None], arrays[1], classes)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes, gzip-compressed or plain.

    The layout: two zero bytes, the type code (8 for unsigned byte), the number of dimensions, every
    dimension as a big-endian 32-bit integer, then the values. Images have 3 dimensions, labels 1.
    """
    content, start = read_unzipped(path), 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[i : i + 4]) for i in range(4, start, 4))
    expected, found, wrong = math.prod(shape), len(content) - start, ""
    if content[:4] != bytes((0, 0, 8, dimensions)):
        wrong = f"is not an IDX file of {dimensions} dimensions of unsigned bytes "
        wrong += f"(it starts with {content[:4].hex() or 'nothing'})"
    elif found < 0 or expected > MAX_UNZIPPED_BYTES:
        wrong = "has an impossible IDX header"
    elif found != expected:
        wrong = f"should hold {expected:,} values and holds {found:,}"
    if wrong:
        raise UsageError(f"{path} {wrong}. Download it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
