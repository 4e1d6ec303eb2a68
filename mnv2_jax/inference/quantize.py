"""Networks in 8-bit integers: calibration, simulation, and training with rounding in the loop.

The scheme is that of integer runtimes (arXiv 1712.05877 and 1806.08342): kernels are signed with a
scale for every output channel, activations have a scale and a zero point for the whole tensor,
sums are 32 bits wide. Bottlenecks are linear, so they take both signs, and their range is signed.
A ReLU6 bounds every other range before anything is calibrated, which is what the paper calls its
robustness at low precision (Sec. 3.3).

All of it works on the `Graph` of a network, so that a simulation and an exported file round the
same tensors by the same scales.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from mnv2_jax.errors import UsageError
from mnv2_jax.inference.operations import IMAGES, WEIGHTED, Graph, Node, only, run, with_weights

LOWEST, HIGHEST = -128, 127
KERNEL_LIMIT = 127  # runtimes keep kernels symmetric, without -128
# These pass numbers on unchanged, and runtimes want one scale on both of their sides.
PASSES_ON = ("reshape", "expand", "concat", "resize", "clip")
INTEGER = ("normalize", *WEIGHTED, "add", "mean", *PASSES_ON)


class Scale(NamedTuple):
    """How an activation is rounded: value = scale · (integer - zero)."""

    scale: float
    zero: int


class Weights(NamedTuple):
    """A kernel and its bias in integers."""

    kernel: np.ndarray  # int8, in the node's order of axes
    scale: np.ndarray  # of each output channel
    bias: np.ndarray  # int32
    bias_scale: np.ndarray  # `scale` times the scale of the input


class Quantized(NamedTuple):
    """A float graph with the numbers that make it an integer network."""

    graph: Graph
    activations: dict[str, Scale]  # of every node's output, and of images that are no pixels
    weights: dict[str, Weights]  # of every node with a kernel


def quantize(graph: Graph, batches: Iterable[Any]) -> Quantized:
    """Quantizes a network after training (PTQ); an operation that int8 cannot hold is refused.

    The batches are images as the graph takes them, of which a few hundred are enough. Preprocessing
    inside the graph stays in float.
    """
    for node in graph.nodes:
        if node.op not in INTEGER or (node.op == "add" and node.kernel is not None):
            raise UsageError(
                f"int8 cannot hold {node.op!r} (layer {node.layer}): "
                "replace it in the network, or export without int8."
            )
    ranges = calibrate(graph, batches)
    return with_ranges(graph, {name: activation_scale(*ends) for name, ends in ranges.items()})


def with_ranges(graph: Graph, activations: dict[str, Scale]) -> Quantized:
    """Rounds the weights of a graph whose activations have their scales already."""
    nodes = [node for node in graph.nodes if node.op in WEIGHTED]
    scales = [activations[node.inputs[0]].scale for node in nodes]
    weights = {n.name: quantize_weights(n, s) for n, s in zip(nodes, scales, strict=True)}
    return Quantized(graph, activations, weights)


def first_images(batches: Iterable[Any], count: int) -> Iterator[Any]:
    """Yields the first `count` images of batches, as batches; such are enough to calibrate on."""
    for batch in batches:
        yield batch[:count]
        count -= len(batch)
        if count <= 0:
            return


def calibrate(graph: Graph, batches: Iterable[Any]) -> dict[str, tuple[float, float]]:
    """Returns the lowest and highest value of the images and every node over all batches."""

    @jax.jit
    def observe(images: Array) -> dict[str, Array]:
        seen = {}

        def after(name: str, value: Array) -> Array:
            seen[name] = jnp.stack([value.min(), value.max()])
            return value

        run(graph, images, after)
        return seen

    observed = [jax.device_get(observe(jnp.asarray(images))) for images in batches]
    if not observed:
        raise UsageError("there is no image to calibrate with: give at least one batch.")
    ranges = {}
    for name in observed[0]:
        if name == IMAGES and graph.nodes[0].op == "normalize":
            continue
        low, high = np.stack([seen[name] for seen in observed]).T
        ranges[name] = (float(low.min()), float(high.max()))
    for names in _tied(graph):
        low, high = min(ranges[n][0] for n in names), max(ranges[n][1] for n in names)
        ranges |= dict.fromkeys(names, (low, high))
    return ranges


def _tied(graph: Graph) -> list[set[str]]:
    """Sets of tensors that have to share one scale."""
    groups: list[set[str]] = []
    for node in graph.nodes:
        if node.op not in PASSES_ON:
            continue
        members = {node.name, *node.inputs}
        for group in [group for group in groups if group & members]:
            groups.remove(group)
            members |= group
        groups.append(members)
    return groups


def activation_scale(low: float, high: float) -> Scale:
    """Returns the scale and zero point of a range; 0 is always exact, as padding needs it.

    >>> activation_scale(0.0, 6.0)
    Scale(scale=0.0235..., zero=-128)
    >>> activation_scale(-1.0, 2.0).zero
    -43
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / (HIGHEST - LOWEST) or 1.0))
    return Scale(scale, int(np.clip(round(LOWEST - low / scale), LOWEST, HIGHEST)))


