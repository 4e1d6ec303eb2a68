"""Prediction with batch norm folded into the convolutions: a network at its fastest on CPUs.

At inference batch norm is a fixed scale and offset, so it disappears into kernels and biases. What
remains is a `Graph`, computed a few images at a time. Where even those few have an expanded tensor
that no cache holds, a block is computed in bands of rows: expand, filter and project of a few
output rows, then of the next. The expanded tensor then never exists as a whole, which is what
Sec. 5.1 does by groups of channels; bands cost the rows in which neighbors overlap, groups cost
small matrix products. `stream` takes rows through many blocks, for the least memory. On GPUs and
TPUs nodes are computed in forms that pay because nothing is differentiated (`operations.FORMS`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnv2_jax.inference import operations
from mnv2_jax.inference.graph import option, structure
from mnv2_jax.inference.operations import (
    MAX_GROUP,
    UNARY,
    Folded,
    Graph,
    Node,
    clipped,
    compute,
    only,
    run,
)
from mnv2_jax.inference.stream import schedule, streamed
from mnv2_jax.models.mobilenet import check_images
from mnv2_jax.ops.convolution import convolution
from mnv2_jax.ops.platform import platform

# Images at a time on a CPU: the expanded tensors of two fill the second-level cache at 224 pixels.
CHUNK = 2
# Bytes of an expanded tensor above which a block is computed in bands on a CPU.
BAND = 1 << 21


def fold(model: Any, variables: Any, size: tuple[int, int] = (224, 224)) -> dict[str, Folded]:
    """Folds every batch norm's running statistics into the convolution before it.

    Args:
      model: a `MobileNetV2`, `SSDLite`, `DeepLabV3` or another module of images.
      variables: its `{"params", "batch_stats"}`.
      size: height and width of any images that the network can take.

    Returns:
      What `folded_apply` computes with, by the names of the graph's nodes: kernels and biases of
      convolutions in the model's dtype, of the classifier in float32.
    """
    dtype = option(model, "dtype", jnp.float32)
    graph, folded = structure(model, variables, size, lambda f, v: jax.jit(f)(v))
    convolutions = {node.name for node in graph.nodes if node.op == "conv"} & folded.keys()
    return folded | {
        name: Folded(*(leaf.astype(dtype) for leaf in folded[name])) for name in convolutions
    }


def folded_apply(
    model: Any,
    folded: dict[str, Folded],
    images: Float[Array, "b h w c"],
    band: float | None = None,
    memory: float | None = None,
) -> Any:
    """Computes `model.apply(variables, images)` from folded variables; call it under `jax.jit`.

    Results are those of the network in inference up to rounding. `split` has no effect here.

    Args:
      model, folded: as they were given to `fold`, and its result.
      images: in the dialect's input range.
      band: bytes of an expanded tensor above which a block is computed in bands of rows, each of at
        most so many bytes; None leaves the choice to the platform, infinity computes all at once.
      memory: bytes that temporaries may take, by the estimate of `stream.cost`, for one image at a
        time on a CPU, else for the batch; the first blocks are then computed in rows, and `band` is
        not looked at. A UsageError names the least.
    """
    check_images(images, option(model, "in_channels", 3))
    on_cpu = platform() == "cpu"
    if band is None:
        band = BAND if on_cpu else math.inf
    dtype = option(model, "dtype", jnp.float32)
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    results, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), one)
    tree = jax.tree.structure(results)
    size = (images.shape[1], images.shape[2])
    graph = operations.with_weights(structure(model, variables, size)[0], folded)
    convolve = option(model, "convolve", convolution)

    def network(images: Array) -> Any:
        if memory is None:
            whole = in_groups(graph) if platform() == "tpu" and convolve is convolution else graph
            cut = in_bands(whole, len(images), band, dtype)
        else:
            cut = streamed(graph, schedule(graph, memory, len(images), jnp.dtype(dtype).itemsize))
        outputs = run(cut, images, convolve=convolve)
        found = jax.tree.unflatten(tree, outputs)
        return jax.tree.map(lambda x, y: x.astype(y.dtype), found, results)

    chunk = CHUNK if memory is None else 1
    whole = images.shape[0] // chunk * chunk
    if not on_cpu or whole <= chunk:
        return network(images)
    chunks = images[:whole].reshape(-1, chunk, *images.shape[1:])
    out = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), lax.map(network, chunks))
    if whole == len(images):
        return out
    return jax.tree.map(lambda *x: jnp.concatenate(x), out, network(images[whole:]))


def in_bands(graph: Graph, batch: int, band: float, dtype: Any = jnp.float32) -> Graph:
    """Returns the graph with each block whose expanded tensor is too large as one node.

    A block is a convolution, a depthwise one and a pointwise one, with nothing but activations in
    between, and with inner tensors that nothing else reads. Allowed are `band` bytes for `batch`
    images at once in `dtype`.
    """

    def banded(chain: list[Node]) -> Callable[..., Array] | None:
        size = batch * math.prod(chain[0].shape) * jnp.dtype(dtype).itemsize
        bands = min(chain[0].shape[1], math.ceil(size / band))
        return partial(_compute_bands, chain, bands) if bands > 1 else None

    return _with_blocks(graph, banded)


def _with_blocks(graph: Graph, form: Callable[[list[Node]], Callable[..., Array] | None]) -> Graph:
    """Returns the graph with each block for which there is another form as one node."""
    made, uses = {}, graph.uses()
    for node in graph.nodes:
        made[node.name] = node
        chain = _block(node, made, uses)
        compute = form(chain) if chain else None
        if compute is not None:
            for inner in chain:
                del made[inner.name]
            made[node.name] = Node("block", node.name, chain[0].inputs, node.shape, compute=compute)
    return graph._replace(nodes=tuple(made.values()))


def in_groups(graph: Graph) -> Graph:
    """Returns the graph with blocks of few expanded channels as sums over two groups (Sec. 5.1).

    A TPU filters so few on its matrix units.
    """

    def grouped(chain: list[Node]) -> Callable[..., Array] | None:
        channels = chain[0].shape[3]
        few = MAX_GROUP < channels <= 2 * MAX_GROUP and channels % 2 == 0
        return partial(_compute_groups, chain) if few else None

    return _with_blocks(graph, grouped)


def _compute_groups(
    chain: list[Node], node: Node, x: Float[Array, "b h w c"]
) -> Float[Array, "b ho wo f"]:
    size, sums = chain[0].shape[3] // 2, []
    for part in (slice(size), slice(size, None)):
        y = x
        for inner in chain[:-1]:
            if inner.op == "conv":
                inner = inner._replace(
                    kernel=inner.kernel[..., part], bias=inner.bias[part],
                    groups=min(inner.groups, size),
                )  # fmt: skip
            y = compute(inner, y)
        kernel, bias = chain[-1].kernel[:, :, part], chain[-1].bias
        bias = bias if not sums else jnp.zeros_like(bias)
        sums.append(compute(chain[-1]._replace(kernel=kernel, bias=bias, clip=None), y))
    return clipped(chain[-1], sums[0] + sums[1])


def _block(project: Node, made: dict[str, Node], uses: Any) -> list[Node]:
    """Returns the nodes of the block that ends here, from expansion to projection, or none."""
    plain = (project.stride, project.groups, project.padding) == (1, 1, ((0, 0), (0, 0)))
    if project.op != "conv" or project.kernel.shape[:2] != (1, 1) or not plain:
        return []
    chain = [project]
    while len(convolutions := [n for n in chain if n.op == "conv"]) < 3:
        before = only(chain[0].inputs[0], made, uses, "conv", "clip", *UNARY)
        if before is None:
            return []
        depthwise = before.groups == before.shape[3] > 1
        wanted = depthwise if len(convolutions) == 1 else before.groups == 1
        if before.op == "conv" and not wanted:
            return []
        chain.insert(0, before)
    return chain


def _reach(node: Node) -> int:
    """Input rows that one output row of a convolution is computed from."""
    return node.dilation * (node.kernel.shape[0] - 1) + 1


def _compute_bands(
    chain: list[Node], bands: int, node: Node, x: Float[Array, "b h w c"]
) -> Float[Array, "b ho wo f"]:
    """Computes a block, which is one node now, in at least so many bands of output rows."""
    expand, filter_ = [node for node in chain if node.op == "conv"][:2]
    wide_rows, out_rows = expand.shape[1], chain[-1].shape[1]
    bands = min(bands, out_rows)
    # Of the next few numbers of bands, the one that leaves the fewest rows over.
    bands = min(range(bands, min(2 * bands, out_rows) + 1), key=lambda n: -(-out_rows // n) * n)
    rows = -(-out_rows // bands)
    # Of each band: rows of the expanded tensor, and of x.
    wide, wide_step = (rows - 1) * filter_.stride + _reach(filter_), rows * filter_.stride
    read, read_step = (wide - 1) * expand.stride + _reach(expand), wide_step * expand.stride
    above = filter_.padding[0][0]
    top = above * expand.stride + expand.padding[0][0]
    below = max(0, (bands - 1) * read_step + read - top - x.shape[1])
    source = jnp.pad(x, ((0, 0), (top, below), (0, 0), (0, 0)))

    def band(carry: None, i: Array) -> tuple[None, Array]:
        y = lax.dynamic_slice_in_dim(source, i * read_step, read, axis=1)
        for node in chain:
            if node is filter_:
                # Its padding is zero behind the activation, not what a row of zeros expands to.
                row = i * wide_step - above + jnp.arange(wide)
                y = jnp.where(((row >= 0) & (row < wide_rows)).reshape(1, -1, 1, 1), y, 0)
            y = compute(node._replace(padding=((0, 0), node.padding[1])), y)
        return carry, y

    _, out = lax.scan(band, None, jnp.arange(bands))  # (bands, b, rows, w, c)
    out = jnp.moveaxis(out, 0, 1).reshape(x.shape[0], bands * rows, *out.shape[3:])
    return out[:, :out_rows]
