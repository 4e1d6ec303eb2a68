"""What a graph is made of, and its computation in JAX."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Num

from mnv2_jax.models.deeplab import resize_aligned
from mnv2_jax.ops.convolution import (
    Window,
    by_columns,
    by_xla,
    convolution,
    dense,
    fused_product,
    operands,
)
from mnv2_jax.ops.platform import platform

IMAGES = "images"
"""The name of a graph's input."""

WEIGHTED = ("conv", "dense")

Clip = tuple[float, float]


class Node(NamedTuple):
    """One operation. Images are (b, h, w, c) and kernels (h, w, in, out) throughout.

    Kernel and bias are those of `conv` and `dense`, and factor and offset of `normalize`. A kernel
    alone is the second operand of a binary operation with one input, the number of pixels of `sum`,
    or the constants of a primitive.
    """

    op: str  # a key of `OPERATIONS`, or the name of another primitive of JAX
    name: str  # of its output; the module's path, made unique
    inputs: tuple[str, ...]  # names of other nodes, or `IMAGES`
    shape: tuple[int, ...]  # of its output, with a batch of 1
    kernel: Any = None
    bias: Any = None
    clip: Clip | None = None  # lowest and highest output
    stride: int = 1
    padding: tuple[tuple[int, int], ...] = ((0, 0), (0, 0))
    dilation: int = 1
    groups: int = 1
    axis: int = -1  # of `concat`
    compute: Callable[..., Array] | None = None  # (node, *inputs), for what is no key

    @property
    def layer(self) -> str:
        """The path of the module that computes it."""
        path = self.name if self.op in WEIGHTED else self.name.rpartition("/")[0]
        return path or "the network itself"


class Graph(NamedTuple):
    """Nodes in the order of their computation."""

    nodes: tuple[Node, ...]
    input_shape: tuple[int, ...]  # (1, h, w, c)
    outputs: tuple[str, ...]  # names of the nodes that are the results

    def uses(self) -> Counter[str]:
        """Returns how often each value is used, as an input or as an output of the graph."""
        return Counter([*self.outputs, *(name for node in self.nodes for name in node.inputs)])


class Folded(NamedTuple):
    """What a node computes with, batch norm folded in; see `Node`."""

    kernel: Any
    bias: Any


def only(name: str, nodes: Mapping[str, Node], uses: Counter[str], *ops: str) -> Node | None:
    """Returns the node of a name, if it is one of these operations and is read only once."""
    node = nodes.get(name)
    return node if node is not None and node.op in ops and uses[name] == 1 else None


def with_weights(graph: Graph, weights: Mapping[str, tuple[Any, Any]]) -> Graph:
    """Returns the graph with other kernels and biases, given by the names of their nodes."""

    def given(node: Node) -> Node:
        kernel, bias = weights.get(node.name, (node.kernel, node.bias))
        return node._replace(kernel=kernel, bias=bias)

    return graph._replace(nodes=tuple(map(given, graph.nodes)))


def convolve_anywhere(x: Array, *args: Any, **options: Any) -> Array:
    """Convolves by `convolution` on CPUs, else by XLA: one program serves all platforms."""
    return lax.platform_dependent(
        x,
        cpu=lambda x: convolution(x, *args, **options),
        default=lambda x: lax.conv_general_dilated(x, *args, **options),
    )


def compute(
    node: Node, x: Array, *others: Array, convolve: Callable[..., Array] = convolution
) -> Array:
    """Computes one node."""
    if node.op == "conv":
        kernel, bias = jnp.asarray(node.kernel), jnp.asarray(node.bias)
        strides, dilation = (node.stride, node.stride), (node.dilation, node.dilation)
        if convolve is convolution and platform() in FORMS:
            window = Window(strides, node.padding, dilation)  # pyright: ignore[reportArgumentType]
            value = FORMS[platform()](node, x, kernel, bias, window)
            if value is not None:
                return value
        value = convolve(
            x.astype(kernel.dtype),
            kernel,
            strides,
            node.padding,
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=node.groups,
        ) + bias.reshape(1, 1, 1, -1)
    elif node.op in BINARY:
        second = others[0] if others else jnp.asarray(node.kernel, x.dtype)
        value = BINARY[node.op](*jnp.broadcast_arrays(x, second))
    else:
        value = (node.compute or OPERATIONS[node.op])(node, x, *others)
    return clipped(node, value)


