"""What lies beside weights is obeyed, or refused in one line."""

import json

import h5py
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import UsageError, build, normalize
from mnv2_jax.models.spec import IMAGENET
from mnv2_jax.weights import export_weights, load_weights
from mnv2_jax.weights.beside import read_beside
from tests.weights.networks import network, same


def beside(folder, ecosystem, **files):
    export_weights(*network(ecosystem), ecosystem, folder / "model.safetensors")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return f"{ecosystem}:{folder / 'model.safetensors'}"


HF = {
    "model_type": "mobilenet_v2",
    "image_size": 96,
    "tf_padding": False,
    "layer_norm_eps": 1e-5,
    "id2label": {"0": "ant", "1": "bee", "2": "cow"},
}
PROCESSOR = {
    "size": {"shortest_edge": 128},
    "crop_size": {"height": 112, "width": 112},
    "resample": 3,
    "rescale_factor": 1 / 127.5,
    "image_mean": [1.0, 1.0, 1.0],
    "image_std": [1.0, 1.0, 2.0],
}


def test_hugging_faces_description_is_obeyed(tmp_path):
    loaded = load_weights(beside(tmp_path, "hf", config=HF))
    assert loaded.preprocessing.size == 96 and loaded.preprocessing.resize == 128
    assert loaded.names == ("ant", "bee", "cow")
    assert (loaded.dialect.padding, loaded.dialect.bn_epsilon) == ("symmetric", 1e-5)
    loaded = load_weights(beside(tmp_path, "hf", config=HF, preprocessor_config=PROCESSOR))
    rule = loaded.preprocessing
    assert (rule.size, rule.resize, rule.method) == (112, 128, "bicubic")
    pixels = jnp.full((1, 1, 3), 255, jnp.uint8)
    np.testing.assert_allclose(normalize(pixels, loaded.dialect), [[[1, 1, 0.5]]], atol=1e-6)
    # what was chosen counts more
    chosen = load_weights(loaded.source, resolution=64, mean=[0.1], std=[0.2])
    assert (chosen.preprocessing.size, chosen.dialect.mean) == (64, (0.1,))


