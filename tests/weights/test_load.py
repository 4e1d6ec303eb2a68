"""What comes in is what was there: names, axes, widths, heads, averages, checksums, round trips."""

import hashlib
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from mnv2_jax import DIALECTS, MobileNetV2, UsageError, build, no_shortcut, relu6
from mnv2_jax.models.spec import IMAGENET, SMALL_32, Row
from mnv2_jax.weights import ECOSYSTEMS, export_weights, infer_ecosystem, load_weights
from mnv2_jax.weights.architecture import PUBLISHED, find_architecture
from mnv2_jax.weights.tensors import tensors, their_shape
from tests.weights.networks import network, same

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
    "tonylins": {
        "features.1.conv.3.weight": (16, 32, 1, 1),
        "features.17.conv.6.weight": (320, 960, 1, 1),
        "features.18.0.weight": (1280, 320, 1, 1),
        "features.18.1.running_var": (1280,),
        "classifier.bias": (1000,),
    },
}


def shapes_of(ecosystem, spec=IMAGENET, width=1.0, in_channels=3, classes=1000):
    found = ECOSYSTEMS[ecosystem]
    return {
        t.theirs: their_shape(found.framework, t)
        for t in tensors(found, spec, width, in_channels, classes)
    }


def test_every_ecosystem_is_listed():
    assert LISTED.keys() == ECOSYSTEMS.keys()


@pytest.mark.parametrize("ecosystem", LISTED)
def test_names_and_shapes(ecosystem):
    found = shapes_of(ecosystem)
    assert LISTED[ecosystem].items() <= found.items()
    # 52 convolutions and their norms' four vectors, and the classifier's two tensors
    assert len(found) == 52 * 5 + 2


def test_tensors_are_those_of_the_model():
    model = MobileNetV2()
    variables = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    )
    expected = {"/".join(k): v.shape for k, v in flatten_dict(variables).items()}
    for ecosystem in ECOSYSTEMS.values():
        assert {t.ours: t.shape for t in tensors(ecosystem, IMAGENET, 1.0, 3, 1000)} == expected


@pytest.mark.parametrize("ecosystem", ECOSYSTEMS)
def test_architecture_is_read_off_the_shapes(ecosystem):
    found = ECOSYSTEMS[ecosystem]
    for width in (*PUBLISHED, 0.25, 0.9, 2.0):
        for channels, classes in ((3, 1001), (1, 10)):
            shapes = shapes_of(ecosystem, IMAGENET, width, channels, classes)
            inferred = find_architecture(found, shapes)
            assert (inferred.in_channels, inferred.classes) == (channels, classes)
            again = shapes_of(ecosystem, inferred.spec, inferred.width, channels, classes)
            assert again == shapes
            if width in PUBLISHED:
                assert (inferred.spec, inferred.width) == (IMAGENET, width)


def test_depth_is_read_off_timm_names():
    rows = tuple(
        Row(t, c, n, s)
        for (t, c, n, s) in (
            (1, 16, 1, 1),
            (6, 32, 3, 2),
            (6, 40, 5, 2),
            (6, 80, 6, 2),
            (6, 112, 5, 1),
            (6, 192, 5, 2),
            (6, 384, 1, 1),
        )
    )  # mobilenetv2_120d
    deep = IMAGENET._replace(rows=rows, divisor=1)
    inferred = find_architecture(ECOSYSTEMS["timm"], shapes_of("timm", deep))
    assert inferred.spec == deep and inferred.width == 1.0


@pytest.mark.parametrize(
    ("ecosystem", "suffix"),
    [
        *((ecosystem, suffix) for ecosystem in ECOSYSTEMS for suffix in (".safetensors", ".npz")),
        ("keras", ".h5"),
        ("keras", ".weights.h5"),
    ],
)
def test_round_trip_is_bit_equal(tmp_path, ecosystem, suffix):
    model, variables = network(ecosystem)
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    export_weights(model, variables, ecosystem, first)
    loaded = load_weights(f"{ecosystem}:{first}")
    assert loaded.model.spec == model.spec and loaded.classes == 3
    assert same(loaded.variables, variables)
    export_weights(loaded.model, loaded.variables, ecosystem, second)
    assert second.read_bytes() == first.read_bytes()
    assert loaded.sha256 == hashlib.sha256(first.read_bytes()).hexdigest()
    assert not list(tmp_path.glob("*.partial"))


