"""The embedded sets are what `make_embedded.py` makes, balanced, and split without overlap."""

import hashlib

import numpy as np
import pytest

from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.data.catalog import EMBEDDED
from tests.lab.data import make_embedded as make

SHA256 = {
    "digits": "be9b2bc8f9106144e19c6024ff13c98da23c8b115d550286e6bdb1504506f61a",
    "fashion_mnist_small": "2d6ec4027b9bf1bf4e6467ff21eabc67d4ca5aad62c67d0732399d44632dc51b",
}


def sha256_of_arrays(arrays) -> str:
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype} {arrays[key].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[key]))
    return digest.hexdigest()


@pytest.mark.parametrize("name", SHA256)
def test_the_stored_arrays_are_unchanged(name):
    with np.load(EMBEDDED / f"{name}.npz", allow_pickle=False) as file:
        assert sha256_of_arrays(dict(file)) == SHA256[name]


def test_every_embedded_file_is_pinned():
    assert {path.stem for path in EMBEDDED.glob("*.npz")} == set(SHA256)


def test_digits_are_rebuilt_from_scikit_learn():
    pytest.importorskip("sklearn")
    assert sha256_of_arrays(make.digits()) == SHA256["digits"]


@pytest.mark.skipif(
    not make.DEBIAN_FASHION_MNIST.exists(), reason="dataset-fashion-mnist not installed"
)
def test_fashion_mnist_small_is_rebuilt_from_the_official_files():
    assert sha256_of_arrays(make.fashion_mnist_small()) == SHA256["fashion_mnist_small"]


@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("digits", "test", [36] * 10),
        ("digits", "train", [142, 146, 141, 147, 145, 146, 145, 143, 138, 144]),
        ("fashion_mnist_small", "train", [600] * 10),
        ("fashion_mnist_small", "test", [200] * 10),
    ],
)
def test_class_counts(name, split, counts):
    source = open_source(name, split)
    assert np.bincount(source.arrays()["label"]).tolist() == counts
    assert len(source.classes) == 10


@pytest.mark.parametrize("name", SHA256)
def test_no_image_is_in_both_splits(name):
    train, test = (open_source(name, split).arrays()["image"] for split in ("train", "test"))
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}


def test_digits_use_the_full_range_of_a_byte():
    images = open_source("digits", "train").arrays()["image"]
    assert images.dtype == np.uint8
    assert len(np.unique(images)) == 17
    assert images.max() == 255


def test_shared_arrays_cannot_be_changed_by_accident():
    images = open_source("digits", "train").arrays()["image"]
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0
