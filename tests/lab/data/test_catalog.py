"""The catalog: names, splits, and what is said of a set that is not there."""

import pickle

import numpy as np
import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import Source, open_source
from mnv2_jax.lab.data.catalog import CATALOG


def refused(name, split="train", root=None) -> str:
    with pytest.raises(UsageError) as error:
        open_source(name, split, root)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unknown_names_list_the_choices():
    message = refused("digit")
    assert "did you mean 'digits'" in message
    assert all(name in message for name in CATALOG)
    assert "'trian': did you mean 'train'" in refused("digits", "trian")
    assert "takes no root" in refused("digits", root="somewhere")


@pytest.mark.parametrize("name", sorted(set(CATALOG) - {"digits", "fashion_mnist_small", "scenes"}))
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_set_says_what_is_missing_and_where_to_get_it(tmp_path, name, split):
    if CATALOG[name].splits == ("test",):
        assert "did you mean" in refused(name, "tset", str(tmp_path))
        split = "test"
    message = refused(name, split, str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in message
    ways = ("curl ", "wget ", "apt-get ", "https://image-net.org", "The layout is")
    assert any(way in message for way in ways)
    if name != "fashion_mnist":
        assert "root" in refused(name, split)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist_small"])
def test_a_source_pickles_and_indexes_like_its_arrays(name):
    source = open_source(name, "test")
    assert isinstance(source, Source)
    copy = pickle.loads(pickle.dumps(source))
    for index in (0, 7, np.int64(11), len(source) - 1):
        np.testing.assert_array_equal(copy[index]["image"], source.arrays()["image"][index])
        assert copy[index]["label"] == source.arrays()["label"][index]


def test_grain_reads_a_source():
    grain = pytest.importorskip("grain")
    dataset = grain.MapDataset.source(open_source("digits", "test"))
    assert len(dataset) == 360
    assert dataset[5]["image"].shape == (8, 8, 1)
