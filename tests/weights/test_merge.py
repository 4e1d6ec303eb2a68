"""Everything fits or nothing is loaded: a diff, or the name of the right ecosystem."""

import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mnv2_jax import UsageError
from mnv2_jax.weights import ECOSYSTEMS, export_weights, infer_ecosystem, load_weights
from tests.weights.networks import network


@pytest.mark.slow
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
    theirs["features.5.extra.weight"] = np.zeros((2, 2), np.float32)
    theirs["features.5.conv.2.weight"] = np.zeros((9, 9, 1, 1), np.float32)
    save_file(theirs, path)
    with pytest.raises(UsageError) as caught:
        load_weights(f"torchvision:{path}")
    message = str(caught.value)
    assert "1 missing (- features.0.0.weight [2, 3, 3, 3])" in message
    assert "1 unexpected (+ features.5.extra.weight [2, 2])" in message
    assert re.search(
        r"1 of another shape \(~ features\.5\.conv\.2\.weight \[9, 9, 1, 1\] is not \[", message
    )
    assert "nothing was loaded" in message and "\n" not in message
