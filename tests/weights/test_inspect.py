"""`inspect_weights` sees what people get wrong, and says what to do."""

import hashlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mnv2_jax import UsageError
from mnv2_jax.models.spec import IMAGENET
from mnv2_jax.weights import ECOSYSTEMS, export_weights
from mnv2_jax.weights.inspect import inspect_weights
from mnv2_jax.weights.preprocessing import RELEASES
from tests.weights.networks import network


def found(source):
    findings = inspect_weights(source)
    assert len({finding.topic for finding in findings}) == len(findings)
    return {finding.topic: finding for finding in findings}


@pytest.mark.slow
@pytest.mark.parametrize("ecosystem", ECOSYSTEMS)
def test_a_healthy_file(tmp_path, ecosystem):
    path = tmp_path / "model.npz"
    export_weights(*network(ecosystem), ecosystem, path)
    for source in (path, f"{ecosystem}:{path}"):
        findings = found(source)
        assert findings["ecosystem"].found.startswith(ecosystem)
        own = (
            "3, counted from 0" if ECOSYSTEMS[ecosystem].head else "none: features for other tasks"
        )
        assert findings["classes"].found == own
        assert not any(finding.change for finding in findings.values())
    dialect = ECOSYSTEMS[ecosystem].dialect
    assert f"epsilon {dialect.bn_epsilon:g}," in findings["batch norm"].found
    assert ("SAME" in findings["padding"].found) == (dialect.padding == "same")


def test_what_is_off_is_named(tmp_path):
    path = tmp_path / "mobilenet_v2-00000000.safetensors"
    model, variables = network("hf", classes=1001, spec=IMAGENET, width=0.35)
    export_weights(model, variables, "hf", path)
    theirs = load_file(path)
    stem = "mobilenet_v2.conv_stem.first_conv.normalization"
    theirs[f"{stem}.running_mean"][:], theirs[f"{stem}.running_var"][:] = 0, 1
    save_file(theirs, path)
    findings = found(f"torchvision:{path}")
    assert findings["architecture"].found == "width 0.35, 17 blocks"
    for topic, change in (
        ("file", "promises a sha256 that starts with 00000000"),
        ("ecosystem", "load it as hf:, not as torchvision:"),
        ("classes", "add 1 to labels"),
        ("statistics", "never trained"),
    ):
        assert change in findings[topic].change
    theirs["classifier.weight"][0, 0] = np.nan
    save_file(theirs, path)
    assert "NaN or infinite numbers in classifier.weight" in found(path)["weights"].change


def test_averages_and_missing_heads(tmp_path):
    path = tmp_path / "model.npz"
    model, variables = network("slim", classes=None)
    export_weights(model, variables, "slim", path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays, **{f"{k}/ExponentialMovingAverage": v for k, v in arrays.items()})
    findings = found(path)
    assert "ema=False" in findings["averages"].change
    assert "drop_head=True" in findings["classes"].change
    np.savez(path, a=np.zeros(3))
    assert inspect_weights(path)[-1].found == "not known: the file has a"
    with pytest.raises(UsageError, match="there is no file"):
        inspect_weights("timm:nowhere.npz")
    with pytest.raises(UsageError, match="there is no file"):
        inspect_weights("nowhere.npz")


def test_releases_are_known_by_their_sha256(tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    export_weights(*network("torchvision"), "torchvision", path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(RELEASES, digest[:8], RELEASES["7ebf99e0"])
    findings = found(path)
    assert "IMAGENET1K_V2" in findings["file"].found
    assert findings["preprocessing"].found == "shorter side to 232, central 224, bilinear"
