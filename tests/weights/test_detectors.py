"""The detector of TensorFlow's Object Detection API: names, outputs, anchors and classes.

Names are those of its released ssdlite_mobilenet_v2_coco and of its code, and are written out here:
object_detection/models/{ssd_mobilenet_v2_feature_extractor,feature_map_generators}.py and
predictors/heads/. What it computes is computed again with numpy.
"""

import itertools
import math

import jax
import numpy as np
import pytest

from mnv2_jax import UsageError, inspect_weights, load_weights
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.model_folder import load_model
from mnv2_jax.models.build import build_ssdlite
from mnv2_jax.models.spec import IMAGENET
from mnv2_jax.weights.coco import IDS, NAMES
from mnv2_jax.weights.names import ECOSYSTEMS
from mnv2_jax.weights.readers.crc32c import crc32c
from mnv2_jax.weights.tensors import tensors
from tests.weights.bundles import write_bundle
from tests.weights.networks import same, shapes_of

WIDTH, SIZE = 0.35, 96
ANCHORS = (3, 6, 6, 6, 6, 6)
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
EPSILON = 1e-3  # of batch norm, in its pipeline.config


def heads(width, classes, taps):
    """Names and shapes of what follows the backbone, whose two maps have so many channels."""
    depths = [max(int(d * width), 16) for d in (512, 256, 256, 128)]
    maps, found = [*taps, *depths], {}

    def norm(scope, channels):
        found.update({f"{scope}/BatchNorm/{name}": (channels,) for name in NORM})

    for i, depth in enumerate(depths, 2):
        half = max(int((512, 256, 256, 128)[i - 2] / 2 * width), 16)
        base = "FeatureExtractor/MobilenetV2/layer_19"
        first, second = f"{base}_1_Conv2d_{i}_1x1_{half}", f"{base}_2_Conv2d_{i}_3x3_s2_{depth}"
        found[f"{first}/weights"] = (1, 1, maps[i - 1], half)
        found[f"{second}_depthwise/depthwise_weights"] = (3, 3, half, 1)
        found[f"{second}/weights"] = (1, 1, half, depth)
        for scope, channels in ((first, half), (f"{second}_depthwise", half), (second, depth)):
            norm(scope, channels)
    for i, (channels, count) in enumerate(zip(maps, ANCHORS, strict=True)):
        for name, size in (("BoxEncodingPredictor", 4), ("ClassPredictor", classes + 1)):
            scope = f"BoxPredictor_{i}/{name}"
            found[f"{scope}_depthwise/depthwise_weights"] = (3, 3, channels, 1)
            norm(f"{scope}_depthwise", channels)
            found[f"{scope}/weights"] = (1, 1, channels, count * size)
            found[f"{scope}/biases"] = (count * size,)
    return found


def shapes(width, classes):
    """Names and shapes of a whole file: those of the backbone are slim's."""
    backbone = shapes_of("slim", width=width, classes=None)
    taps = backbone["MobilenetV2/expanded_conv_13/expand/weights"][3], 1280
    named = {f"FeatureExtractor/{name}": shape for name, shape in backbone.items()}
    return named | heads(width, classes, taps)


def drawn(name, shape, rng):
    if name.endswith("weights"):
        fan_in = 9 if "depthwise" in name else shape[2]
        return rng.normal(0, (1.3 / fan_in) ** 0.5, shape).astype(np.float32)
    low, high = (0.5, 1.5) if name.endswith(("gamma", "variance")) else (-0.5, 0.5)
    return rng.uniform(low, high, shape).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The prefix of a checkpoint of COCO's 90 ids, and its tensors."""
    prefix, rng = tmp_path_factory.mktemp("detector") / "model.ckpt", np.random.default_rng(0)
    found = {name: drawn(name, shape, rng) for name, shape in shapes(WIDTH, 90).items()}
    write_bundle(prefix, found | {"global_step": np.array(7, np.int64)}, crc32c)
    return prefix, found


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_weights(str(checkpoint[0]))


def test_names_are_those_of_the_released_file():
    listed = {t.theirs for t in tensors(ECOSYSTEMS["slim"], IMAGENET, 1.0, 3, 90, None, True)}
    assert {name.removeprefix("FeatureExtractor/") for name in shapes(1.0, 90)} == listed
    for name in (
        "MobilenetV2/layer_19_1_Conv2d_2_1x1_256/weights",
        "MobilenetV2/layer_19_2_Conv2d_2_3x3_s2_512_depthwise/depthwise_weights",
        "MobilenetV2/layer_19_2_Conv2d_2_3x3_s2_512/BatchNorm/moving_variance",
        "MobilenetV2/layer_19_1_Conv2d_3_1x1_128/weights",
        "MobilenetV2/layer_19_2_Conv2d_4_3x3_s2_256/weights",
        "MobilenetV2/layer_19_1_Conv2d_5_1x1_64/weights",
        "MobilenetV2/layer_19_2_Conv2d_5_3x3_s2_128_depthwise/BatchNorm/gamma",
        "BoxPredictor_0/BoxEncodingPredictor_depthwise/depthwise_weights",
        "BoxPredictor_5/ClassPredictor/biases",
    ):
        assert name in listed


