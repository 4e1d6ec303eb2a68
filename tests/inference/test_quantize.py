"""Int8 against integer arithmetic in numpy, and what equalisation and rounding in training keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import build
from mnv2_jax.inference.graph import trace
from mnv2_jax.inference.operations import IMAGES, Graph, Node, run
from mnv2_jax.inference.quantize import (
    activation_scale,
    calibrate,
    dequantized,
    equalize,
    quantize,
    round_to,
    simulate,
    simulate_training,
    trainable,
    with_ranges,
    with_weights,
)


def dense_graph(rng, clip=None):
    """One fully connected layer, whose integer arithmetic is short to write down."""
    kernel = rng.normal(size=(12, 5)).astype(np.float32)
    bias = rng.normal(size=5).astype(np.float32)
    node = Node("dense", "dense", (IMAGES,), (1, 5), kernel=kernel, bias=bias, clip=clip)
    return Graph((node,), (1, 12), ("dense",))


@pytest.mark.parametrize("clip", [None, (0.0, 6.0)])
def test_simulation_is_integer_arithmetic(clip):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12)).astype(np.float32)
    quantized = quantize(dense_graph(rng, clip), [x])
    given, out = quantized.activations[IMAGES], quantized.activations["dense"]
    weights = quantized.weights["dense"]
    integers = np.clip(np.rint(x / np.float32(given.scale)) + given.zero, -128, 127).astype(int)
    sums = (integers - given.zero) @ weights.kernel.astype(int) + weights.bias.astype(int)
    real = sums * weights.bias_scale.astype(float)
    if clip is not None:
        real = np.clip(real, *clip)
    expected = np.clip(np.rint(real / out.scale) + out.zero, -128, 127)
    found = np.asarray(simulate(quantized, jnp.asarray(x))[0]) / out.scale + out.zero
    assert np.abs(found - expected).max() <= 1.01  # a half may be rounded either way
    assert (np.abs(found - expected) > 0.01).mean() < 0.002


def test_every_channel_of_a_kernel_uses_all_integers():
    rng = np.random.default_rng(1)
    graph = dense_graph(rng)
    scaled = graph.nodes[0].kernel * np.float32([1, 10, 100, 0.1, 0.01])
    graph = graph._replace(nodes=(graph.nodes[0]._replace(kernel=scaled),))
    quantized = quantize(graph, [rng.normal(size=(8, 12)).astype(np.float32)])
    weights = quantized.weights["dense"]
    assert (np.abs(weights.kernel).max(0) == 127).all()
    error = np.abs(dequantized(quantized).nodes[0].kernel - scaled)
    assert (error <= weights.scale / 2 * 1.001).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-3.0, 1.0), (2.0, 5.0), (-7.0, -1.0)])
def test_zero_is_exact_and_the_range_is_kept(low, high):
    scale = activation_scale(low, high)
    assert -128 <= scale.zero <= 127
    ends = jnp.asarray([0.0, low, high])
    found = np.asarray(round_to(scale, ends))
    assert found[0] == 0.0 and np.abs(found - np.asarray(ends)).max() <= scale.scale


@pytest.fixture(scope="module")
def small(randomize):
    model = build(spec="tiny_8", num_classes=5, in_channels=1, activation="relu")
    variables = randomize(model, (1, 8, 8, 1))
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype(np.float32)
    return trace(model, variables, (8, 8)), images


@pytest.mark.slow
def test_bottlenecks_are_signed_and_wide_layers_are_not(small):
    graph, images = small
    ranges = calibrate(graph, [images])
    assert ranges["block_2/project"][0] < 0 < ranges["block_2/project"][1]
    assert ranges["block_2/filter"][0] >= 0


@pytest.mark.slow
def test_equalisation_changes_no_relu_network_and_evens_out_its_channels(small):
    graph, images = small
    even = equalize(graph)
    before, after = (
        np.asarray(jax.jit(lambda x, g=g: run(g, x)[0])(images)) for g in (graph, even)
    )
    np.testing.assert_allclose(after, before, atol=2e-5 * np.abs(before).max())

    def spread(found):
        ranges = [np.abs(n.kernel).max((0, 1, 2)) for n in found.nodes if n.name.endswith("filter")]
        return np.mean([r.max() / r.min() for r in ranges])

    assert spread(even) < spread(graph)


@pytest.mark.slow
def test_training_with_rounding_learns_in_integers():
    """One layer learns another one's outputs; what its integers then miss is rounding."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(256, 12)).astype(np.float32)
    target = run(dense_graph(rng), x)[0]
    graph = dense_graph(rng)
    low, high = float(target.min()), float(target.max())
    ranges = quantize(graph, [x]).activations | {"dense": activation_scale(low, high)}

    @jax.jit
    def step(weights):
        def loss(weights):
            return ((simulate_training(graph, ranges, weights, x)[0] - target) ** 2).mean()

        return jax.tree.map(lambda w, g: w - 0.5 * g, weights, jax.grad(loss)(weights))

    def error(weights):
        trained = with_ranges(with_weights(graph, jax.device_get(weights)), ranges)
        return float(((np.asarray(simulate(trained, x)[0]) - target) ** 2).mean() ** 0.5)

    weights = trainable(graph)
    first = error(weights)
    for _ in range(200):
        weights = step(weights)
    assert first > 1.0 and error(weights) < 2 * ranges["dense"].scale