def quantize_weights(node: Node, input_scale: float) -> Weights:
    """Rounds a node's kernel and bias."""
    kernel = np.asarray(node.kernel, np.float32)
    axes = tuple(range(kernel.ndim - 1))
    scale = np.maximum(np.abs(kernel).max(axes), 1e-12) / np.float32(KERNEL_LIMIT)
    rounded = np.clip(np.rint(kernel / scale), -KERNEL_LIMIT, KERNEL_LIMIT).astype(np.int8)
    bias_scale = (scale * np.float32(input_scale)).astype(np.float32)
    limit = 2.0**31 - 1
    bias = np.clip(np.rint(np.float64(node.bias) / bias_scale), -limit, limit).astype(np.int32)
    return Weights(rounded, scale, bias, bias_scale)


def equalize(graph: Graph, rounds: int = 20) -> Graph:
    """Evens out the channels between convolutions (cross-layer equalization, arXiv 1906.04721).

    Where one convolution feeds only the next, a channel can be made smaller before and larger after
    without changing the result, so that channels of one tensor use its range alike. Only ReLU and
    the identity allow this: a bound of 6 would become another one for every channel, so here ReLU6
    becomes ReLU, as in the cited paper, which costs accuracy where activations reach 6.
    """
    nodes, uses = {node.name: node for node in graph.nodes}, graph.uses()

    def applies(after: Node) -> bool:
        before = only(after.inputs[0], nodes, uses, "conv")
        if before is None or after.op != "conv":
            return False
        return (before.clip is None or before.clip[0] == 0) and after.groups in (1, after.shape[3])

    pairs = [(node.inputs[0], node.name) for node in graph.nodes if applies(node)]
    for _ in range(rounds):
        for first, second in pairs:
            before, after = nodes[first], nodes[second]
            # (h, w, in, out): a depthwise kernel has its input channels on the last axis too
            axis = 3 if after.groups > 1 else 2
            others = tuple(i for i in range(4) if i != axis)
            ranges = np.abs(before.kernel).max((0, 1, 2)), np.abs(after.kernel).max(others)
            factor = np.sqrt(np.maximum(ranges[1], 1e-8) / np.maximum(ranges[0], 1e-8))
            factor = factor.astype(np.float32)
            clip = None if before.clip is None else (0.0, np.inf)
            nodes[first] = before._replace(
                kernel=before.kernel * factor, bias=before.bias * factor, clip=clip
            )
            shape = [-1 if i == axis else 1 for i in range(4)]
            nodes[second] = after._replace(kernel=after.kernel / factor.reshape(shape))
    return graph._replace(nodes=tuple(nodes.values()))


def dequantized(quantized: Quantized) -> Graph:
    """Returns the graph with the values that its integer weights stand for."""
    values = {
        name: (np.float32(w.kernel) * w.scale, np.float32(w.bias) * w.bias_scale)
        for name, w in quantized.weights.items()
    }
    return with_weights(quantized.graph, values)


def simulate(quantized: Quantized, images: Num[Array, "b ..."]) -> list[Array]:
    """Computes the integer network in JAX: float arithmetic on values that integers stand for."""

    def after(name: str, value: Array) -> Array:
        scale = quantized.activations.get(name)
        return value if scale is None else round_to(scale, value)

    return run(dequantized(quantized), images, after)


def round_to(scale: Scale, value: Array) -> Array:
    """Rounds to the nearest value that an 8-bit integer stands for.

    >>> round_to(Scale(0.5, 0), jnp.array([0.3, 1.9, 100.0]))
    Array([ 0.5,  2. , 63.5], dtype=float32)
    """
    low, high = ((end - scale.zero) * scale.scale for end in (LOWEST, HIGHEST))
    return jnp.clip(jnp.round(value / scale.scale) * scale.scale, low, high)


def straight_through(rounded: Array, value: Array) -> Array:
    """The rounded value forward, and the gradient as if nothing had been rounded."""
    return value + jax.lax.stop_gradient(rounded - value)


def trainable(graph: Graph) -> dict[str, tuple[Any, Any]]:
    """The kernels and biases that quantization-aware training changes."""
    nodes = [node for node in graph.nodes if node.op in WEIGHTED]
    return {node.name: (jnp.asarray(node.kernel), jnp.asarray(node.bias)) for node in nodes}


def simulate_training(
    graph: Graph,
    activations: Mapping[str, Scale],
    weights: Mapping[str, tuple[Any, Any]],
    images: Num[Array, "b ..."],
) -> list[Array]:
    """Computes the integer network of float weights, so that a loss can be minimized (QAT).

    Kernels and activations are rounded forward and the gradient passes straight through, cut off
    outside of an activation's range. Batch norm stays folded and the ranges stay as calibrated.
    """
    rounded = {}
    for name, (kernel, bias) in weights.items():
        axes = tuple(range(kernel.ndim - 1))
        scale = jnp.maximum(jnp.abs(kernel).max(axes, keepdims=True), 1e-12) / KERNEL_LIMIT
        scale = jax.lax.stop_gradient(scale)
        rounded[name] = (straight_through(jnp.round(kernel / scale) * scale, kernel), bias)

    def after(name: str, value: Array) -> Array:
        scale = activations.get(name)
        if scale is None:
            return value
        low, high = ((end - scale.zero) * scale.scale for end in (LOWEST, HIGHEST))
        return straight_through(round_to(scale, value), jnp.clip(value, low, high))

    return run(with_weights(graph, rounded), images, after)
