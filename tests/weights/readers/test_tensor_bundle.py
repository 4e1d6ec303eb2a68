"""TensorFlow's checkpoints: read, chosen from, and checked by their own checksums."""

import struct

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from mnv2_jax import UsageError
from mnv2_jax.weights import ECOSYSTEMS, load_weights
from mnv2_jax.weights.readers import read_tensors
from mnv2_jax.weights.readers.crc32c import LANES, LONG, crc32c, unmask
from mnv2_jax.weights.tensors import tensors, to_theirs
from tests.weights.bundles import masked, slow_crc32c, write_bundle
from tests.weights.networks import network, same

TENSORS = {
    "a/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "a/kernel/RMSProp": np.zeros((2, 3, 4), np.float32),
    "b": np.array([1.5, -2.0], np.float64),
    "empty": np.zeros((0, 3), np.float32),
    "global_step": np.array(7, np.int64),
}


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=200), st.just(0) | st.integers(LONG - LANES, LONG + 2 * LANES))
def test_checksums(tail, zeros):
    data = bytes(range(1, 256)) * (zeros // 255) + tail
    assert crc32c(data) == slow_crc32c(data)
    assert unmask(struct.unpack("<I", masked(crc32c(data)))[0]) == crc32c(data)


def test_tensors_are_read_by_any_of_the_names(tmp_path):
    write_bundle(tmp_path / "model.ckpt-12", TENSORS)
    for name in ("model.ckpt-12", "model.ckpt-12.index", "model.ckpt-12.data-00000-of-00001"):
        contents = read_tensors(tmp_path / name)
        assert contents.averages == "absent"
        assert contents.tensors.keys() == TENSORS.keys() - {"a/kernel/RMSProp"}
        for key, array in contents.tensors.items():
            assert array.dtype == TENSORS[key].dtype and np.array_equal(array, TENSORS[key])


def slim_checkpoint(tmp_path, classes=3):
    """Writes a checkpoint as slim's training leaves it: weights, averages, optimizer slots."""
    slim = ECOSYSTEMS["slim"]
    model, variables = network("slim", classes=classes)
    flat = flatten_dict(variables, sep="/")
    found = {"global_step": np.array(700000, np.int64)}
    for tensor in tensors(slim, model.spec, model.width, 3, classes):
        array = to_theirs(slim.framework, tensor.kind, flat[tensor.ours])
        found[tensor.theirs] = array + 1
        if "moving_" in tensor.theirs:  # slim averages what is trained
            found[tensor.theirs] = array
            continue
        found[f"{tensor.theirs}/ExponentialMovingAverage"] = array
        found[f"{tensor.theirs}/RMSProp"] = np.ones_like(array)
        found[f"{tensor.theirs}/RMSProp_1"] = np.zeros_like(array)
    write_bundle(tmp_path / "model.ckpt", found, crc32c)
    return variables


@pytest.mark.slow
def test_averages_are_preferred(tmp_path):
    variables = slim_checkpoint(tmp_path)
    loaded = load_weights(f"slim:{tmp_path / 'model.ckpt'}")
    assert same(loaded.variables, variables)
    raw = load_weights(f"slim:{tmp_path / 'model.ckpt'}", ema=False).variables
    stem = variables["params"]["stem"]["conv"]["kernel"]
    assert np.array_equal(raw["params"]["stem"]["conv"]["kernel"], stem + 1)
    assert same(raw["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("file", ["model.index", "model.data-00000-of-00001"])
def test_no_flipped_bit_is_loaded(tmp_path, file):
    tensors = {"a": np.arange(6, dtype=np.float32), "bb/c": np.ones((2, 2), np.float32)}
    write_bundle(tmp_path / "model", tensors)
    path = tmp_path / file
    original = path.read_bytes()
    accepted = 0
    for at in range(len(original)):
        path.write_bytes(original[:at] + bytes([original[at] ^ 1 << at % 8]) + original[at + 1 :])
        try:
            found = read_tensors(tmp_path / "model").tensors
        except UsageError:
            continue
        # no checksum covers the metaindex, which is not used, nor the footer's padding
        accepted += 1
        assert found.keys() == tensors.keys()
        assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
    assert accepted <= 13 + 40


def test_what_is_no_checkpoint_is_refused(tmp_path):
    write_bundle(tmp_path / "model", TENSORS)
    (tmp_path / "model.data-00000-of-00001").unlink()
    with pytest.raises(UsageError, match="lies in data file 0, and there are 0"):
        read_tensors(tmp_path / "model")
    (tmp_path / "model.index").write_bytes(b"x" * 100)
    with pytest.raises(UsageError, match="not the index of a TensorFlow"):
        read_tensors(tmp_path / "model")
