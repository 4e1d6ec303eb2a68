"""TensorFlow.js' layers models, written here by the format's own description."""

import json

import numpy as np
import pytest

from mnv2_jax import UsageError, inspect_weights, load_weights
from mnv2_jax.weights import export_weights
from mnv2_jax.weights.readers import read_tensors
from tests.weights.networks import network, same
from tests.weights.peers import CLASSES, keras_peer

SHARD = 5000  # bytes; tensorflowjs_converter makes shards of 4 MB


def quantize(array, kind):
    """As tensorflowjs_converter does: zero is one of the numbers that can be stored."""
    if kind == "float16":
        return array.astype("<f2"), {"dtype": kind}
    low, high, levels = float(array.min()), float(array.max()), np.iinfo(kind).max
    scale = (high - low) / levels or 1.0
    low = -round(-low / scale) * scale if low <= 0 <= high else low
    stored = np.clip(np.round((array - low) / scale), 0, levels).astype(kind)
    return stored, {"dtype": kind, "min": low, "scale": scale}


def write_tfjs(folder, groups, topology=None, kind=None, shard=SHARD, **extra):
    """Writes groups of {name: array} as model.json and shards."""
    manifest = []
    for number, group in enumerate(groups, 1):
        weights, data = [], b""
        for name, array in group.items():
            entry = {"name": name, "shape": list(array.shape), "dtype": array.dtype.name}
            if kind and array.dtype == np.float32:
                array, entry["quantization"] = quantize(array, kind)
            weights.append(entry)
            data += array.tobytes()
        parts = [data[i : i + shard] for i in range(0, len(data), shard)]
        paths = [f"group{number}-shard{i}of{len(parts)}.bin" for i in range(1, len(parts) + 1)]
        for path, part in zip(paths, parts, strict=True):
            (folder / path).write_bytes(part)
        manifest.append({"paths": paths, "weights": weights})
    content = {"format": "layers-model", "generatedBy": "keras v2.15.0", **extra}
    content |= {"modelTopology": topology, "weightsManifest": manifest}
    path = folder / "model.json"
    path.write_text(json.dumps(content))
    return path


def older(name):
    """The name that Keras 2 and TensorFlow.js give to a depthwise kernel."""
    return name.replace("depthwise/kernel", "depthwise/depthwise_kernel")


@pytest.fixture(scope="module")
def thin(tmp_path_factory):
    """The tensors of a small network under Keras' names, and its variables."""
    path = tmp_path_factory.mktemp("thin") / "keras.npz"
    model, variables = network("keras")
    export_weights(model, variables, "keras", path)
    with np.load(path) as file:
        return {older(name): array for name, array in file.items()}, variables


def halves(tensors):
    names = sorted(tensors)
    return [{name: tensors[name] for name in part} for part in (names[:100], names[100:])]


def test_groups_and_shards_are_read(tmp_path, thin):
    tensors, variables = thin
    path = write_tfjs(tmp_path, halves(tensors), shard=1000)
    assert len(list(tmp_path.iterdir())) > 5
    loaded = load_weights(str(path))
    assert loaded.source == f"keras:{path}" and same(loaded.variables, variables)
    assert load_weights(loaded.source, sha256=loaded.sha256).sha256 == loaded.sha256
    with pytest.raises(UsageError, match=r"is a folder: give a file in it, such as model\.json"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("kind", "error"), [("float16", 2**-11), ("uint8", 0.5 / 255), ("uint16", 0.5 / 65535)]
)
def test_quantized_weights_are_widened(tmp_path, thin, kind, error):
    tensors, _ = thin
    path = write_tfjs(tmp_path, [tensors], kind=kind)
    found = read_tensors(path).tensors
    for name, array in tensors.items():
        name = name.replace("depthwise_kernel", "kernel")
        spread = np.abs(array).max() if kind == "float16" else np.ptp(array)
        np.testing.assert_allclose(found[name], array, atol=error * spread + 1e-6, rtol=0)
    assert load_weights(f"keras:{path}").variables


def test_the_state_of_an_optimizer_is_left_out(tmp_path, thin):
    tensors, variables = thin
    state = {"Conv1/kernel/Adam/m": np.ones(3, np.float32), "iterations": np.zeros(1, np.int32)}
    path = write_tfjs(tmp_path, [tensors, state])
    content = json.loads(path.read_text())
    for entry in content["weightsManifest"][1]["weights"]:
        entry["group"] = "optimizer"
    path.write_text(json.dumps(content))
    loaded = load_weights(f"keras:{path}")
    assert same(loaded.variables, variables) and not loaded.left_out


def teachable(tensors):
    """The layers of Teachable Machine's image models, as TensorFlow.js 1.3 describes them."""
    shape = {"batch_input_shape": [None, 224, 224, 3], "dtype": "float32"}
    layers = [("InputLayer", {"name": "input_1", **shape}), ("Conv2D", {"name": "Conv1"})]
    layers += [("BatchNormalization", {"name": "bn_Conv1", "epsilon": 0.001})]
    layers += [("ReLU", {"name": "out_relu", "max_value": 6})]
    truncated = ("Model", {"name": "model1", "layers": listed(layers)})
    pooling = ("GlobalAveragePooling2D", {"name": "global_average_pooling2d_1"})
    dense = ("Dense", {"name": "dense_Dense1", "units": 100, "activation": "relu"})
    last = ("Dense", {"name": "dense_Dense2", "units": 3, "activation": "softmax"})
    parts = [(truncated, pooling), (dense, last)]
    parts = [
        ("Sequential", {"name": f"sequential_{number}", "layers": listed(part)})
        for number, part in zip((1, 3), parts, strict=True)
    ]
    whole = {"class_name": "Sequential", "config": {"name": "x", "layers": listed(parts)}}
    head = {
        "dense_Dense1/kernel": np.ones((5, 100), np.float32),
        "dense_Dense1/bias": np.ones(100, np.float32),
        "dense_Dense2/kernel": np.ones((100, 3), np.float32),
    }
    rest = {name: array for name, array in tensors.items() if "predictions" not in name}
    return rest | head, whole | {"keras_version": "tfjs-layers 1.3.1"}


