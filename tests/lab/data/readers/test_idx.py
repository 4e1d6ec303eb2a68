"""IDX files in their official layout, whole, cut short and damaged."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.data.readers.idx import read_idx
from tests.lab.data.pictures import idx_bytes, write_mnist


def refusal(read) -> str | None:
    try:
        read()
    except UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_sets(tmp_path, name, compress):
    written = write_mnist(tmp_path, compress)
    for split in ("train", "test", "validation"):
        images, labels = written["train" if split == "train" else "test"]
        source = open_source(name, split, str(tmp_path))
        np.testing.assert_array_equal(source.arrays()["image"][..., 0], images)
        np.testing.assert_array_equal(source.arrays()["label"], labels)
        assert source[3]["image"].shape == (28, 28, 1)
        assert source[3]["label"] == 3


@given(cut=st.integers(0, 400), compress=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_cut_idx_file_is_refused(tmp_path_factory, cut, compress):
    content = idx_bytes(np.arange(200).reshape(2, 10, 10))
    content = gzip.compress(content) if compress else content
    path = tmp_path_factory.mktemp("idx") / ("x.gz" if compress else "x")
    path.write_bytes(content[: min(cut, len(content) - 1)])
    with pytest.raises(UsageError) as error:
        read_idx(path, dimensions=3)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@given(content=st.binary(max_size=64))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_read_as_idx_or_refused(tmp_path_factory, content):
    for name in ("x", "x.gz"):
        path = tmp_path_factory.mktemp("idx") / name
        path.write_bytes(b"\0\0\x08\x01" + content if name == "x" else content)
        error = refusal(lambda path=path: read_idx(path, dimensions=1))
        assert error is None or "\n" not in error


def test_a_huge_idx_header_is_refused_before_reading(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1))
    with pytest.raises(UsageError, match="impossible IDX header"):
        read_idx(path, dimensions=3)


def test_labels_that_do_not_match_the_images_are_refused(tmp_path):
    write_mnist(tmp_path, compress=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(11)))
    with pytest.raises(UsageError, match="one label each"):
        open_source("mnist", "train", str(tmp_path))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(12, 10)))
    with pytest.raises(UsageError, match="labels run from 10 to 10 but there are 10 classes"):
        open_source("mnist", "train", str(tmp_path))
