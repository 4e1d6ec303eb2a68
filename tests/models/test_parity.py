"""Outputs equal to Keras' MobileNetV2 at random weights and random batch-norm statistics.

Keras runs here on its JAX backend; its network was written independently of this one.
"""

import jax
import numpy as np
import pytest

from mnv2_jax import DIALECTS, MobileNetV2

pytestmark = pytest.mark.oracle
keras = pytest.importorskip("keras")


def keras_weights(variables):
    """Renames this project's variables to Keras' layers: (layer, [arrays in Keras' order])."""
    params, stats = variables["params"], variables["batch_stats"]

    def layer(path, conv, norm):
        p, s = params, stats
        for name in path:
            p, s = p[name], s[name]
        kernel = p["conv"]["kernel"]
        if path[-1] == "filter":
            kernel = kernel.transpose(0, 1, 3, 2)  # HWIO with I = 1 to Keras' (h, w, c, 1)
        yield conv, [kernel]
        yield norm, [p["norm"]["scale"], p["norm"]["bias"], s["norm"]["mean"], s["norm"]["var"]]

    yield from layer(["stem"], "Conv1", "bn_Conv1")
    kinds = {"expand": "expand", "filter": "depthwise", "project": "project"}
    for i in range(17):
        prefix = f"block_{i}" if i else "expanded_conv"
        for ours, theirs in kinds.items():
            if ours in params[f"block_{i}"]:
                name = f"{prefix}_{theirs}"
                yield from layer([f"block_{i}", ours], name, f"{name}_BN")
    yield from layer(["last"], "Conv_1", "Conv_1_bn")
    classifier = params["classifier"]
    yield "predictions", [classifier["kernel"], classifier["bias"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "size"),
    [
        pytest.param(0.35, (97, 75), marks=pytest.mark.nightly),
        pytest.param(1.0, (64, 96), marks=pytest.mark.nightly),
        pytest.param(0.35, (96, 96), marks=pytest.mark.nightly),
        pytest.param(1.0, (65, 65), marks=pytest.mark.nightly),
        pytest.param(1.4, (96, 97), marks=pytest.mark.nightly),
    ],
)
def test_logits_equal_keras(randomize, width, size):
    model = MobileNetV2(width=width, num_classes=11, dialect=DIALECTS["keras"])
    variables = randomize(model, (1, *size, 3), seed=1)
    peer = keras.applications.MobileNetV2(
        input_shape=(*size, 3), alpha=width, weights=None, classes=11, classifier_activation=None
    )
    given = dict(keras_weights(variables))
    for layer in peer.layers:
        if layer.weights:
            layer.set_weights(given.pop(layer.name))
    assert not given
    images = np.random.default_rng(2).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    ours = jax.jit(model.apply)(variables, images)
    with jax.numpy_rank_promotion("allow"):  # Keras relies on it
        theirs = np.asarray(peer.predict(images, verbose=0))
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
