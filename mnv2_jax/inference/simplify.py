"""A graph with fewer operations that computes the same: batch norm folded, bounds fused.

Every rule looks at one node and at what it reads. A rule that applies changes the nodes made so
far, and returns the name of the value that takes the node's place.
"""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
from jax import core

from mnv2_jax.inference.operations import WEIGHTED, Graph, Node, only

Made = dict[str, Node]
Rule = Callable[[Node, Made, Counter[str]], str | None]


def simplified(graph: Graph) -> Graph:
    """Returns the graph with all rules applied, and without what no output needs."""
    made: Made = {}
    places: dict[str, str] = {}
    uses = graph.uses()
    for node in graph.nodes:
        node = node._replace(inputs=tuple(places.get(name, name) for name in node.inputs))
        place = next((p for rule in RULES if (p := rule(node, made, uses))), None)
        if place is None:
            made[node.name] = node
        else:
            places[node.name] = place
            uses[place] = uses[node.name]
    outputs = tuple(places.get(name, name) for name in graph.outputs)
    needed = set(outputs)
    for node in reversed(made.values()):
        if node.name in needed:
            needed |= set(node.inputs)
    return graph._replace(
        nodes=tuple(n for n in made.values() if n.name in needed), outputs=outputs
    )


def _into_weights(node: Node, made: Made, uses: Counter[str]) -> str | None:
    """A factor or an offset of channels goes into the kernel and the bias: batch norm is both."""
    if node.op not in ("add", "mul") or len(node.inputs) != 1:
        return None
    before = only(node.inputs[0], made, uses, *WEIGHTED)
    if before is None or before.clip is not None or math.prod(node.kernel.shape[:-1]) != 1:
        return None
    value = node.kernel.reshape(-1)
    kernel, bias = before.kernel, before.bias
    channels = value.reshape((1,) * (kernel.ndim - 1) + (-1,))
    made[before.name] = (
        before._replace(bias=bias + value)
        if node.op == "add"
        else before._replace(kernel=kernel * channels, bias=bias * value)
    )
    return before.name


def _into_bounds(node: Node, made: Made, uses: Counter[str]) -> str | None:
    """A bound goes into the operation that it bounds: min(max(x, 0), 6) is a ReLU6."""
    if node.op != "clip" or node.clip is None:
        return None
    before = only(node.inputs[0], made, uses, *WEIGHTED, "add", "mul", "clip")
    if before is None:
        return None
    low, high = (float(np.clip(end, *node.clip)) for end in before.clip or (-np.inf, np.inf))
    made[before.name] = before._replace(clip=(low, high))
    return before.name


def _to_mean(node: Node, made: Made, uses: Counter[str]) -> str | None:
    """A sum over all pixels that is divided by their number is a mean."""
    factor = _scalar(node, "mul")
    if factor is None:
        return None
    name = node.inputs[0]
    while (reshape := only(name, made, uses, "reshape")) is not None:
        name = reshape.inputs[0]
    total = only(name, made, uses, "sum")
    if total is None or not math.isclose(factor * total.kernel, 1, rel_tol=1e-6):
        return None
    made[name] = total._replace(op="mean", kernel=None)
    return node.inputs[0]


def _to_hard_swish(node: Node, made: Made, uses: Counter[str]) -> str | None:
    """Finds x · clip(x + 3, 0, 6) / 6, in whatever order it is multiplied."""
    if node.op != "mul" or node.clip is not None:
        return None
    factors, number, left = [], 1.0, [node]
    while left:
        product = left.pop()
        if len(product.inputs) == 1:
            factor = _scalar(product, "mul")
            if factor is None:
                return None
            number *= factor
        for name in product.inputs:
            inner = only(name, made, uses, "mul")
            if inner is not None and inner.clip is None:
                left.append(inner)
            else:
                factors.append(name)
    gates = [name for name in factors if only(name, made, uses, "add")]
    if len(factors) != 2 or len(gates) != 1 or not math.isclose(number, 1 / 6, rel_tol=1e-6):
        return None
    gate = made[gates[0]]
    x = factors[1 - factors.index(gate.name)]
    if gate.inputs != (x,) or _scalar(gate, "add") != 3 or gate.clip != (0.0, 6.0):
        return None
    made[node.name] = node._replace(op="hard_swish", inputs=(x,), kernel=None)
    return node.name


def _scalar(node: Node, op: str) -> float | None:
    """The number that a node adds or multiplies by, or None."""
    value = node.kernel
    if node.op != op or len(node.inputs) != 1 or isinstance(value, core.Tracer):
        return None
    return float(np.ravel(value)[0]) if np.size(value) == 1 else None


RULES: tuple[Rule, ...] = (_to_mean, _into_weights, _to_hard_swish, _into_bounds)