def test_a_checkpoint_becomes_the_detector_of_the_paper(checkpoint, loaded):
    prefix, _ = checkpoint
    assert loaded.task == "detect" and loaded.source == f"slim:{prefix}" and not loaded.left_out
    assert loaded.model == build_ssdlite(90, width=WIDTH, dialect="slim")
    assert build_ssdlite(**loaded.options) == loaded.model
    assert (loaded.preprocessing.size, loaded.preprocessing.crop) == (300, "none")


def test_averages_are_taken_of_the_heads_too(checkpoint, tmp_path):
    _, found = checkpoint
    twice = found | {f"{k}/ExponentialMovingAverage": v * 0.5 for k, v in found.items()}
    np.savez(tmp_path / "averages.npz", **twice)
    got = load_weights(f"slim:{tmp_path / 'averages.npz'}").variables["params"]
    name = "BoxPredictor_2/ClassPredictor/biases"
    np.testing.assert_array_equal(got["classes_2"]["project"]["bias"], found[name] * 0.5)


def convolved(x, kernel, stride=1):
    """A depthwise 3×3 convolution with TensorFlow's SAME padding, window by window."""
    _, h, w, _ = x.shape
    rows, columns = -(-h // stride), -(-w // stride)
    pads = [max((n - 1) * stride + 3 - m, 0) for n, m in ((rows, h), (columns, w))]
    x = np.pad(x, [(0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)])
    out = np.zeros((len(x), rows, columns, x.shape[3]))
    for i, j in itertools.product(range(rows), range(columns)):
        window = x[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
        out[:, i, j] = (window * kernel[None, ..., 0]).sum(axis=(1, 2))
    return out


def layer(tensors, scope, x, stride=1):
    """A convolution of the file, batch norm and ReLU6."""
    if f"{scope}/weights" in tensors:
        x = x @ tensors[f"{scope}/weights"][0, 0].astype(np.float64)
    else:
        x = convolved(x, tensors[f"{scope}/depthwise_weights"].astype(np.float64), stride)
    gamma, beta, mean, var = (tensors[f"{scope}/BatchNorm/{name}"] for name in NORM)
    return np.clip((x - mean) / np.sqrt(var + EPSILON) * gamma + beta, 0, 6)


def predicted(tensors, i, x, name, size):
    scope = f"BoxPredictor_{i}/{name}"
    x = layer(tensors, f"{scope}_depthwise", x)
    x = x @ tensors[f"{scope}/weights"][0, 0].astype(np.float64) + tensors[f"{scope}/biases"]
    return x.reshape(len(x), -1, size)


@pytest.mark.slow
def test_heads_compute_what_the_file_means(checkpoint, loaded):
    """The first two maps are the backbone's own, which the classifiers' parity covers."""
    tensors, model = checkpoint[1], loaded.model
    images = np.random.default_rng(1).uniform(-1, 1, (2, SIZE, SIZE, 3)).astype(np.float32)

    @jax.jit
    def run(variables, images):
        inside = {kind: tree["backbone"] for kind, tree in variables.items()}
        endpoints = model.backbone.apply(inside, images, method="endpoints")
        return model.apply(variables, images), endpoints

    outputs, endpoints = run(loaded.variables, images)
    maps = [np.asarray(endpoints[name], np.float64) for name in ("block_13/expansion", "last")]
    for i, (half, depth) in enumerate(((89, 179), (44, 89), (44, 89), (22, 44)), 2):
        base = "FeatureExtractor/MobilenetV2/layer_19"
        second = f"{base}_2_Conv2d_{i}_3x3_s2_{depth}"
        x = layer(tensors, f"{base}_1_Conv2d_{i}_1x1_{half}", maps[-1])
        x = layer(tensors, f"{second}_depthwise", x, stride=2)
        maps.append(layer(tensors, second, x))
    for ours, name, size in zip(
        outputs, ("BoxEncodingPredictor", "ClassPredictor"), (4, 91), strict=True
    ):
        theirs = np.concatenate(
            [predicted(tensors, i, x, name, size) for i, x in enumerate(maps)], axis=1
        )
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)


def test_anchors_are_those_of_its_generator():
    """The rule of create_ssd_anchors and tile_anchors, with the values of its pipeline.config."""
    low, high, layers = 0.2, 0.95, 6
    scales = [low + (high - low) * i / (layers - 1) for i in range(layers)] + [1.0]
    specs = [[(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)]]
    for i in range(1, layers):
        specs.append([(scales[i], ratio) for ratio in (1.0, 2.0, 0.5, 3.0, 0.3333)])
        specs[-1].append((math.sqrt(scales[i] * scales[i + 1]), 1.0))
    expected = []
    for side, spec in zip((19, 10, 5, 3, 2, 1), specs, strict=True):
        for y, x, (scale, ratio) in itertools.product(range(side), range(side), spec):
            height, width = scale / math.sqrt(ratio), scale * math.sqrt(ratio)
            y_center, x_center = (y + 0.5) / side, (x + 0.5) / side
            box = (y_center - height / 2, x_center - width / 2)
            expected.append((*box, y_center + height / 2, x_center + width / 2))
    assert len(expected) == 1917
    np.testing.assert_allclose(build_ssdlite(90).anchors((300, 300)), expected, atol=1e-6)


def test_ids_of_coco_without_a_name_are_dropped(checkpoint, loaded, tmp_path):
    assert len(IDS) == 90 and len(NAMES) == 80 == len(set(NAMES))
    # as in mscoco_label_map.pbtxt
    known = {1: "person", 13: "stop sign", 27: "backpack", 44: "bottle", 67: "dining table"}
    known |= {70: "toilet", 84: "book", 90: "toothbrush"}
    assert {number: IDS[number - 1] for number in known} == known
    unused = [i for i, name in enumerate(IDS, 1) if not name]
    assert unused == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    named = load_weights(loaded.source, drop_background=True)
    assert named.names == NAMES and named.model == build_ssdlite(80, width=WIDTH, dialect="slim")
    kept = [0, *(i for i in range(1, 91) if i not in unused)]
    for i, anchors in enumerate(ANCHORS):
        bias = checkpoint[1][f"BoxPredictor_{i}/ClassPredictor/biases"].reshape(anchors, 91)
        got = named.variables["params"][f"classes_{i}"]["project"]
        np.testing.assert_array_equal(got["bias"], bias[:, kept].reshape(-1))
        kernel = checkpoint[1][f"BoxPredictor_{i}/ClassPredictor/weights"]
        kernel = kernel.reshape(*kernel.shape[:3], anchors, 91)[..., kept]
        np.testing.assert_array_equal(got["kernel"], kernel.reshape(got["kernel"].shape))
    few = {name: np.ones(shape, np.float32) for name, shape in shapes(WIDTH, 3).items()}
    np.savez(tmp_path / "few.npz", **few)
    with pytest.raises(UsageError, match="3 classes, and none is background"):
        load_weights(f"slim:{tmp_path / 'few.npz'}", drop_background=True)


def test_the_backbone_alone_and_other_heads(checkpoint, loaded, tmp_path):
    prefix, found = checkpoint
    features = load_weights(f"slim:{prefix}", drop_head=True)
    inside = {kind: tree["backbone"] for kind, tree in loaded.variables.items()}
    assert features.task == "classify" and same(features.variables, inside)
    assert "BoxPredictor_0/ClassPredictor/weights" in features.left_out
    # ssd_mobilenet_v2_coco, whose heads are full convolutions
    full = {name: array for name, array in found.items() if "_depthwise/" not in name}
    np.savez(tmp_path / "full.npz", **full)
    with pytest.raises(UsageError, match=r"does not fit the SSDLite .*drop_head=True") as caught:
        load_weights(f"slim:{tmp_path / 'full.npz'}")
    assert "_2_Conv2d_2_3x3_s2_179_depthwise/depthwise_weights [3, 3, 89, 1]" in str(caught.value)
    extra = found | {"BoxPredictor_6/ClassPredictor/weights": np.ones((1, 1, 2, 2), np.float32)}
    np.savez(tmp_path / "more.npz", **extra)
    with pytest.raises(UsageError, match=r"1 unexpected \(\+ BoxPredictor_6"):
        load_weights(f"slim:{tmp_path / 'more.npz'}")
    with pytest.raises(UsageError, match="is a detector: load it without output_stride"):
        load_weights(f"slim:{prefix}", output_stride=16)


def test_the_doctor_knows_a_detector(checkpoint):
    findings = {finding.topic: finding for finding in inspect_weights(checkpoint[0])}
    assert findings["architecture"].found.endswith("17 blocks, SSDLite's heads")
    assert "90, background not counted" in findings["classes"].found
    assert "drop_background=True" in findings["classes"].change
    assert findings["preprocessing"].found == "whole image, stretched to 300, bilinear"
    assert "left out" not in findings


@pytest.mark.nightly
@pytest.mark.slow
def test_an_imported_detector_is_a_model_of_this_project(checkpoint, loaded, tmp_path):
    folder = tmp_path / "model"
    assert main(["import", str(checkpoint[0]), str(folder)]) == 0
    saved = load_model(folder)
    assert saved.task.name == "detect" and saved.classes == NAMES and saved.resolution == 300
    assert saved.description["eval"] == {"crop": "none"}
    assert same(saved.variables, load_weights(loaded.source, drop_background=True).variables)
