"""What is exported comes back bit by bit, in the order of axes of the other library."""

import hashlib

import pytest
from safetensors.numpy import load_file

from mnv2_jax import DIALECTS, UsageError, no_shortcut, relu6
from mnv2_jax.models.spec import IMAGENET, SMALL_32
from mnv2_jax.weights import ECOSYSTEMS, export_weights, load_weights
from tests.weights.networks import network, same


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
    assert loaded.model.spec == model.spec and loaded.classes == model.num_classes
    assert same(loaded.variables, variables)
    export_weights(loaded.model, loaded.variables, ecosystem, second)
    assert second.read_bytes() == first.read_bytes()
    assert loaded.sha256 == hashlib.sha256(first.read_bytes()).hexdigest()
    assert not list(tmp_path.glob("*.partial"))


def test_real_network_through_every_torch_ecosystem(tmp_path):
    model, variables = network("torchvision", classes=1000, spec=IMAGENET, width=0.35)
    path = tmp_path / "model.safetensors"
    for ecosystem in ("torchvision", "timm", "d-li14", "tonylins", "mmpretrain"):
        export_weights(model, variables, ecosystem, path)
        loaded = load_weights(f"{ecosystem}:{path}")
        assert loaded.model.width == 0.35 and loaded.model.spec == IMAGENET
        assert same(loaded.variables, variables)


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