def test_real_network_through_every_torch_ecosystem(tmp_path):
    model, variables = network("torchvision", classes=1000, spec=IMAGENET, width=0.35)
    path = tmp_path / "model.safetensors"
    for ecosystem in ("torchvision", "timm", "d-li14", "tonylins"):
        export_weights(model, variables, ecosystem, path)
        loaded = load_weights(f"{ecosystem}:{path}")
        assert loaded.model.width == 0.35 and loaded.model.spec == IMAGENET
        assert same(loaded.variables, variables)


@pytest.mark.parametrize("ecosystem", ["slim", "keras", "torchvision", "timm", "hf", "d-li14"])
def test_options_build_the_model(tmp_path, ecosystem):
    path = tmp_path / "model.npz"
    export_weights(*network(ecosystem, spec=IMAGENET, width=0.35), ecosystem, path)
    loaded = load_weights(f"{ecosystem}:{path}")
    assert build(**loaded.options) == loaded.model
    export_weights(*network(ecosystem), ecosystem, path)
    with pytest.raises(UsageError, match="its own channels or depths"):
        load_weights(f"{ecosystem}:{path}").options  # noqa: B018


def test_axes(tmp_path):
    model, variables = network("torchvision")
    path = tmp_path / "model.safetensors"
    export_weights(model, variables, "torchvision", path)
    theirs, params = load_file(path), variables["params"]
    kernel = params["block_1"]["filter"]["conv"]["kernel"]
    assert theirs["features.2.conv.1.0.weight"][4, 0, 1, 2] == kernel[1, 2, 0, 4]
    kernel = params["block_1"]["expand"]["conv"]["kernel"]
    assert theirs["features.2.conv.0.0.weight"][3, 0, 0, 0] == kernel[0, 0, 0, 3]
    assert theirs["classifier.1.weight"][2, 4] == params["classifier"]["kernel"][4, 2]
    export_weights(network("slim")[0], variables, "slim", path)
    theirs = load_file(path)
    kernel = params["block_1"]["filter"]["conv"]["kernel"]
    name = "MobilenetV2/expanded_conv_1/depthwise/depthwise_weights"
    assert theirs[name][1, 2, 4, 0] == kernel[1, 2, 0, 4]


def test_class_offset_is_what_the_classifier_has(tmp_path):
    path = tmp_path / "model.npz"
    for classes, offset in ((1001, 1), (1000, 0), (10, 0)):
        model, variables = network("slim", classes=classes)
        export_weights(model, variables, "slim", path)
        assert load_weights(f"slim:{path}").model.class_offset == offset
    model, variables = network("hf", classes=1001)
    path = tmp_path / "model.safetensors"
    export_weights(model, variables, "hf", path)
    loaded = load_weights(f"hf:{path}", drop_background=True)
    assert loaded.classes == loaded.model.num_classes == 1000
    assert loaded.model.class_offset == 0
    kernel = variables["params"]["classifier"]["kernel"]
    assert np.array_equal(loaded.variables["params"]["classifier"]["kernel"], kernel[:, 1:])
    export_weights(*network("hf", classes=1000), "hf", path)
    with pytest.raises(UsageError, match="none is background"):
        load_weights(f"hf:{path}", drop_background=True)


def test_head_can_be_dropped(tmp_path):
    path = tmp_path / "model.safetensors"
    model, variables = network("timm")
    export_weights(model, variables, "timm", path)
    loaded = load_weights(f"timm:{path}", drop_head=True)
    assert loaded.classes is None and loaded.model.num_classes is None
    assert "classifier" not in loaded.variables["params"]
    export_weights(loaded.model, loaded.variables, "timm", path)
    with pytest.raises(UsageError, match=r"no classifier.*drop_head=True"):
        load_weights(f"timm:{path}")
    assert same(load_weights(f"timm:{path}", drop_head=True).variables, loaded.variables)


