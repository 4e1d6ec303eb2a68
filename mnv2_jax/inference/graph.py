"""A network at inference as a list of few kinds of operations: what exporters write out.

`trace` runs any model of this project (classifier, SSDLite, DeepLab, and their ablations) on
shapes alone, with batch norm folded and every convolution in its plain form, and keeps what it
computes. `run` computes it again in JAX, with a hook after every operation, which is how int8 is
calibrated and simulated.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from mnv2_jax.models.deeplab import resize_aligned
from mnv2_jax.models.layers import PADDINGS, ConvNorm, fold_norm
from mnv2_jax.ops.convolution import convolution

IMAGES = "images"
"""The name of a graph's input."""

Clip = tuple[float, float]


class Node(NamedTuple):
    """One operation. Images are (b, h, w, c) and kernels (h, w, in, out) throughout.

    Attributes:
      op: a key of `OPERATIONS`.
      name: of its output; the module's path, made unique.
      inputs: names of other nodes, or `IMAGES`.
      shape: of its output, with a batch of 1.
      kernel, bias: of `conv` (see `ConvNorm`) and `dense`; of `normalize` factor and offset.
      clip: lowest and highest output, or None.
      stride, padding, dilation, groups: of `conv`.
      axis: of `concat`.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    kernel: Any = None
    bias: Any = None
    clip: Clip | None = None
    stride: int = 1
    padding: tuple[tuple[int, int], ...] = ((0, 0), (0, 0))
    dilation: int = 1
    groups: int = 1
    axis: int = -1


class Graph(NamedTuple):
    """Nodes in the order of their computation.

    Attributes:
      nodes: all operations.
      input_shape: (1, h, w, c).
      outputs: names of the nodes that are the results.
    """

    nodes: tuple[Node, ...]
    input_shape: tuple[int, ...]
    outputs: tuple[str, ...]


def trace(model: Any, variables: Any, size: tuple[int, int], dialect: Any = None) -> Graph:
    """Returns what a model computes at inference for images of one size.

    Args:
      model: a `MobileNetV2`, `SSDLite` or `DeepLabV3`.
      variables: its `params` and `batch_stats`.
      size: height and width.
      dialect: where given, the images are pixels 0..255, and bringing them to this dialect's input
        range is the graph's first operation.
    """
    plain = _plain(model)
    channels = getattr(plain, "backbone", plain).in_channels
    shape = (1, *size, channels)

    def forward(images: Array) -> Any:
        with nn.intercept_methods(_folded):
            return plain.apply(variables, images)

    closed = jax.make_jaxpr(forward)(jax.ShapeDtypeStruct(shape, np.float32))
    uses = Counter(v for e in closed.jaxpr.eqns for v in e.invars if _is_variable(v))
    tracer = _Tracer(type(model).__name__, uses)
    images = IMAGES
    if dialect is not None:
        std, mean = (
            np.resize(v, channels) if len(v) in (1, channels) else np.full(channels, np.mean(v))
            for v in (dialect.std, dialect.mean)
        )
        images = tracer.add(
            "normalize", images, shape, "normalize",
            kernel=np.float32(1 / (255 * std)), bias=np.float32(-mean / std),
        )  # fmt: skip
    outputs = tracer.visit(closed.jaxpr, closed.consts, [images])
    return Graph(tuple(tracer.nodes.values()), shape, tuple(outputs))


def _plain(model: Any) -> Any:
    """The same network with XLA's own convolutions in float32, computed whole."""
    changes = {"convolve": lax.conv_general_dilated, "dtype": jnp.float32, "split": 1}
    if hasattr(model, "backbone"):
        return model.clone(backbone=model.backbone.clone(**changes))
    return model.clone(**changes)


def _folded(call: Callable[..., Any], args: Any, options: Any, context: Any) -> Any:
    """Computes a `ConvNorm` as one convolution with a bias; leaves other modules alone."""
    module = context.module
    if not isinstance(module, ConvNorm) or context.method_name != "__call__":
        return call(*args, **options)
    x, variables = args[0], module.variables
    with jax.ensure_compile_time_eval():
        kernel, bias = fold_norm(
            variables["params"], variables["batch_stats"], module.dialect.bn_epsilon
        )
    pad = PADDINGS[module.dialect.padding]
    y = module.convolve(
        x,
        kernel,
        (module.stride, module.stride),
        [pad(n, module.kernel, module.stride, module.dilation) for n in x.shape[1:3]],
        rhs_dilation=(module.dilation, module.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3] // kernel.shape[2],
    )
    return module.activation(y + bias)


