"""What a network costs: parameters, multiply-adds and activation memory, layer by layer.

Any Linen module is traced on shapes alone. One multiply-add (MAdd) is one multiplication and one
addition in a convolution or matrix product, as the paper counts, and nothing else is counted.
"""

import math
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.extend import core

from mnv2_jax.markdown import markdown_table
from mnv2_jax.models.spec import Layout

SCOPE = "account/"  # marks the module path in the name stack of traced operations


class Layer(NamedTuple):
    """One row of the account: a module that owns parameters or multiplies matrices itself."""

    path: str
    kind: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    params: int
    kernel_params: int
    madds: int


class Account(NamedTuple):
    """The layers of a network in order of execution, and their sums."""

    layers: tuple[Layer, ...]

    @property
    def params(self) -> int:
        """Trainable parameters, batch norm's scales and offsets and all biases included."""
        return sum(layer.params for layer in self.layers)

    @property
    def kernel_params(self) -> int:
        """Parameters of convolutions and matrix products alone."""
        return sum(layer.kernel_params for layer in self.layers)

    @property
    def madds(self) -> int:
        """Multiply-adds for the traced input."""
        return sum(layer.madds for layer in self.layers)

    @property
    def activation_sum(self) -> int:
        """Elements of all layer outputs together: what training keeps, before rematerialisation."""
        # A batch norm is fused into its convolution, and writes no tensor of its own.
        return sum(math.prod(layer.output) for layer in self.layers if layer.madds)

    def grouped(self) -> "Account":
        """The same account with one row for each top-level part: stem, blocks, head."""
        parts: dict[str, list[Layer]] = {}
        for layer in self.layers:
            parts.setdefault(layer.path.split("/")[0], []).append(layer)

        def whole(name: str, layers: list[Layer]) -> Layer:
            kinds = Counter(layer.kind for layer in layers if layer.madds)
            listed = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
            of = Account(tuple(layers))
            sums = of.params, of.kernel_params, of.madds
            return Layer(name, listed, layers[0].input, layers[-1].output, *sums)

        return Account(tuple(whole(name, layers) for name, layers in parts.items()))

    def markdown(self) -> str:
        """The account as a Markdown table with its totals."""
        rows = [
            (f"`{path or '.'}`", kind, "×".join(map(str, output)), f"{params:,}", f"{madds:,}")
            for path, kind, _, output, params, _, madds in self.layers
        ]
        rows.append(("**total**", "", "", f"**{self.params:,}**", f"**{self.madds:,}**"))
        return markdown_table(("layer", "kind", "output", "parameters", "MAdds"), rows)


def account(module: nn.Module, *inputs: Any, **kwargs: Any) -> Account:
    """Counts a Linen module's parameters, multiply-adds and activations on given input shapes.

    Args:
      module: any unbound Linen module.
      *inputs: positional arguments of its `__call__`: arrays, `jax.ShapeDtypeStruct`s, or shapes as
        tuples of integers, which stand for float32 arrays. Keywords are passed on as they are.

    Convolution modules are counted from their shapes, in whatever form they compute; every other
    matrix product is counted where it is traced, inside or outside of modules. A loop of unknown
    length counts as one pass, a condition as its dearer branch.

    >>> account(nn.Dense(10), (1, 64)).madds
    640
    """
    shapes = [
        jax.ShapeDtypeStruct(x, jnp.float32)
        if isinstance(x, tuple) and all(isinstance(n, int) for n in x)
        else x
        for x in inputs
    ]
    key = jax.random.key(0)
    calls: dict[str, _Call] = {}

    def record(call, args, kwargs, context):
        path = "/".join(context.module.path)
        with jax.named_scope(f"{SCOPE}{path.replace('/', ':')};"):
            out = call(*args, **kwargs)
        if context.method_name == "__call__":
            call_ = calls.setdefault(path, _Call(context.module, _first_shape((args, kwargs)), []))
            call_.outputs.append(_first_shape(out))
        return out

    # Initialisation runs every layer once, whole, whatever the module does at inference.
    init = partial(module.init, {"params": key, "dropout": key}, **kwargs)
    with nn.intercept_methods(record):
        traced, variables = jax.make_jaxpr(init, return_shape=True)(*shapes)
    madds: Counter[str] = Counter()
    for path, count in _products(traced.jaxpr):
        madds[path] += count
    params: Any = flatten_dict(variables.get("params", {}))
    layers = []
    for path, call in calls.items():
        own = {name: leaf for (*place, name), leaf in params.items() if "/".join(place) == path}
        count = madds.pop(path, 0)
        if isinstance(call.module, nn.Conv):
            depth = math.prod(own["kernel"].shape[:-1])  # (*window, inputs of a group, features)
            count = depth * sum(math.prod(out) for out in call.outputs)
        sizes = {name: math.prod(leaf.shape) for name, leaf in own.items()}
        kernels = sum(size for name, size in sizes.items() if name not in ("scale", "bias"))
        kind, total = type(call.module).__name__, sum(sizes.values())
        if own or count:
            layers.append(Layer(path, kind, call.input, call.outputs[0], total, kernels, count))
    layers += [Layer(path, "products", (), (), 0, 0, count) for path, count in madds.items()]
    return Account(tuple(layers))