def test_timms_description_is_obeyed(tmp_path):
    stated = {"input_size": [3, 160, 160], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    stated |= {"crop_pct": 1.0, "interpolation": "bilinear", "crop_mode": "squash"}
    config = {"pretrained_cfg": stated, "label_names": ["ant", "bee", "cow"]}
    for content in (config, stated | {"label_names": config["label_names"]}):  # new and old
        loaded = load_weights(beside(tmp_path, "timm", config=content))
        rule = loaded.preprocessing
        assert (rule.size, rule.crop, rule.fraction, rule.method) == (160, "stretch", 1, "bilinear")
        assert loaded.dialect.mean == (0.5,) and loaded.names == ("ant", "bee", "cow")


def test_a_dialect_of_its_own_is_saved_and_built_again(tmp_path):
    export_weights(*network("hf", spec=IMAGENET, width=0.35), "hf", tmp_path / "model.npz")
    (tmp_path / "config.json").write_text(json.dumps(HF))
    loaded = load_weights(f"hf:{tmp_path / 'model.npz'}", mean=[0.1, 0.2, 0.3], std=[1, 1, 1])
    assert build(**json.loads(json.dumps(loaded.options))) == loaded.model
    assert loaded.options["dialect"]["padding"] == "symmetric"
    for wrong in ({"name": "hf", "padding": 3}, {"name": "hf", "mean": []}, {"name": "x"}):
        with pytest.raises(UsageError, match="dialect"):
            build(dialect=wrong)


@pytest.mark.parametrize(
    ("ecosystem", "file", "change", "message"),
    [
        ("hf", "config", {"hidden_act": "swish"}, "hidden_act is 'swish'"),
        ("hf", "config", {"image_size": [96, 128]}, "one size for height and width"),
        ("hf", "config", {"image_size": "96"}, "one size for height and width"),
        ("hf", "config", {"tf_padding": "yes"}, "tf_padding is 'yes'"),
        ("hf", "config", {"id2label": {"0": "a", "1": 3}}, "names of classes"),
        ("hf", "config", {"id2label": {"0": "a"}}, "has 3 classes, and .* names 1"),
        ("hf", "config", {"model_type": "vit"}, "model_type is 'vit'"),
        ("hf", "preprocessor_config", {"image_std": [0]}, "std is"),
        ("hf", "preprocessor_config", {"image_mean": [1, 2]}, "mean has 2 values"),
        ("hf", "preprocessor_config", {"resample": 1}, "resample is 1"),
        ("hf", "preprocessor_config", {"do_resize": False}, "do_resize is False"),
        ("timm", "config", {"global_pool": "max"}, "global_pool is 'max'"),
        ("timm", "config", {"input_size": [3, 96, 128]}, "one size for height and width"),
        ("timm", "config", {"crop_pct": 2}, "crop_pct is 2"),
        ("timm", "config", {"mean": None, "std": None}, "cannot be followed"),
        ("timm", "config", {"model_args": {"act_layer": "silu"}}, "act_layer"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(tmp_path, ecosystem, file, change, message):
    with pytest.raises(UsageError, match=message) as error:
        load_weights(beside(tmp_path, ecosystem, **{file: change}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 0}, "resolution is 0"),
        ({"mean": [0.5]}, "belong together"),
        ({"mean": [0.5], "std": [0.0]}, "std is"),
        ({"mean": [float("nan")], "std": [1.0]}, "mean is"),
        ({"mean": [0.5, 0.6], "std": [1.0]}, "mean has 2 values"),
    ],
)
def test_choices_are_checked(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        load_weights(beside(tmp_path, "timm"), **options)


def layer(kind, inputs=None, **config):
    return {"class_name": kind, "config": {"name": kind.lower(), **config}, "inbound_nodes": inputs}


def keras(tmp_path, before=(), after=(), size=96, epsilon=0.001):
    """A file of Keras with a nested network, as `model.save` writes its layers and tensors."""
    path = tmp_path / "model.h5"
    export_weights(*network("keras"), "keras", path)
    inner = [
        layer("InputLayer", batch_shape=[None, size, size, 3]),
        layer("Conv2D"),
        layer("BatchNormalization", epsilon=epsilon),
        layer("ReLU", max_value=6.0),
        layer("GlobalAveragePooling2D"),
    ]
    outer = [layer("InputLayer", batch_shape=[None, 180, 180, 3]), *before]
    nested = {"class_name": "Functional", "config": {"name": "base", "layers": inner}}
    layers = [*outer, nested, *after, layer("Dense", activation="softmax", units=3)]
    graph = {"class_name": "Functional", "config": {"name": "m", "layers": layers}}
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps(graph)
    return f"keras:{path}"


def op(kind, number):
    return layer(kind, [{"args": [{"class_name": "__keras_tensor__"}, number], "kwargs": {}}])


LAMBDA = [["input_1", 0, 0, {"y": 255.0, "name": None}]]


@pytest.mark.parametrize(
    ("before", "mean", "std"),
    [
        ((), (0.5,), (0.5,)),
        ((layer("RandomFlip"), layer("Rescaling", scale=1 / 127.5, offset=-1)), (0.5,), (0.5,)),
        ((op("TrueDivide", 127.5), op("Subtract", 1.0)), (0.5,), (0.5,)),
        ((layer("Rescaling", scale=1 / 255),), (0.0,), (1.0,)),
        # Keras before 2.4 pads by a layer of its own, and the stem then pads nothing.
        ((layer("ZeroPadding2D", padding=[[0, 1], [0, 1]]),), (0.5,), (0.5,)),
        ((layer("TFOpLambda", LAMBDA, function="math.truediv"),), (0.0,), (1.0,)),
        (
            (layer("Normalization", mean=[0.0, 127.5, 255.0], variance=[1.0, 255.0**2, 1.0]),),
            (0.0, 0.5, 1.0),
            (0.003921569, 1.0, 0.003921569),
        ),
    ],
)
def test_what_a_keras_model_does_to_pixels_is_obeyed(tmp_path, before, mean, std):
    loaded = load_weights(keras(tmp_path, before))
    assert loaded.preprocessing.size == 96 and loaded.classes == 3
    assert loaded.dialect.mean == mean and loaded.dialect.std == std


@pytest.mark.slow
def test_what_a_keras_model_computes_otherwise_is_obeyed_or_refused(tmp_path):
    assert load_weights(keras(tmp_path, epsilon=1e-5)).dialect.bn_epsilon == 1e-5
    for before in (layer("Lambda"), layer("Normalization"), op("Power", 2.0)):
        with pytest.raises(UsageError, match="changes the pixels in a way that is not followed"):
            load_weights(keras(tmp_path, [before]))
    for after in (layer("GlobalMaxPooling2D"), layer("Dense", activation="sigmoid", units=3)):
        source = keras(tmp_path, after=[after])
        with pytest.raises(UsageError, match=r"more than the softmax.*drop_head=True"):
            load_weights(source)
        assert load_weights(source, drop_head=True).classes is None
    for graph in ("{", "[]", '{"config": 3}', '{"config": {"layers": [{}]}}', "[" * 100_000):
        with pytest.raises(UsageError, match="cannot be followed"):
            read_beside("keras", "model.h5", graph)


def test_ours_beside_others_says_nothing(tmp_path):
    loaded = load_weights(beside(tmp_path, "torchvision", config={"image_size": "large"}))
    assert loaded.preprocessing.size == 224 and same(loaded.variables, network("torchvision")[1])
