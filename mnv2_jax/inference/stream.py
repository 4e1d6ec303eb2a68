"""Memory-efficient inference (Sec. 5.1) across blocks: rows of images stream through the network.

The paper computes the expanded tensor of one block in groups of channels. What then takes most
memory is whole tensors of the early blocks. Here a run of nodes computes a few rows of its last
output at a time: every node takes the rows that have come since the step before, and of each value
only the last rows are kept, those that a kernel still reaches. So no row is computed twice; what
is lost is a few steps at the top, which fill the network before the first row comes out.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from mnv2_jax.errors import UsageError
from mnv2_jax.inference.operations import BINARY, IMAGES, UNARY, Graph, Node, compute

ROWS = (1, 2, 4, 8, 16, 32, 64)  # of a group's output, in a step
# What a node of a step costs besides its multiply-adds, in these: that of a small kernel's call.
OVERHEAD = 200_000


class Group(NamedTuple):
    """Nodes `first` to `last` of a graph, which compute `rows` rows of the last one at a time."""

    first: int
    last: int
    rows: int


class Flow(NamedTuple):
    """How the values of a group come in: rows, of each value by its name."""

    new: dict[str, int]  # that are computed in a step
    lead: dict[str, int]  # that come before the rows of the output that need them
    kept: Counter[str]  # that the next step needs again
    fill: int  # steps before the first row of the output
    steps: int  # steps after them


def streamed(graph: Graph, groups: Sequence[Group]) -> Graph:
    """Returns the graph with each group as one node, which computes it in steps."""
    made, at = [], 0
    for group in groups:
        part = graph.nodes[group.first : group.last + 1]
        whole = partial(_compute_in_steps, part, flow(part, group.rows))
        node = Node("rows", part[-1].name, part[0].inputs[:1], part[-1].shape, compute=whole)
        made += [*graph.nodes[at : group.first], node]
        at = group.last + 1
    return graph._replace(nodes=(*made, *graph.nodes[at:]))


def flow(nodes: Sequence[Node], rows: int) -> Flow:
    """Works back from `rows` rows of the last node's output to those of every other value."""
    out = nodes[-1]
    new, lead = {out.name: rows}, {out.name: 0}
    for node in reversed(nodes):
        stride, above, reach = _window(node)
        for name in node.inputs:
            new[name] = new[node.name] * stride
            first = (lead[node.name] - 1) * stride - above + reach
            lead[name] = max(lead.get(name, first), first)
    kept: Counter[str] = Counter()
    for node in nodes:
        stride, above, _ = _window(node)
        for name in node.inputs:
            kept[name] = max(kept[name], lead[name] - (lead[node.name] * stride - above))
    fill = max(0, *(math.ceil(lead[node.name] / new[node.name]) for node in nodes))
    return Flow(new, lead, kept, fill, math.ceil(out.shape[1] / rows))


def _window(node: Node) -> tuple[int, int, int]:
    """Returns stride, padding above, and the input rows that one output row is computed from."""
    if node.op != "conv":
        return 1, 0, 1
    return node.stride, node.padding[0][0], node.dilation * (node.kernel.shape[0] - 1) + 1


def _compute_in_steps(
    nodes: Sequence[Node], flow: Flow, node: Node, x: Float[Array, "b h w c"]
) -> Float[Array, "b ho wo f"]:
    """Computes a group, which is one node now."""
    source, out = nodes[0].inputs[0], nodes[-1].name
    height = {node.name: node.shape[1] for node in nodes} | {source: x.shape[1]}
    read_by_kernels = {node.inputs[0] for node in nodes if _window(node)[2] > 1}

    def inside(name: str, rows: Array, value: Array) -> Array:
        """Makes what lies beyond the image zero, as padding is, where a kernel reads it."""
        if name not in read_by_kernels:
            return value
        there = (rows >= 0) & (rows < height[name])
        return jnp.where(there.reshape(1, -1, 1, 1), value, 0)

    def step(kept: dict[str, Array], i: Array) -> tuple[dict[str, Array], Array]:
        first = i * flow.new[source] + flow.lead[source] - flow.kept[source]
        rows = first + jnp.arange(flow.new[source] + flow.kept[source])
        given = jnp.take(x, jnp.clip(rows, 0, x.shape[1] - 1), axis=1)
        values, following = {source: inside(source, rows, given)}, {}
        for node in nodes:
            stride, above, reach = _window(node)
            read, size = [], (flow.new[node.name] - 1) * stride + reach
            for name in node.inputs:
                begin = flow.lead[node.name] * stride - above - flow.lead[name] + flow.kept[name]
                read.append(lax.slice_in_dim(values[name], begin, begin + size, axis=1))
            value = compute(node._replace(padding=((0, 0), *node.padding[1:])), *read)
            rows = i * flow.new[node.name] + flow.lead[node.name] + jnp.arange(value.shape[1])
            value = inside(node.name, rows, value)
            if node.name in kept:
                value = jnp.concatenate([kept[node.name], value], axis=1)
                following[node.name] = value[:, -flow.kept[node.name] :]
            values[node.name] = value
        return following, values[out]

    empty = {
        node.name: jnp.zeros((x.shape[0], flow.kept[node.name], *node.shape[2:]), x.dtype)
        for node in nodes
        if flow.kept[node.name]
    }
    _, found = lax.scan(step, empty, jnp.arange(-flow.fill, flow.steps))
    found = jnp.moveaxis(found[flow.fill :], 0, 1)  # (b, steps, rows, w, c)
    return found.reshape(x.shape[0], -1, *found.shape[3:])[:, : height[out]]