def listed(layers):
    return [{"class_name": kind, "config": config} for kind, config in layers]


def test_a_teachable_machines_backbone_is_loaded(tmp_path, thin):
    tensors, topology = teachable(thin[0])
    path = write_tfjs(tmp_path, [tensors], topology)
    with pytest.raises(UsageError, match=r"another head.*dense_Dense1/kernel.*drop_head=True"):
        load_weights(str(path))
    loaded = load_weights(f"keras:{path}", drop_head=True)
    head = ("dense_Dense1/bias", "dense_Dense1/kernel", "dense_Dense2/kernel")
    assert loaded.left_out == head and loaded.preprocessing.size == 224
    variables = thin[1]
    backbone = {k: v for k, v in variables["params"].items() if k != "classifier"}
    assert same(loaded.variables, variables | {"params": backbone})
    findings = {finding.topic: finding for finding in inspect_weights(path)}
    assert findings["left out"].found == "dense_Dense1 (2), dense_Dense2 (1)"
    assert findings["ecosystem"].found == "keras (Keras Applications)"


def spoiled(change):
    """Returns a model.json of one weight of four bytes, changed."""
    weight = {"name": "Conv1/kernel", "shape": [1], "dtype": "float32"}
    manifest = [{"paths": ["w.bin"], "weights": [weight]}]
    content = {"format": "layers-model", "modelTopology": {}, "weightsManifest": manifest}
    change(content, manifest[0], weight)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, g, w: c.update(format="graph-model"), r"graph model.*\.h5, \.keras or \.tflite"),
        (lambda c, g, w: c.update(modelTopology={"node": []}, format=None), "graph model"),
        (lambda c, g, w: c.pop("weightsManifest"), "has no weightsManifest"),
        (lambda c, g, w: w.update(shape=[2]), r"w\.bin has 4 bytes, and the manifest declares 8"),
        (lambda c, g, w: w.update(dtype="float16"), "has 4 bytes, and the manifest declares 2"),
        (lambda c, g, w: w.update(shape=[1 << 40]), "declares 4398046511104 bytes, more than"),
        (lambda c, g, w: w.update(shape=[-1]), r"has the shape \[-1\]"),
        (lambda c, g, w: w.update(shape=["1"]), "has the shape"),
        (lambda c, g, w: w.update(dtype="string"), "stored as string, which is not read"),
        (lambda c, g, w: w.update(quantization={"dtype": "int4"}), "stored as int4"),
        (lambda c, g, w: w.update(quantization={"dtype": "uint8", "min": 0}), "without a scale"),
        (lambda c, g, w: w.pop("name"), "cannot be read as .json"),
        (lambda c, g, w: g.update(paths=["w.bin", "w.bin"]), "names 2 files, 1 different"),
        (lambda c, g, w: g.update(paths=["x.bin"]), r"x\.bin, which it names, is not beside it"),
        (lambda c, g, w: g.update(paths=["../w.bin"]), "does not lie beside it or below"),
        (lambda c, g, w: g.update(paths=["a/../../w.bin"]), "does not lie beside it or below"),
        (lambda c, g, w: g.update(paths=["/etc/passwd"]), "does not lie beside it or below"),
        (lambda c, g, w: g.update(paths=["..\\w.bin"]), "does not lie beside it or below"),
        (lambda c, g, w: g.update(paths=["http://a/w.bin"]), "does not lie beside it or below"),
        (lambda c, g, w: g.update(weights=[w, w]), "has 4 bytes, and the manifest declares 8"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "model.json"
    (tmp_path / "w.bin").write_bytes(bytes(4))
    path.write_text(json.dumps(spoiled(change)))
    with pytest.raises(UsageError, match=message) as caught:
        read_tensors(path)
    assert str(caught.value).isprintable() and repr(str(path)) in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"weightsManifest": {}}', "null"])
def test_other_files_of_json_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "model.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"model\.json' cannot be read") as caught:
        inspect_weights(path)
    assert str(caught.value).isprintable()


@pytest.mark.nightly
@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_logits_are_those_of_keras(tmp_path):
    import jax

    found = keras_peer(0.35, CLASSES, seed=0)
    names = {f"{layer.name}/{v.name}": v for layer in found.native.layers for v in layer.weights}
    tensors = {older(name): np.asarray(value) for name, value in names.items()}
    topology = {"keras_version": "2.15.0", "model_config": json.loads(found.native.to_json())}
    path = write_tfjs(tmp_path, [tensors], topology, shard=1 << 20)
    loaded = load_weights(str(path))
    assert loaded.backbone.width == 0.35 and loaded.classes == CLASSES
    assert loaded.preprocessing.size == 96
    images = np.random.default_rng(1).uniform(-1, 1, (2, 96, 96, 3)).astype(np.float32)
    theirs = found.logits(images)
    ours = jax.jit(loaded.model.apply)(loaded.variables, images)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)