def test_convolution_as_head(tmp_path):
    model, variables = network("timm")
    path = tmp_path / "model.safetensors"
    export_weights(model, variables, "timm", path)
    theirs = load_file(path)
    theirs["classifier.weight"] = theirs["classifier.weight"][:, :, None, None]
    save_file(theirs, path)
    assert same(load_weights(f"timm:{path}").variables, variables)


def test_half_precision_and_training_leftovers_are_understood(tmp_path):
    model, variables = network("timm")
    path = tmp_path / "model.safetensors"
    export_weights(model, variables, "timm", path)
    theirs = load_file(path)
    save_file({k: v.astype(np.float16) if v.ndim else v for k, v in theirs.items()}, path)
    loaded = load_weights(f"timm:{path}")
    stem = loaded.variables["params"]["stem"]["conv"]["kernel"]
    assert stem.dtype == np.float32
    assert np.array_equal(
        stem, variables["params"]["stem"]["conv"]["kernel"].astype(np.float16).astype(np.float32)
    )


def test_sha256_is_enforced(tmp_path):
    path = tmp_path / "model.npz"
    export_weights(*network("d-li14"), "d-li14", path)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_weights(f"d-li14:{path}", sha256=right.upper()).sha256 == right
    with pytest.raises(UsageError, match=f"has sha256 {right} where 00 was expected"):
        load_weights(f"d-li14:{path}", sha256="00")


@pytest.mark.parametrize("ecosystem", ECOSYSTEMS)
def test_other_ecosystems_are_named(tmp_path, ecosystem):
    path = tmp_path / "model.npz"
    export_weights(*network(ecosystem), ecosystem, path)
    assert infer_ecosystem(np.load(path).files) == ecosystem
    for other in ECOSYSTEMS:
        if other != ecosystem:
            with pytest.raises(
                UsageError, match=f"looks like {ecosystem}; load it as {ecosystem}:"
            ):
                load_weights(f"{other}:{path}")


def test_the_diff_names_every_kind(tmp_path):
    path = tmp_path / "model.safetensors"
    export_weights(*network("torchvision"), "torchvision", path)
    theirs = load_file(path)
    del theirs["features.0.0.weight"]
    theirs["extra.weight"] = np.zeros((2, 2), np.float32)
    theirs["features.5.conv.2.weight"] = np.zeros((9, 9, 1, 1), np.float32)
    save_file(theirs, path)
    with pytest.raises(UsageError) as caught:
        load_weights(f"torchvision:{path}")
    message = str(caught.value)
    assert "1 missing (- features.0.0.weight [2, 3, 3, 3])" in message
    assert "1 unexpected (+ extra.weight [2, 2])" in message
    assert re.search(
        r"1 of another shape \(~ features\.5\.conv\.2\.weight \[9, 9, 1, 1\] is not \[", message
    )
    assert "nothing was loaded" in message and "\n" not in message


@pytest.mark.parametrize("source", ["model.npz", "torch:model.npz", "slim:", "/a/b:c.npz"])
def test_sources_need_an_ecosystem(source):
    with pytest.raises(UsageError, match=r"ecosystem"):
        load_weights(source)


def test_what_theirs_cannot_compute_is_not_exported(tmp_path):
    model, variables = network("torchvision")
    path = tmp_path / "model.safetensors"
    for change, message in (
        ({"dialect": DIALECTS["slim"]}, "padding is same, not symmetric; its bn_epsilon"),
        ({"shortcut": no_shortcut}, "shortcuts between bottlenecks"),
        ({"bottleneck": relu6}, "linear bottlenecks"),
        ({"spec": SMALL_32}, "rows are not Table 2's"),
        ({"num_classes": 4}, "do not belong to the model"),
    ):
        with pytest.raises(UsageError, match=message):
            export_weights(model.clone(**change), variables, "torchvision", path)
    for name, ecosystem in (("a.pth", "timm"), ("a.h5", "timm"), ("a", "keras"), ("a.npz", "tim")):
        with pytest.raises(UsageError, match=r"has no format|unknown ecosystem"):
            export_weights(model, variables, ecosystem, tmp_path / name)
    with pytest.raises(UsageError, match="cannot be written"):
        export_weights(model, variables, "timm", tmp_path / "missing" / "a.npz")
    assert not list(tmp_path.iterdir())
