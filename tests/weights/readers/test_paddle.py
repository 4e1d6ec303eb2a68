"""PaddlePaddle's pickles: every protocol is read, and nothing in them is called."""

import builtins
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from mnv2_jax.lab.cli import main
from mnv2_jax.lab.model_folder import load_model
from mnv2_jax.models.spec import IMAGENET
from mnv2_jax.weights import export_weights, load_weights
from mnv2_jax.weights.readers.paddle import read_paddle
from tests.weights.networks import network, same
from tests.weights.test_hostile import refused

NAMES = {"StructuredToParameterName@@": {"conv1._conv.weight": "conv2d_0.w_0"}, "epoch": 3}


class Call:
    """Pickled, it calls a function; and gives a state to what that returns, if there is one."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def arrays():
    rng = np.random.default_rng(0)
    return {
        "conv1._conv.weight": rng.normal(size=(3, 4, 5)).astype(np.float32),
        "conv1._batch_norm.weight": rng.normal(size=4).astype(np.float32),
        "fortran": np.asfortranarray(rng.normal(size=(3, 4))),
        "half": rng.normal(size=7).astype(np.float16),
        "big": np.arange(3).astype(">i4"),
        "scalar": np.array(3.0),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4])  # those of `paddle.save`
def test_every_protocol_is_read(protocol):
    plain = arrays() | NAMES
    # A tensor of Paddle's newer releases is a pair of its name there and its array.
    pairs = {k: Call(tuple, ("w_0", v)) if k in arrays() else v for k, v in plain.items()}
    for stored in (plain, OrderedDict(plain), pairs):
        data = pickle.dumps(stored, protocol)
        older = data.replace(b"\x16numpy._core", b"\x15numpy.core")  # numpy 1
        for found in map(read_paddle, (data, older.replace(b"numpy._core", b"numpy.core"))):
            assert found.keys() == arrays().keys()
            for name, array in arrays().items():
                assert np.array_equal(found[name], array) and found[name].shape == array.shape


def write(path, ecosystem="paddleclas"):
    """Writes a small network; returns its variables."""
    model, variables = network(ecosystem)
    export_weights(model, variables, ecosystem, path.with_suffix(".npz"))
    with np.load(path.with_suffix(".npz")) as file:
        path.write_bytes(pickle.dumps(dict(file) | NAMES, protocol=2))
    return variables


def test_a_classifier_is_loaded(tmp_path):
    path = tmp_path / "model.pdparams"
    variables = write(path)
    loaded = load_weights(str(path))
    assert loaded.source == f"paddleclas:{path}" and loaded.task == "classify"
    assert same(loaded.variables, variables) and loaded.left_out == ()


def nested(depth):
    """A pickle of a tuple of two tuples of two tuples, whose hash would take 2**depth steps."""
    return b")" + b"q\0h\0\x86" * depth


CALLS = b"cnumpy._core.multiarray\n_reconstruct\n"
KEY, TAIL = b"\x80\x02}X\x01\0\0\0a", b"s."
LIES = {
    "a function": ({"a": Call(os.system, "touch made")}, "it names posix system, which no"),
    "a built-in": ({"a": Call(builtins.eval, "1")}, "it names __builtin__ eval"),
    "numpy's loader": ({"a": Call(np.load, "x.npy", None, True)}, "it names numpy load"),
    "a line break": (b"cos\nsys\x1b[31m\n.", r"it names os sys\\x1b"),
    "objects": ({"a": np.array([Call(os.system, "touch made")])}, "it names posix system"),
    "plain objects": ({"a": np.array([{}, {}])}, "a is not a plain array of numbers"),
    "text": ({"a": np.array(["x"])}, "a is not a plain array of numbers"),
    "a list": ([1, 2], "it holds a list where a state dict is needed"),
    "no name": (b"\x80\x02}" + nested(60) + b"N" + TAIL, "an entry without a name"),
    "a state for nothing": (KEY + b"}}bs.", "cannot be read as .pdparams"),
    "no memory of it": (KEY + b"h\x07s.", "cannot be read as .pdparams"),
    "an opcode": (KEY + b"2" + TAIL, "the opcode DUP, which arrays by name do not"),
    "a persistent id": (b"\x80\x02Ptorch\n.", "the opcode PERSID"),
    "room": (KEY + b"\x96" + b"\xff" * 7 + b"\0" + TAIL, "cannot be read as .pdparams"),
    "no end": (KEY, "cannot be read as .pdparams"),
    "its size": (KEY + CALLS + b")R(K\1J\xff\xff\xff\x7f\x85cnumpy\ndtype\nU\2f4\x85R(K\3U\1<tb"
                 b"\x89U\4aaaatb" + TAIL, "a claims shape .2147483647., more than the file"),
    "its axes": (KEY + CALLS + b")R(K\1(" + b"K\1" * 99 + b"tcnumpy\ndtype\nU\2f4\x85R(K\3U\1<tb"
                 b"\x89U\4aaaatb" + TAIL, "a is not a plain array of numbers"),
    "many opcodes": (KEY + b"K\1" * 100_001 + b".", "larger than that of weights"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_what_is_no_dictionary_of_arrays_is_refused(tmp_path, monkeypatch, lie):
    monkeypatch.chdir(tmp_path)
    content, match = LIES[lie]
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
    (tmp_path / "model.pdparams").write_bytes(data)
    refused(f"paddleclas:{tmp_path / 'model.pdparams'}", match, peak=2e7 + 12 * len(data))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_one_array_of_many_names_is_no_bomb(tmp_path, protocol):
    array = np.zeros(1_000_000, np.float32)
    data = pickle.dumps(dict.fromkeys(map(str, range(5000)), array), protocol)
    (tmp_path / "model.pdparams").write_bytes(data)
    refused(f"paddleclas:{tmp_path / 'model.pdparams'}", "claims shape", peak=5 * len(data))


@pytest.mark.slow
def test_the_command_line_imports_it(tmp_path):
    model, variables = network("paddleclas", spec=IMAGENET, width=0.25)
    export_weights(model, variables, "paddleclas", tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as file:
        (tmp_path / "model.pdparams").write_bytes(pickle.dumps(dict(file), protocol=4))
    assert main(["import", str(tmp_path / "model.pdparams"), str(tmp_path / "model")]) == 0
    saved = load_model(tmp_path / "model")
    assert same(saved.variables, variables)
    assert saved.model == load_weights(f"paddleclas:{tmp_path / 'model.pdparams'}").model
    options = saved.description["model"]
    assert (options["spec"], options["width"], options["expand"]) == ("paddle", 0.25, "always")
