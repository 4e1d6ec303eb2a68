"""Makes the two embedded data sets from their originals, bit for bit.

    python tests/lab/data/make_embedded.py OUT_DIR

needs scikit-learn (for `load_digits`) and the four official Fashion-MNIST IDX files, which Debian
ships as `dataset-fashion-mnist`. Both splits are drawn with `numpy.random.Philox` raw bits, which
numpy keeps stable across versions, so that a rebuild selects the same images. The checksums of the
arrays are pinned in `tests/lab/data/test_embedded.py`.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from mnv2_jax.lab.data.catalog import EMBEDDED
from mnv2_jax.lab.data.readers.idx import DEBIAN_FASHION_MNIST, read_idx

SEED = 1801_04381
DIGITS_TEST_PER_CLASS = 36
FASHION_PER_CLASS = {"train": 600, "test": 200}


def draw_per_class(labels: np.ndarray, per_class: int, stream: int) -> np.ndarray:
    """Draws `per_class` indices of every class, and returns them in ascending order.

    >>> draw_per_class(np.array([0, 0, 1, 1]), 2, stream=0)
    array([0, 1, 2, 3])
    """
    bits = np.random.Philox(key=np.array([SEED, stream], np.uint64)).random_raw(len(labels))
    drawn = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        drawn.append(members[np.argsort(bits[members], kind="stable")[:per_class]])
    return np.sort(np.concatenate(drawn))


def digits() -> dict[str, np.ndarray]:
    """Splits scikit-learn's 1,797 digits into 360 for testing (36 a class) and 1,437 for training.

    The originals count the "on" pixels of 4x4 blocks, 0 to 16; here 0 to 255, as every other image:
    `round(value * 255 / 16)`.
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.uint8)
    test = draw_per_class(labels, DIGITS_TEST_PER_CLASS, stream=0)
    train = np.setdiff1d(np.arange(len(labels)), test)
    return split_arrays(train=(images[train], labels[train]), test=(images[test], labels[test]))


def fashion_mnist_small() -> dict[str, np.ndarray]:
    """Draws 600 training and 200 test images of each class from the official splits."""
    splits = {}
    for stream, (split, prefix) in enumerate((("train", "train"), ("test", "t10k")), start=1):
        images = read_idx(DEBIAN_FASHION_MNIST / f"{prefix}-images-idx3-ubyte.gz", dimensions=3)
        labels = read_idx(DEBIAN_FASHION_MNIST / f"{prefix}-labels-idx1-ubyte.gz", dimensions=1)
        drawn = draw_per_class(labels, FASHION_PER_CLASS[split], stream)
        splits[split] = (images[drawn, ..., None], labels[drawn])
    return split_arrays(**splits)


def split_arrays(**splits: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """Names the arrays as the embedded files do: `train_image`, `train_label`, ..."""
    arrays = {}
    for split, (images, labels) in splits.items():
        arrays |= {f"{split}_image": images, f"{split}_label": labels}
    return arrays


def main(folder: Path) -> None:
    """Writes `digits.npz` and `fashion_mnist_small.npz` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for make in (digits, fashion_mnist_small):
        arrays: Any = make()
        np.savez_compressed(folder / f"{make.__name__}.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else EMBEDDED)
