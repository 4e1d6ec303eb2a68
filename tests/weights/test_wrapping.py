"""Networks are found in whatever wraps them, in every format by one rule."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mnv2_jax import UsageError
from mnv2_jax.weights import ECOSYSTEMS, export_weights, load_weights
from tests.weights.networks import network, same


def stored(tmp_path, ecosystem="torchvision"):
    path = tmp_path / "model.safetensors"
    export_weights(*network(ecosystem), ecosystem, path)
    return path, load_file(path)


def wrap(prefix, tensors, shift=0):
    return {f"{prefix}{k}": np.asarray(v + shift, v.dtype) for k, v in tensors.items()}


@pytest.mark.parametrize("ecosystem", sorted(ECOSYSTEMS.keys() - {"keras"}))
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.module.", "state_dict.model.backbone.", "net.0."]
)
def test_what_wraps_the_names_is_removed(tmp_path, ecosystem, prefix):
    path, theirs = stored(tmp_path, ecosystem)
    strays = {"epoch": np.zeros(()), "criterion.weight": np.ones(3), "optimizer.0": np.ones((9, 9))}
    save_file(wrap(prefix, theirs) | strays, path)
    loaded = load_weights(str(path))
    assert same(loaded.variables, network(ecosystem)[1])
    assert sorted(loaded.left_out) == ["criterion.weight", "epoch"]


def test_averages_are_told_by_what_wraps_them(tmp_path):
    path, theirs = stored(tmp_path)
    averages = {k: v for k, v in wrap("model_ema.module.", theirs, 1).items() if "mean" not in k}
    save_file(wrap("model.", theirs) | averages | {"model_ema.n_averaged": np.ones(())}, path)
    raw = load_weights(f"torchvision:{path}", ema=False).variables
    assert same(raw, network()[1])
    params, stats = (load_weights(f"torchvision:{path}").variables[k] for k in raw)
    assert np.array_equal(
        params["stem"]["conv"]["kernel"], raw["params"]["stem"]["conv"]["kernel"] + 1
    )
    assert np.array_equal(stats["stem"]["norm"]["mean"], raw["batch_stats"]["stem"]["norm"]["mean"])


def test_raw_weights_are_taken_where_averages_do_not_fit(tmp_path):
    path, theirs = stored(tmp_path)
    for name in ("features.3.conv.0.0.weight", "classifier.1.weight"):
        averages = wrap("ema.", theirs)
        averages[f"ema.{name}"] = np.zeros((2, 2, 2), np.float32)
        save_file(wrap("model.", theirs) | averages, path)
        with pytest.raises(UsageError, match="ema=False takes the raw weights"):
            load_weights(f"torchvision:{path}")
        assert same(load_weights(f"torchvision:{path}", ema=False).variables, network()[1])


def test_several_networks_are_no_choice_of_ours(tmp_path):
    path, theirs = stored(tmp_path)
    save_file(wrap("teacher.", theirs) | wrap("student.", theirs), path)
    with pytest.raises(UsageError, match=r"several networks \(.*student\..*\): save the one"):
        load_weights(f"torchvision:{path}")


def test_hugging_faces_network_without_a_head(tmp_path):
    path, theirs = stored(tmp_path, "hf")
    bare = {k.removeprefix("mobilenet_v2."): v for k, v in theirs.items() if "classifier" not in k}
    save_file(bare, path)
    loaded = load_weights(str(path), drop_head=True)
    assert "classifier" not in loaded.variables["params"] and loaded.left_out == ()


@pytest.mark.parametrize("name", ["A.SAFETENSORS", "b.Npz"])
def test_endings_in_capitals(tmp_path, name):
    path, theirs = stored(tmp_path)
    if name.startswith("A"):
        path.rename(tmp_path / name)
    else:
        with (tmp_path / name).open("wb") as file:
            np.savez(file, **theirs)
    assert same(load_weights(f"torchvision:{tmp_path / name}").variables, network()[1])


HEADS = {
    "torchvision": ("classifier.", "fc.", "head.1."),
    "timm": ("classifier.1.", "fc."),
    "hf": ("head.linear.",),
    "keras": ("dense/", "fc/"),
}


@pytest.mark.parametrize(("ecosystem", "head"), [(e, h) for e in HEADS for h in HEADS[e]])
def test_a_single_linear_layer_is_the_classifier(tmp_path, ecosystem, head):
    path, theirs = stored(tmp_path, ecosystem)
    old = ECOSYSTEMS[ecosystem].head + head[-1]
    renamed = {k.replace(old, head) if k.startswith(old) else k: v for k, v in theirs.items()}
    save_file(renamed, path)
    loaded = load_weights(str(path))
    assert same(loaded.variables, network(ecosystem)[1]) and loaded.left_out == ()
    save_file({k: v for k, v in renamed.items() if k != f"{head}bias"}, path)  # bias=False
    bias = load_weights(f"{ecosystem}:{path}").variables["params"]["classifier"]["bias"]
    assert np.array_equal(bias, np.zeros(3))


@pytest.mark.parametrize(
    "more",
    [
        {"classifier.4.weight": (3, 3), "classifier.4.bias": (3,)},
        {"aux.weight": (4, 5)},
        {"norm.weight": (5,), "norm.bias": (5,)},
    ],
)
def test_a_deeper_head_is_left_out_on_request(tmp_path, more):
    path, theirs = stored(tmp_path)
    save_file(theirs | {k: np.ones(shape, np.float32) for k, shape in more.items()}, path)
    with pytest.raises(UsageError, match=r"another head than one linear layer.*drop_head=True"):
        load_weights(f"torchvision:{path}")
    loaded = load_weights(f"torchvision:{path}", drop_head=True)
    assert set(loaded.left_out) == {*more, "classifier.1.weight", "classifier.1.bias"}
    assert loaded.classes is None
