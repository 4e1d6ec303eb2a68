"""Heads, backgrounds, options, half precision, wrappers and checksums of what is loaded."""

import hashlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mnv2_jax import UsageError, build
from mnv2_jax.models.spec import IMAGENET
from mnv2_jax.weights import export_weights, load_weights
from tests.weights.networks import network, same


@pytest.mark.parametrize("ecosystem", ["slim", "keras", "torchvision", "timm", "hf", "d-li14"])
def test_options_build_the_model(tmp_path, ecosystem):
    path = tmp_path / "model.npz"
    export_weights(*network(ecosystem, spec=IMAGENET, width=0.35), ecosystem, path)
    loaded = load_weights(f"{ecosystem}:{path}")
    assert build(**loaded.options) == loaded.model
    export_weights(*network(ecosystem), ecosystem, path)
    with pytest.raises(UsageError, match="its own channels or depths"):
        load_weights(f"{ecosystem}:{path}").options  # noqa: B018


@pytest.mark.slow
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


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.module.", "model."])
def test_names_that_are_wrapped(tmp_path, wrapper):
    model, variables = network("timm")
    path = tmp_path / "model.safetensors"
    export_weights(model, variables, "timm", path)
    save_file({f"{wrapper}{name}": array for name, array in load_file(path).items()}, path)
    assert same(load_weights(f"timm:{path}").variables, variables)


def test_sha256_is_enforced(tmp_path):
    path = tmp_path / "model.npz"
    export_weights(*network("d-li14"), "d-li14", path)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_weights(f"d-li14:{path}", sha256=right.upper()).sha256 == right
    with pytest.raises(UsageError, match=f"has sha256 {right} where 00 was expected"):
        load_weights(f"d-li14:{path}", sha256="00")


@pytest.mark.parametrize("source", ["torch:model.npz", "slim:", "/a/b:c.npz"])
def test_an_ecosystem_that_is_none_is_refused(source):
    with pytest.raises(UsageError, match=r"ecosystem"):
        load_weights(source)


def test_the_ecosystem_is_inferred(tmp_path):
    path = tmp_path / "model.npz"
    model, variables = network("timm")
    export_weights(model, variables, "timm", path)
    loaded = load_weights(path)
    assert loaded.source == f"timm:{path}" and same(loaded.variables, variables)
    np.savez(path, other=np.zeros(3, np.float32))
    with pytest.raises(UsageError, match=r"is not loaded. Its ecosystem is .*other"):
        load_weights(path)