class _Call(NamedTuple):
    module: nn.Module
    input: tuple[int, ...]
    outputs: list[tuple[int, ...]]  # one for each time the module is called


def bottleneck_memory(
    layout: Layout, size: tuple[int, int], split: int | None = None, channels: int = 3
) -> list[tuple[str, int]]:
    """Activation elements alive while each operation of a network runs, as Sec. 5.1 counts them.

    Gives (operation, elements) in order for an image of `size` (height, width); the largest is what
    inference must hold. With a `split`, the paper's t, every inverted residual is one operation,
    whose memory is its input, its output and one of t groups of its inner tensors. None makes every
    convolution an operation of its own, so that whole expanded tensors exist.

    >>> from mnv2_jax.models.spec import unroll
    >>> max(elements for _, elements in bottleneck_memory(unroll(), (224, 224)))
    1505280
    """
    strides = (1, *layout.strides)  # each is that of the one before, rounded up, times its own
    before, *areas = (math.prod(-(-n // stride) for n in size) for stride in strides)
    rows = [("stem", before * channels + areas[0] * layout.stem)]
    for i, (block, (before, area)) in enumerate(zip(layout.blocks, pairwise(areas), strict=True)):
        thin_in, wide_in = before * block.in_channels, before * block.expanded
        wide_out, thin_out = area * block.expanded, area * block.channels
        if split is not None:
            inner = (wide_in if block.expansion > 1 else 0) + wide_out
            rows.append((f"block_{i}", thin_in + thin_out + -(-inner // split)))
            continue
        keep = thin_in if block.stride == 1 and block.in_channels == block.channels else 0
        if block.expansion > 1:
            rows.append((f"block_{i}/expand", thin_in + wide_in))
        rows.append((f"block_{i}/filter", keep + wide_in + wide_out))
        rows.append((f"block_{i}/project", keep + wide_out + thin_out))
    if layout.last is not None:
        rows.append(("last", areas[-1] * (layout.blocks[-1].channels + layout.last)))
    return rows


def _products(jaxpr: core.Jaxpr, inherited: str = "") -> Iterator[tuple[str, int]]:
    """Yields (module path, multiply-adds) of every matrix product and convolution in a jaxpr."""
    for eqn in jaxpr.eqns:
        stack = str(eqn.source_info.name_stack)
        path = inherited
        if SCOPE in stack:
            path = stack.rsplit(SCOPE, 1)[1].split(";")[0].replace(":", "/")
        name = eqn.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            numbers: Any = eqn.params["dimension_numbers"]
            is_dot = name == "dot_general"
            summed: Any = eqn.invars[0 if is_dot else 1].aval  # over these axes for each output
            depth = math.prod(
                summed.shape[i] for i in (numbers[0][0] if is_dot else numbers[1][1:])
            )
            out: Any = eqn.outvars[0].aval
            yield path, math.prod(out.shape) * depth
        inner = [list(_products(sub, path)) for sub in core.jaxprs_in_params(eqn.params)]
        if name == "cond" and inner:
            inner = [max(inner, key=lambda branch: sum(count for _, count in branch))]
        times = eqn.params["length"] if name == "scan" else 1
        for sub in inner:
            yield from ((place, count * times) for place, count in sub)


def _first_shape(tree: Any) -> tuple[int, ...]:
    leaves = (leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))
    return next((tuple(leaf.shape) for leaf in leaves), ())
