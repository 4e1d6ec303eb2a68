"""Names, axes and shapes are those of the ecosystems' own files, listed from their sources."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mnv2_jax import MobileNetV2
from mnv2_jax.models.spec import IMAGENET
from mnv2_jax.weights import ECOSYSTEMS, load_weights
from mnv2_jax.weights.tensors import tensors
from tests.weights.networks import shapes_of

# The first, a middle and the last name of every kind, and shapes, as the ecosystems' own files
# have them; written down from their sources, not from our tables.
LISTED = {
    "slim": {
        "MobilenetV2/Conv/weights": (3, 3, 3, 32),
        "MobilenetV2/Conv/BatchNorm/moving_variance": (32,),
        "MobilenetV2/expanded_conv/depthwise/depthwise_weights": (3, 3, 32, 1),
        "MobilenetV2/expanded_conv/project/weights": (1, 1, 32, 16),
        "MobilenetV2/expanded_conv_1/expand/weights": (1, 1, 16, 96),
        "MobilenetV2/expanded_conv_16/depthwise/depthwise_weights": (3, 3, 960, 1),
        "MobilenetV2/expanded_conv_16/project/BatchNorm/gamma": (320,),
        "MobilenetV2/Conv_1/weights": (1, 1, 320, 1280),
        "MobilenetV2/Logits/Conv2d_1c_1x1/weights": (1, 1, 1280, 1000),
        "MobilenetV2/Logits/Conv2d_1c_1x1/biases": (1000,),
    },
    "keras": {
        "Conv1/kernel": (3, 3, 3, 32),
        "bn_Conv1/moving_mean": (32,),
        "expanded_conv_depthwise/kernel": (3, 3, 32, 1),
        "expanded_conv_project_BN/beta": (16,),
        "block_1_expand/kernel": (1, 1, 16, 96),
        "block_16_depthwise_BN/moving_variance": (960,),
        "block_16_project/kernel": (1, 1, 960, 320),
        "Conv_1_bn/gamma": (1280,),
        "predictions/kernel": (1280, 1000),
    },
    "torchvision": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.1.conv.2.running_var": (16,),
        "features.2.conv.0.0.weight": (96, 16, 1, 1),
        "features.17.conv.1.0.weight": (960, 1, 3, 3),
        "features.17.conv.3.bias": (320,),
        "features.18.0.weight": (1280, 320, 1, 1),
        "classifier.1.weight": (1000, 1280),
    },
    "timm": {
        "conv_stem.weight": (32, 3, 3, 3),
        "bn1.running_mean": (32,),
        "blocks.0.0.conv_dw.weight": (32, 1, 3, 3),
        "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
        "blocks.1.0.conv_pw.weight": (96, 16, 1, 1),
        "blocks.6.0.conv_dw.weight": (960, 1, 3, 3),
        "blocks.6.0.conv_pwl.weight": (320, 960, 1, 1),
        "blocks.6.0.bn3.weight": (320,),
        "conv_head.weight": (1280, 320, 1, 1),
        "bn2.bias": (1280,),
        "classifier.weight": (1000, 1280),
    },
    "hf": {
        "mobilenet_v2.conv_stem.first_conv.convolution.weight": (32, 3, 3, 3),
        "mobilenet_v2.conv_stem.conv_3x3.normalization.running_var": (32,),
        "mobilenet_v2.conv_stem.reduce_1x1.convolution.weight": (16, 32, 1, 1),
        "mobilenet_v2.layer.0.expand_1x1.convolution.weight": (96, 16, 1, 1),
        "mobilenet_v2.layer.15.conv_3x3.convolution.weight": (960, 1, 3, 3),
        "mobilenet_v2.layer.15.reduce_1x1.normalization.weight": (320,),
        "mobilenet_v2.conv_1x1.convolution.weight": (1280, 320, 1, 1),
        "classifier.bias": (1000,),
    },
    "d-li14": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.weight": (32, 1, 3, 3),
        "features.1.conv.4.running_mean": (16,),
        "features.2.conv.0.weight": (96, 16, 1, 1),
        "features.17.conv.3.weight": (960, 1, 3, 3),
        "features.17.conv.7.weight": (320,),
        "conv.0.weight": (1280, 320, 1, 1),
        "conv.1.bias": (1280,),
        "classifier.weight": (1000, 1280),
    },
    "mmpretrain": {
        "backbone.conv1.conv.weight": (32, 3, 3, 3),
        "backbone.conv1.bn.running_var": (32,),
        "backbone.layer1.0.conv.0.conv.weight": (32, 1, 3, 3),
        "backbone.layer1.0.conv.1.bn.weight": (16,),
        "backbone.layer2.0.conv.0.conv.weight": (96, 16, 1, 1),
        "backbone.layer6.2.conv.1.conv.weight": (960, 1, 3, 3),
        "backbone.layer7.0.conv.2.conv.weight": (320, 960, 1, 1),
        "backbone.conv2.conv.weight": (1280, 320, 1, 1),
        "backbone.conv2.bn.bias": (1280,),
        "head.fc.weight": (1000, 1280),
    },
    "paddleclas": {
        "conv1._conv.weight": (32, 3, 3, 3),
        "conv1._batch_norm._variance": (32,),
        "conv2._first_block._expand_conv._conv.weight": (32, 32, 1, 1),
        "conv2._first_block._bottleneck_conv._conv.weight": (32, 1, 3, 3),
        "conv2._first_block._linear_conv._batch_norm.weight": (16,),
        "conv3._first_block._expand_conv._conv.weight": (96, 16, 1, 1),
        "conv3.conv3_2._expand_conv._batch_norm._mean": (144,),
        "conv5.conv5_4._bottleneck_conv._batch_norm.bias": (384,),
        "conv8._first_block._linear_conv._conv.weight": (320, 960, 1, 1),
        "conv9._conv.weight": (1280, 320, 1, 1),
        "out.weight": (1280, 1000),
        "out.bias": (1000,),
    },
    "mmseg": {
        "backbone.conv1.conv.weight": (32, 3, 3, 3),
        "backbone.conv1.bn.running_var": (32,),
        "backbone.layer1.0.conv.0.conv.weight": (32, 1, 3, 3),
        "backbone.layer2.0.conv.0.conv.weight": (96, 16, 1, 1),
        "backbone.layer6.2.conv.1.conv.weight": (960, 1, 3, 3),
        "backbone.layer7.0.conv.2.bn.bias": (320,),
    },
    "tonylins": {
        "features.1.conv.3.weight": (16, 32, 1, 1),
        "features.17.conv.6.weight": (320, 960, 1, 1),
        "features.18.0.weight": (1280, 320, 1, 1),
        "features.18.1.running_var": (1280,),
        "classifier.bias": (1000,),
    },
}

# (in, expanded, out) of the 17 blocks at width 1.
BLOCKS = (
    (32, 32, 16), (16, 96, 24), (24, 144, 24), (24, 144, 32), (32, 192, 32), (32, 192, 32),
    (32, 192, 64), (64, 384, 64), (64, 384, 64), (64, 384, 64), (64, 384, 96), (96, 576, 96),
    (96, 576, 96), (96, 576, 160), (160, 960, 160), (160, 960, 160), (160, 960, 320),
)  # fmt: skip


def test_every_ecosystem_is_listed():
    assert LISTED.keys() == ECOSYSTEMS.keys()


@pytest.mark.parametrize("ecosystem", LISTED)
def test_names_and_shapes(ecosystem):
    found = shapes_of(ecosystem)
    assert LISTED[ecosystem].items() <= found.items()
    # 52 convolutions and their norms' four vectors, and the classifier's two tensors
    counts = {"paddleclas": 53 * 5 + 2, "mmseg": 51 * 5}
    assert len(found) == counts.get(ecosystem, 52 * 5 + 2)


@pytest.mark.slow
def test_tensors_are_those_of_the_model():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    known = {}
    for ecosystem in ECOSYSTEMS.values():
        classes = 1000 if ecosystem.head else None
        model = MobileNetV2(classes, spec=ecosystem.spec, expand=ecosystem.expand)
        if model not in known:
            variables = jax.eval_shape(model.init, jax.random.key(0), images)
            flat = flatten_dict(variables, sep="/").items()
            known[model] = {name: leaf.shape for name, leaf in flat}
        listed = tensors(ecosystem, ecosystem.spec, 1.0, 3, classes)
        assert {t.ours: t.shape for t in listed} == known[model]


def slim():
    """Yields (their name, its shape, our path) of mobilenet_v2_1.0_224."""

    def layer(place, ours, shape, kernel="weights"):
        yield f"{place}/{kernel}", shape, f"params/{ours}/conv/kernel"
        channels = shape[2] if kernel == "depthwise_weights" else shape[3]
        norm = f"{place}/BatchNorm"
        yield f"{norm}/gamma", (channels,), f"params/{ours}/norm/scale"
        yield f"{norm}/beta", (channels,), f"params/{ours}/norm/bias"
        yield f"{norm}/moving_mean", (channels,), f"batch_stats/{ours}/norm/mean"
        yield f"{norm}/moving_variance", (channels,), f"batch_stats/{ours}/norm/var"

    yield from layer("MobilenetV2/Conv", "stem", (3, 3, 3, 32))
    for i, (entering, wide, leaving) in enumerate(BLOCKS):
        block = "MobilenetV2/expanded_conv" + (f"_{i}" if i else "")
        if i:
            yield from layer(f"{block}/expand", f"block_{i}/expand", (1, 1, entering, wide))
        yield from layer(
            f"{block}/depthwise", f"block_{i}/filter", (3, 3, wide, 1), "depthwise_weights"
        )
        yield from layer(f"{block}/project", f"block_{i}/project", (1, 1, wide, leaving))
    yield from layer("MobilenetV2/Conv_1", "last", (1, 1, 320, 1280))
    head = "MobilenetV2/Logits/Conv2d_1c_1x1"
    yield f"{head}/weights", (1, 1, 1280, 1001), "params/classifier/kernel"
    yield f"{head}/biases", (1001,), "params/classifier/bias"


def flat(last):
    """Yields the same of the two projects in PyTorch whose blocks are one flat `Sequential`."""

    def layer(conv, norm, ours, shape):
        yield f"{conv}.weight", shape, f"params/{ours}/conv/kernel"
        yield f"{norm}.weight", shape[:1], f"params/{ours}/norm/scale"
        yield f"{norm}.bias", shape[:1], f"params/{ours}/norm/bias"
        yield f"{norm}.running_mean", shape[:1], f"batch_stats/{ours}/norm/mean"
        yield f"{norm}.running_var", shape[:1], f"batch_stats/{ours}/norm/var"
        yield f"{norm}.num_batches_tracked", (), None

    yield from layer("features.0.0", "features.0.1", "stem", (32, 3, 3, 3))
    for i, (entering, wide, leaving) in enumerate(BLOCKS):
        block, first = f"features.{i + 1}.conv", 3 if i else 0
        if i:
            yield from layer(
                f"{block}.0", f"{block}.1", f"block_{i}/expand", (wide, entering, 1, 1)
            )
        yield from layer(
            f"{block}.{first}", f"{block}.{first + 1}", f"block_{i}/filter", (wide, 1, 3, 3)
        )
        yield from layer(
            f"{block}.{first + 3}", f"{block}.{first + 4}", f"block_{i}/project",
            (leaving, wide, 1, 1),
        )  # fmt: skip
    yield from layer(f"{last}.0", f"{last}.1", "last", (1280, 320, 1, 1))
    yield "classifier.weight", (1000, 1280), "params/classifier/kernel"
    yield "classifier.bias", (1000,), "params/classifier/bias"


@pytest.mark.parametrize(
    ("ecosystem", "listed", "classes"),
    [
        ("slim", list(slim()), 1001),
        ("d-li14", list(flat("conv")), 1000),
        ("tonylins", list(flat("features.18")), 1000),
    ],
)
def test_a_file_of_exactly_these_names_and_shapes(tmp_path, ecosystem, listed, classes):
    numbers = {name: np.float32(1 + i) for i, (name, _, _) in enumerate(listed)}
    file = {name: np.full(shape, numbers[name]) for name, shape, _ in listed}
    if ecosystem == "slim":  # as its trainings leave them, with averages beside the raw weights
        averages = {f"{name}/ExponentialMovingAverage": array for name, array in file.items()}
        file = {name: array + 1000 for name, array in file.items()} | averages
        file["global_step"] = np.int64(1)
    np.savez(tmp_path / "model.npz", **file)
    loaded = load_weights(f"{ecosystem}:{tmp_path / 'model.npz'}")
    model = loaded.model
    assert (model.spec, model.width, model.num_classes) == (IMAGENET, 1.0, classes)
    found = flatten_dict(loaded.variables, sep="/")
    expected = {ours: numbers[name] for name, _, ours in listed if ours is not None}
    assert found.keys() == expected.keys() and len(expected) == 262
    assert all((leaf == expected[ours]).all() for ours, leaf in found.items())