def schedule(graph: Graph, memory: float, batch: int = 1, itemsize: int = 4) -> list[Group]:
    """Chooses the first blocks that are computed in rows, for temporaries of at most so many bytes.

    Of what fits, by the estimate of `cost`, it takes what has the least work: an empty list where
    nothing needs to be cut. `UsageError` if nothing fits.
    """
    choices: list[list[Group]] = [[]]
    for end, rows in itertools.product(block_ends(graph), ROWS):
        if rows <= max(1, graph.nodes[end].shape[1] // 2):
            choices.append([Group(0, end, rows)])
    costs = [cost(graph, groups, batch, itemsize) for groups in choices]
    fitting = [(work, k) for k, (bytes_, work) in enumerate(costs) if bytes_ <= memory]
    if not fitting:
        least = min(bytes_ for bytes_, _ in costs)
        raise UsageError(
            f"memory is {memory / 1e6:g} MB, and {batch} image(s) of {graph.input_shape[1]}×"
            f"{graph.input_shape[2]} take {math.ceil(least / 1e3) / 1e3:g} MB at least: give that."
        )
    return choices[min(fitting)[1]]


def block_ends(graph: Graph) -> list[int]:
    """Lists the nodes that end a block: nothing else is read after them, and the next is larger."""
    left, live, found = graph.uses(), {IMAGES}, []
    sizes = [math.prod(node.shape) for node in graph.nodes]
    for k, node in enumerate(graph.nodes[:-1]):
        if not _can_stream(node):
            break
        left.subtract(node.inputs)
        live = {name for name in (*live, node.name) if left[name]}
        if live == {node.name} and sizes[k] < sizes[k + 1]:
            found.append(k)
    return found


def _can_stream(node: Node) -> bool:
    """Whether a node computes each row of its output from rows of its inputs alone."""
    return node.op in ("conv", "clip", *UNARY) or (node.op in BINARY and len(node.inputs) == 2)


def cost(
    graph: Graph, groups: Sequence[Group], batch: int = 1, itemsize: int = 4
) -> tuple[int, float]:
    """Estimates a schedule: bytes of its temporaries, and its work in multiply-adds."""
    sizes = {node.name: math.prod(node.shape[1:]) for node in graph.nodes}
    firsts = {group.first: group for group in groups}
    left, live, peak, work, k = graph.uses(), set(), 0, 0.0, 0
    while k < len(graph.nodes):
        group = firsts.get(k, Group(k, k, 0))
        part = graph.nodes[k : group.last + 1]
        if group.rows:
            moving = flow(part, group.rows)
            inner, share = _bytes_of_a_step(part, moving), (moving.fill + moving.steps)
            work += share * OVERHEAD * len(part)
            work += sum(_madds(node) for node in part) * share / moving.steps
            inner += 2 * sizes[part[-1].name]
        else:
            (node,) = part
            padded, own = _padded(node, None), sizes[node.name]
            # Once it is padded, an input that nothing else reads gives way to the output.
            read = sizes.get(node.inputs[0], 0) if left[node.inputs[0]] == 1 else 0
            inner = padded + max(own - min(own, read if padded else 0), 0)
            work += _madds(node) + OVERHEAD
        peak = max(peak, inner + sum(sizes[name] for name in live))
        for node in part:
            left.subtract(node.inputs)
        live = {name for name in (*live, part[-1].name) if left[name]}
        k = group.last + 1
    return peak * batch * itemsize, work


def _padded(node: Node, rows: int | None) -> int:
    """Counts the input of a kernel that is copied with its padding."""
    if node.op != "conv" or node.kernel.shape[0] == 1:
        return 0
    (above, below), (before, after) = node.padding
    height = (node.shape[1] * node.stride + above + below) if rows is None else rows
    width = node.shape[2] * node.stride + before + after
    return height * width * node.kernel.shape[2] * node.groups


def _bytes_of_a_step(nodes: Sequence[Node], flow: Flow) -> int:
    """Counts what is there at once in a step: what is kept, and the values at the widest node."""
    width = {node.name: math.prod(node.shape[2:]) for node in nodes}
    kept = sum(flow.kept[node.name] * width[node.name] for node in nodes)
    widest = 0
    for node in nodes:
        stride, _, reach = _window(node)
        read = (flow.new[node.name] - 1) * stride + reach
        inputs = sum((flow.new[n] + flow.kept[n]) * width.get(n, 0) for n in node.inputs)
        own, padded = flow.new[node.name] * width[node.name], _padded(node, read)
        widest = max(widest, padded + (max(inputs, own) if padded else inputs + own))
    return kept + widest


def _madds(node: Node) -> int:
    if node.op == "conv":
        return math.prod(node.shape[1:]) * math.prod(np.shape(node.kernel)[:3])
    return math.prod(node.shape[1:]) if node.op != "dense" else math.prod(np.shape(node.kernel))
