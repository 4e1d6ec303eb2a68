"""A network at inference as a list of simple operations: what is folded, exported and quantized.

`trace` reads the operations off the jaxpr of any Flax module: a classifier, SSDLite, DeepLab, an
ablation, or a network with blocks of one's own. Batch norm disappears into the convolution before
it, and a bound into the operation that it bounds. A primitive of JAX that has no place among the
operations stays as it is: `run` computes it, and a file format that lacks it refuses it by name.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array

from mnv2_jax.errors import UsageError
from mnv2_jax.inference import operations
from mnv2_jax.inference.operations import BINARY, IMAGES, UNARY, WEIGHTED, Folded, Graph, Node
from mnv2_jax.inference.simplify import simplified
from mnv2_jax.models.dialect import normalize
from mnv2_jax.ops.convolution import NHWC
from mnv2_jax.ops.platform import compiled_for

# Primitives that only call the jaxpr in their parameter "jaxpr" or "call_jaxpr".
CALLS = {
    "jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint",
    "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr",
}  # fmt: skip


def trace(model: Any, variables: Any, size: tuple[int, int], dialect: Any = None) -> Graph:
    """Returns what a module of images computes at inference for images of (height, width).

    With a `dialect` the images are pixels 0..255, and bringing them to its input range is the
    graph's first operation. A model that mixes the images of a batch is refused by a `UsageError`.
    """
    graph, weights = structure(model, variables, size, lambda f, v: jax.jit(f)(v))
    graph = operations.with_weights(graph, jax.device_get(weights))
    if dialect is None:
        return graph
    ends = np.broadcast_to(np.array([[[0]], [[255]]], np.uint8), (2, 1, graph.input_shape[-1]))
    (low,), (high,) = np.asarray(normalize(jnp.asarray(ends), dialect))
    name, shape = "normalize", graph.input_shape
    pixels = Node(name, name, (IMAGES,), shape, kernel=(high - low) / 255, bias=low)
    inputs = [tuple(name if n == IMAGES else n for n in node.inputs) for node in graph.nodes]
    nodes = (node._replace(inputs=i) for node, i in zip(graph.nodes, inputs, strict=True))
    return graph._replace(nodes=(pixels, *nodes))


def structure(
    model: Any,
    variables: Any,
    size: tuple[int, int],
    evaluate: Callable[[Callable[[Any], Any], Any], Any] = jax.eval_shape,
) -> tuple[Graph, dict[str, Folded]]:
    """Returns a graph, and by the names of its nodes the weights that it still has to be given.

    The arguments are those of `trace`; `evaluate` returns what a function makes of the variables,
    of which shapes may be enough, and has to trace it.
    """
    graphs = []
    plain, shape = _plain(model), (1, *size, option(model, "in_channels", 3))

    def weights(variables: Any) -> dict[str, Folded]:
        with compiled_for("any"):  # convolutions as one operation to read
            closed = jax.make_jaxpr(lambda v, x: jax.tree.leaves(plain.apply(v, x)))(
                variables, jax.ShapeDtypeStruct(shape, np.float32)
            )
        reader = _Reader(type(model).__name__, shape)
        outputs = reader.visit(closed, [*jax.tree.leaves(variables), IMAGES])
        graphs.append(simplified(Graph(tuple(reader.nodes.values()), shape, tuple(outputs))))
        # Of variables everything is traced here, and nothing else is.
        return {
            node.name: Folded(node.kernel, node.bias)
            for node in graphs[-1].nodes
            if any(isinstance(v, core.Tracer) for v in jax.tree.leaves((node.kernel, node.bias)))
        }

    evaluated = evaluate(weights, variables)
    return graphs[-1], evaluated


def option(model: Any, name: str, default: Any) -> Any:
    """Returns an attribute of a model or its backbone, or the default where it does not say."""
    return getattr(getattr(model, "backbone", model), name, default)


def _plain(model: Any) -> Any:
    """The same network in float32, with every block computed whole."""
    if hasattr(model, "backbone"):
        return model.clone(backbone=_plain(model.backbone))
    changes = {"dtype": jnp.float32, "split": 1}
    return model.clone(**{name: value for name, value in changes.items() if hasattr(model, name)})


class _Reader:
    """Turns a jaxpr into nodes; every value in it is the name of a node, or a constant array.

    A constant keeps the axes of size 1 that the program repeats it along.
    """

    def __init__(self, title: str, shape: tuple[int, ...]):
        self.title, self.shapes = title, {IMAGES: shape}
        self.nodes: dict[str, Node] = {}

    def visit(self, jaxpr: Any, arguments: list[Any], scope: str = "") -> list[Any]:
        consts, jaxpr = getattr(jaxpr, "consts", ()), getattr(jaxpr, "jaxpr", jaxpr)
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

        def read(atom: Any) -> Any:
            return np.asarray(atom.val) if hasattr(atom, "val") else values[atom]

        for equation in jaxpr.eqns:
            inner = str(equation.source_info.name_stack)
            place = inner if inner.startswith(self.title) else f"{scope}/{inner}"
            results = self.equation(equation, [read(atom) for atom in equation.invars], place)
            values |= zip(equation.outvars, results, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, inputs: list[Any], scope: str) -> list[Any]:
        op, params = equation.primitive.name, equation.params
        if op in CALLS and params.get("name") != "resize_aligned":
            return self.visit(params.get("jaxpr", params.get("call_jaxpr")), inputs, scope)
        names = tuple(value for value in inputs if isinstance(value, str))
        if not names:
            return _constant(equation, inputs)
        shape, dtype = equation.outvars[0].aval.shape, equation.outvars[0].aval.dtype
        if op in CALLS:
            return [self.add(Node("resize", scope, names[:1], shape))]
        if op == "copy" or (op, equation.invars[0].aval.dtype) == ("convert_element_type", dtype):
            return inputs
        given = _Given(op, scope, names, shape, inputs, params, self.shapes[names[0]])
        made = READERS[op](given) if op in READERS else None
        if isinstance(made, str):  # nothing is computed
            return [made]
        if isinstance(made, tuple) and not isinstance(made, Node):
            made, last = made
            return [self.add(last._replace(inputs=(self.add(made),)))]
        if made is not None:
            return [self.add(made)]
        return [self.add(_primitive(equation, i, given)) for i in range(len(equation.outvars))]

    def add(self, node: Node) -> str:
        # Flax scopes are Model/Model.method/block_0.method/filter
        parts = [part.partition(".")[0] for part in node.name.split("/")]
        parts = [part for part in parts if part and part != self.title]
        while parts and parts[-1] in ("conv", "norm"):  # of a ConvNorm
            parts.pop()
        own = "mean" if node.op == "sum" else node.op
        base = "/".join(parts if node.op in WEIGHTED and parts else [*parts, own])
        name, copy = base, 1
        while name in self.nodes or name == IMAGES:
            copy += 1
            name = f"{base}_{copy}"
        self.nodes[name], self.shapes[name] = node._replace(name=name), node.shape
        return name


class _Given(NamedTuple):
    """An equation that computes from images; `inputs` are names and constants, in its order."""

    op: str
    scope: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    inputs: list[Any]
    params: dict[str, Any]
    first: tuple[int, ...]  # the shape of the first named input

    @property
    def constants(self) -> tuple[Any, ...]:
        return tuple(value for value in self.inputs if not isinstance(value, str))

    @property
    def second(self) -> Any:
        """The constant by which the only named input is multiplied or convolved, or None."""
        return self.inputs[1] if isinstance(self.inputs[0], str) and self.constants else None

    def node(self, op: str = "", **attributes: Any) -> Node:
        return Node(op or self.op, self.scope, self.names, self.shape, **attributes)


def _constant(equation: Any, inputs: list[Any]) -> list[Any]:
    """Evaluates an equation without images."""
    op, params = equation.primitive.name, equation.params
    if op == "broadcast_in_dim":
        sizes = dict(zip(params["broadcast_dimensions"], np.shape(inputs[0]), strict=True))
        return [inputs[0].reshape([sizes.get(i, 1) for i in range(len(params["shape"]))])]
    if op in BINARY:
        return [BINARY[op](*jnp.broadcast_arrays(*inputs))]
    shapes = [atom.aval.shape for atom in equation.invars]
    whole = [jnp.broadcast_to(x, s) for x, s in zip(inputs, shapes, strict=True)]
    results = equation.primitive.bind(*whole, **params)
    return list(results) if equation.primitive.multiple_results else [results]


def _primitive(equation: Any, output: int, given: _Given) -> Node:
    """A node that computes output i of a primitive of JAX as it is, image by image."""
    shape = equation.outvars[output].aval.shape
    if shape[:1] != (1,):
        raise UsageError(
            f"{given.op!r} (layer {given.scope}) mixes the images of a batch, or keeps no axis for "
            "them: such a network can be neither folded nor exported."
        )
    primitive, params, operands = equation.primitive, equation.params, given.inputs
    shapes = [atom.aval.shape for atom in equation.invars]

    def compute(node: Node, *images: Array) -> Array:
        def one(*images: Array) -> Array:
            named, kept = iter(images), iter(node.kernel)
            whole = (
                next(named)[None] if isinstance(x, str) else jnp.broadcast_to(next(kept), s)
                for x, s in zip(operands, shapes, strict=True)
            )
            results = primitive.bind(*whole, **params)
            return (results[output] if primitive.multiple_results else results)[0]

        return jax.vmap(one)(*images)

    name = f"{given.op} of this form" if given.op in BINARY else given.op
    return given.node(name, kernel=given.constants, compute=compute)._replace(shape=shape)


def _read_conv(given: _Given) -> Node | None:
    p, kernel = given.params, given.second
    stride, dilation = (set(p[name]) for name in ("window_strides", "rhs_dilation"))
    square = p["batch_group_count"] == len(stride) == len(dilation) == 1
    plain = square and p["dimension_numbers"] == NHWC and set(p["lhs_dilation"]) == {1}
    if kernel is None or not plain:
        return None
    return given.node(
        "conv",
        kernel=kernel,
        bias=np.zeros(kernel.shape[3], np.float32),
        stride=stride.pop(),
        padding=tuple((int(low), int(high)) for low, high in p["padding"]),
        dilation=dilation.pop(),
        groups=p["feature_group_count"],
    )


def _read_dot(given: _Given) -> Node | None:
    """A product over the last axis: of vectors, or of every pixel, which is a 1×1 convolution."""
    (left, right), batch = given.params["dimension_numbers"]
    rank, kernel = len(given.first), given.second
    if kernel is None or (kernel.ndim, tuple(left), batch) != (2, (rank - 1,), ((), ())):
        return None
    if rank not in (2, 4):
        return None
    kernel = kernel.T if tuple(right) == (1,) else kernel
    op, kernel = ("dense", kernel) if rank == 2 else ("conv", kernel[None, None])
    return given.node(op, kernel=kernel, bias=np.zeros(given.shape[-1], np.float32))


def _read_binary(given: _Given) -> Node | tuple[Node, Node] | None:
    if not given.constants:
        return given.node()
    op, (value,), reversed_ = given.op, given.constants, given.second is None
    if op in ("max", "min") and np.ndim(value) == 0 and not isinstance(value, core.Tracer):
        end = float(value)
        return given.node("clip", clip=(end, np.inf) if op == "max" else (-np.inf, end))
    if op == "sub" and reversed_:
        return given.node("mul", kernel=np.float32(-1)), given.node("add", kernel=value)
    if op == "sub":
        return given.node("add", kernel=-value)
    if op in ("div", "pow") and reversed_:
        return None
    return given.node("mul", kernel=1 / value) if op == "div" else given.node(kernel=value)


def _read_power(given: _Given) -> Node:
    power = given.params.get("y", 2)
    if power == 2:
        return given._replace(names=given.names * 2).node("mul")
    return given.node("pow", kernel=np.float32(power))


def _read_reshape(given: _Given) -> Node | str | None:
    if given.shape == given.first:
        return given.names[0]
    if given.shape[:1] == (1,) and np.prod(given.shape) == np.prod(given.first):
        return given.node("reshape")
    in_place = given.params.get("broadcast_dimensions") == (0, 1, 2, 3) and len(given.shape) == 4
    one_pixel = given.first[:3] == (1, 1, 1) and given.shape[0] == 1
    return given.node("expand") if in_place and one_pixel else None


def _read_sum(given: _Given) -> Node | None:
    spatial = len(given.first) == 4 and tuple(given.params["axes"]) == (1, 2)
    return given.node("sum", kernel=given.first[1] * given.first[2]) if spatial else None


def _read_concat(given: _Given) -> Node | None:
    axis = given.params["dimension"]
    return given.node("concat", axis=axis) if axis and not given.constants else None


READERS: dict[str, Callable[[_Given], Node | tuple[Node, Node] | str | None]] = {
    "conv_general_dilated": _read_conv,
    "dot_general": _read_dot,
    **dict.fromkeys(BINARY, _read_binary),
    **dict.fromkeys(UNARY, _Given.node),
    **dict.fromkeys(("square", "integer_pow"), _read_power),
    "neg": lambda given: given.node("mul", kernel=np.float32(-1)),
    **dict.fromkeys(("reshape", "squeeze", "broadcast_in_dim"), _read_reshape),
    "reduce_sum": _read_sum,
    "concatenate": _read_concat,
}