def _is_variable(atom: Any) -> bool:
    return not hasattr(atom, "val")  # a literal has a value


class _Tracer:
    """Reads a jaxpr; every value in it is the name of a node, or a constant array."""

    def __init__(self, title: str, uses: Counter):
        self.title = title
        self.nodes: dict[str, Node] = {}
        self.uses = uses

    def add(self, op: str, inputs: Any, shape: Any, scope: str = "", **attributes: Any) -> str:
        # Flax scopes are Model/Model.method/block_0.method/filter
        parts = [part.partition(".")[0] for part in scope.split("/")]
        base = "/".join(part for part in parts if part and part != self.title) or op
        name, copy = base, 1
        while name in self.nodes or name == IMAGES:
            copy += 1
            name = f"{base}_{copy}"
        inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
        self.nodes[name] = Node(op, name, inputs, tuple(shape), **attributes)
        return name

    def visit(self, jaxpr: Any, consts: Any, arguments: Any) -> list[Any]:
        values = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
        values |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return values[atom] if _is_variable(atom) else np.asarray(atom.val)

        for equation in jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            known = all(isinstance(value, np.ndarray) for value in inputs)
            found = self.constant(equation, inputs) if known else self.equation(equation, inputs)
            values |= dict(zip(equation.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def constant(self, equation: Any, inputs: list[Any]) -> list[Any]:
        found = equation.primitive.bind(*map(jnp.asarray, inputs), **equation.params)
        return [np.asarray(x) for x in (found if equation.primitive.multiple_results else [found])]

    def equation(self, equation: Any, inputs: list[Any]) -> list[Any]:
        name = equation.params.get("name", equation.primitive.name)
        inner = equation.params.get("call_jaxpr") or equation.params.get("jaxpr")
        if name not in READERS and inner is not None:
            return self.visit(inner.jaxpr, inner.consts, inputs)
        shape = equation.outvars[0].aval.shape
        scope = str(equation.source_info.name_stack)
        return [READERS[name](self, equation, inputs, shape, scope)]

    def single(self, name: Any, op: tuple[str, ...], equation: Any) -> Node | None:
        """The node of a name, if it is of these kinds and nothing but this equation uses it."""
        node = self.nodes.get(name) if isinstance(name, str) else None
        alone = all(self.uses[v] <= 1 for v in equation.invars if _is_variable(v))
        return node if node is not None and node.op in op and alone else None


def _read_conv(tracer: _Tracer, equation: Any, inputs: Any, shape: Any, scope: str) -> str:
    given = equation.params
    kernel = inputs[1]
    return tracer.add(
        "conv", inputs[0], shape, scope,
        kernel=kernel,
        bias=np.zeros(kernel.shape[3], np.float32),
        stride=given["window_strides"][0],
        padding=tuple((int(low), int(high)) for low, high in given["padding"]),
        dilation=given["rhs_dilation"][0],
        groups=given["feature_group_count"],
    )  # fmt: skip


def _read_dense(tracer: _Tracer, equation: Any, inputs: Any, shape: Any, scope: str) -> str:
    del equation
    bias = np.zeros(shape[-1], np.float32)
    return tracer.add("dense", inputs[0], shape, scope, kernel=inputs[1], bias=bias)


def _read_add(tracer: _Tracer, equation: Any, inputs: Any, shape: Any, scope: str) -> str:
    given = next((value for value in inputs if isinstance(value, np.ndarray)), None)
    if given is None:
        return tracer.add("add", inputs, shape, f"{scope}/add")
    (name,) = (value for value in inputs if isinstance(value, str))
    node = tracer.nodes[name]
    assert node.op in ("conv", "dense") and node.clip is None, node
    tracer.nodes[name] = node._replace(bias=node.bias + given.reshape(-1))
    return name


def _read_clip(low: float, high: float) -> Callable[..., str]:
    def read(tracer: _Tracer, equation: Any, inputs: Any, shape: Any, scope: str) -> str:
        node = tracer.single(inputs[0], ("conv", "dense", "add"), equation)
        if node is None or node.clip is not None:
            return tracer.add("clip", inputs[0], shape, scope, clip=(low, high))
        tracer.nodes[node.name] = node._replace(clip=(low, high))
        return node.name

    return read


def _read_mean(tracer: _Tracer, equation: Any, inputs: Any, shape: Any, scope: str) -> str:
    assert equation.params["axes"] == (1, 2), equation
    return tracer.add("mean", inputs[0], shape, scope)


def _read_div(tracer: _Tracer, equation: Any, inputs: Any, shape: Any, scope: str) -> str:
    """The division of a mean, whose sum is a node already; nothing else divides."""
    del equation, scope
    node = tracer.nodes[inputs[0]]
    while node.op == "reshape":
        node = tracer.nodes[node.inputs[0]]
    h, w = _shape_of(tracer, node.inputs[0])[1:3]
    assert node.op == "mean" and inputs[1] == h * w, (node, shape)
    return inputs[0]


def _shape_of(tracer: _Tracer, name: str) -> tuple[int, ...]:
    return tracer.nodes[name].shape


def _read_reshape(tracer: _Tracer, equation: Any, inputs: Any, shape: Any, scope: str) -> str:
    del equation
    if _shape_of(tracer, inputs[0]) == shape:
        return inputs[0]
    return tracer.add("reshape", inputs[0], shape, scope)


def _read_broadcast(tracer: _Tracer, equation: Any, inputs: Any, shape: Any, scope: str) -> str:
    kept = [n for i, n in enumerate(shape) if i in equation.params["broadcast_dimensions"]]
    same = np.prod(shape) == np.prod(_shape_of(tracer, inputs[0]))
    if same:
        return _read_reshape(tracer, equation, inputs, shape, scope)
    assert len(kept) == 4, equation
    return tracer.add("expand", inputs[0], shape, scope)


def _read_concat(tracer: _Tracer, equation: Any, inputs: Any, shape: Any, scope: str) -> str:
    return tracer.add("concat", inputs, shape, scope, axis=equation.params["dimension"])


def _read_resize(tracer: _Tracer, equation: Any, inputs: Any, shape: Any, scope: str) -> str:
    del equation
    return tracer.add("resize", inputs[0], shape, scope)


# Primitives, and functions of this project that are compiled under their own name.
READERS: dict[str, Callable[..., str]] = {
    "conv_general_dilated": _read_conv,
    "dot_general": _read_dense,
    "add": _read_add,
    "relu6": _read_clip(0.0, 6.0),
    "relu": _read_clip(0.0, np.inf),
    "reduce_sum": _read_mean,
    "div": _read_div,
    "reshape": _read_reshape,
    "broadcast_in_dim": _read_broadcast,
    "concatenate": _read_concat,
    "resize_aligned": _read_resize,
}


def _run_normalize(node: Node, x: Array) -> Array:
    factor, offset = (values[None, None, None] for values in (node.kernel, node.bias))
    return x.astype(jnp.float32) * factor + offset


def _run_conv(node: Node, x: Array) -> Array:
    def convolve(form: Callable[..., Array], x: Array) -> Array:
        return form(
            x,
            jnp.asarray(node.kernel),
            (node.stride, node.stride),
            node.padding,
            rhs_dilation=(node.dilation, node.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=node.groups,
        )

    # Chosen when it is lowered, since a graph may be exported for several platforms at once.
    y = lax.platform_dependent(
        x,
        cpu=functools.partial(convolve, convolution),
        default=functools.partial(convolve, lax.conv_general_dilated),
    )
    return y + jnp.asarray(node.bias)[None, None, None]


OPERATIONS: dict[str, Callable[..., Array]] = {
    "normalize": lambda n, x: (
        x.astype(jnp.float32) * n.kernel[None, None, None] + n.bias[None, None, None]
    ),
    "conv": _run_conv,
    "dense": lambda n, x: x @ jnp.asarray(n.kernel) + jnp.asarray(n.bias)[None],
    "add": lambda n, x, y: x + y,
    "clip": lambda n, x: x,
    "mean": lambda n, x: x.mean(axis=(1, 2)),
    "reshape": lambda n, x: x.reshape(x.shape[0], *n.shape[1:]),
    "expand": lambda n, x: jnp.broadcast_to(x, (x.shape[0], *n.shape[1:])),
    "concat": lambda n, *xs: jnp.concatenate(xs, axis=n.axis),
    "resize": lambda n, x: resize_aligned(x, n.shape[1:3]),
}


def run(
    graph: Graph,
    images: Float[Array, "b h w c"],
    after: Callable[[str, Array], Array] = lambda name, value: value,
) -> list[Array]:
    """Computes a graph.

    Args:
      graph: of the network.
      images: as the network takes them, any number of them.
      after: (name, value) -> the value that goes on; it sees the images and every node's output.

    Returns:
      The graph's outputs.
    """
    values = {IMAGES: after(IMAGES, images)}
    for node in graph.nodes:
        value = OPERATIONS[node.op](node, *(values[name] for name in node.inputs))
        if node.clip is not None:
            value = jnp.clip(value, *node.clip)
        values[node.name] = after(node.name, value)
    return [values[name] for name in graph.outputs]