def clipped(node: Node, value: Array) -> Array:
    """Returns the value within the node's bounds."""
    low, high = node.clip or (-np.inf, np.inf)
    value = value if low == -np.inf else jnp.maximum(value, low)
    return value if high == np.inf else jnp.minimum(value, high)


def _on_gpu(node: Node, x: Array, kernel: Array, bias: Array, window: Window) -> Array | None:
    """A product where it is one; what is depthwise, `convolution` computes."""
    product = operands(x.astype(kernel.dtype), kernel, window) if node.groups == 1 else None
    if product is None:
        return None
    return fused_product(product, bias, kernel.dtype, partial(clipped, node))


def _on_tpu(node: Node, x: Array, kernel: Array, bias: Array, window: Window) -> Array | None:
    """What is depthwise on the matrix units, and wide images without a cast before them."""
    depthwise = node.groups == x.shape[3] == kernel.shape[3]
    if node.groups == 1 and x.dtype == jnp.float32 and kernel.dtype != jnp.float32:
        # The matrix units round what they multiply, which costs nothing there.
        value = by_xla(x, kernel.astype(x.dtype), window, 1).astype(kernel.dtype)
    elif depthwise and node.groups <= MAX_GROUP:
        value = dense(x.astype(kernel.dtype), kernel, window)
    elif depthwise and window.strides == (1, 1) and x.shape[2] <= MAX_COLUMNS:
        value = by_columns(x.astype(kernel.dtype), kernel, window)
    else:
        return None
    return clipped(node, value + bias.reshape(1, 1, 1, -1))


# Forms that only pay where nothing is differentiated: they give None for what is no case of theirs.
FORMS: dict[str, Callable[..., Array | None]] = {"cuda": _on_gpu, "tpu": _on_tpu}
# By the cycles that a TPU's compiler counts: channels that are filtered by a full convolution with
# a diagonal kernel, and columns of an image of more.
MAX_GROUP = 72
MAX_COLUMNS = 28


def hard_swish(x: Array) -> Array:
    """Returns x · relu6(x + 3) / 6 (arXiv 1905.02244)."""
    return x * (jnp.clip(x + 3, 0, 6) * (1 / 6))


# Element by element, by the names of JAX's primitives.
UNARY: dict[str, Callable[[Array], Array]] = {
    op: getattr(lax, op) for op in ("logistic", "tanh", "exp", "log", "sqrt", "abs", "erf")
} | {"hard_swish": hard_swish}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    op: getattr(lax, op) for op in ("add", "sub", "mul", "div", "max", "min", "pow")
}
OPERATIONS: dict[str, Callable[..., Array]] = {
    "normalize": lambda n, x: (
        x.astype(jnp.float32) * n.kernel[None, None, None] + n.bias[None, None, None]
    ),
    "dense": lambda n, x: x @ jnp.asarray(n.kernel) + jnp.asarray(n.bias)[None],
    "clip": lambda n, x: x,
    "mean": lambda n, x: x.astype(jnp.float32).mean(axis=(1, 2)),
    "sum": lambda n, x: x.astype(jnp.float32).sum(axis=(1, 2)),
    "reshape": lambda n, x: x.reshape(x.shape[0], *n.shape[1:]),
    "expand": lambda n, x: jnp.broadcast_to(x, (x.shape[0], *n.shape[1:])),
    "concat": lambda n, *xs: jnp.concatenate(xs, axis=n.axis),
    "resize": lambda n, x: resize_aligned(x, n.shape[1:3]),
    **{name: partial(lambda f, n, x: f(x), f) for name, f in UNARY.items()},
}


def run(
    graph: Graph,
    images: Num[Array, "b ..."],
    after: Callable[[str, Array], Array] = lambda name, value: value,
    convolve: Callable[..., Array] = convolve_anywhere,
) -> list[Array]:
    """Returns a graph's outputs for any number of images.

    Args:
      graph, images: of the network.
      after: (name, value) -> the value that goes on; it sees the images and every node's output.
      convolve: computes convolutions, as `jax.lax.conv_general_dilated` would.
    """
    values = {IMAGES: after(IMAGES, images)}
    for node in graph.nodes:
        value = compute(node, *(values[name] for name in node.inputs), convolve=convolve)
        values[node.name] = after(node.name, value)
    return [values[name] for name in graph.outputs]
