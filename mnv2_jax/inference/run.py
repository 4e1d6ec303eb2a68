"""Prediction with batch norm folded into the convolutions: the network at its fastest on CPUs.

At inference batch norm is a fixed scale and offset, so it disappears into kernels and biases. What
remains is computed here as plain functions on plain arrays, a few images at a time. Where even
those few have an expanded tensor that no cache holds, a block is computed in bands of rows: expand,
filter and project of a few output rows, then of the next. The expanded tensor then never exists as
a whole, which is what Sec. 5.1 does by groups of channels; bands cost the rows in which neighbours
overlap, groups cost small matrix products.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnv2_jax.errors import UsageError
from mnv2_jax.models.block import between_bottlenecks, no_shortcut
from mnv2_jax.models.layers import PADDINGS, Folded, fold_norm, linear
from mnv2_jax.models.mobilenet import MobileNetV2, check_images
from mnv2_jax.models.spec import unroll

# Images at a time on a CPU: the expanded tensors of two fill the second-level cache at 224 pixels.
CHUNK = 2
# Bytes of an expanded tensor above which a block is computed in bands on a CPU.
BAND = 1 << 21
BANDED = (between_bottlenecks, no_shortcut)  # wirings that never see the expanded tensor


def fold(model: MobileNetV2, variables: Any) -> dict[str, Any]:
    """Folds every batch norm's running statistics into the convolution before it.

    Args:
      model: the network that the variables belong to; its dialect gives the epsilon.
      variables: `{"params", "batch_stats"}` of the network.

    Returns:
      The tree of parameters with a `Folded` in place of each convolution and batch norm, in the
      model's dtype, for `folded_apply`; the classifier as it was.

    Raises:
      UsageError: a map of the model's blocks is not the paper's.
    """
    if not model.is_standard:
        raise UsageError("blocks with maps of one's own are not folded: use model.apply.")

    def visit(params: Any, stats: Any) -> Any:
        if "conv" in params:
            folded = fold_norm(params, stats, model.dialect.bn_epsilon)
            return Folded(*(leaf.astype(model.dtype) for leaf in folded))
        return {name: visit(child, stats[name]) for name, child in params.items()}

    params = dict(variables["params"])
    classifier = {name: params.pop(name) for name in ("classifier",) if name in params}
    return {**visit(params, variables["batch_stats"]), **classifier}


def folded_apply(
    model: MobileNetV2,
    folded: dict[str, Any],
    images: Float[Array, "b h w c"],
    band: float | None = None,
) -> Array:
    """Computes `model.apply(variables, images)` from folded variables; call it under `jax.jit`.

    Results are those of the network in inference up to rounding, for every dialect, width, output
    stride, bottleneck and shortcut. `split` is not needed here and has no effect.

    Args:
      model: as it was given to `fold`.
      folded: the result of `fold`.
      images: in the dialect's input range.
      band: bytes of an expanded tensor above which a block is computed in bands of rows, each of at
        most so many bytes; None leaves the choice to the backend, infinity computes all at once.

    Returns:
      The logits, or the last feature map where there is no classifier.
    """
    check_images(images, model.in_channels)
    on_cpu = jax.default_backend() == "cpu"
    if band is None:
        band = BAND if on_cpu else math.inf
    network = partial(_network, model, folded, band)
    whole = images.shape[0] // CHUNK * CHUNK
    if not on_cpu or whole <= CHUNK:
        return network(images)
    chunks = images[:whole].reshape(-1, CHUNK, *images.shape[1:])
    out = lax.map(network, chunks)
    out = out.reshape(whole, *out.shape[2:])
    return out if whole == len(images) else jnp.concatenate([out, network(images[whole:])])


def _network(model: MobileNetV2, folded: dict[str, Any], band: float, images: Array) -> Array:
    layout = unroll(model.width, model.output_stride, model.spec)
    layer, activation = partial(_layer, model), model.activation
    x, wide = images.astype(model.dtype), None
    expand: Map | None = Map(folded["stem"], layout.stem_stride)
    first = layout.blocks[0]
    # A first block without expansion and shortcut takes the stem for its expansion.
    if first.expansion > 1 or first.channels in (first.in_channels, model.in_channels):
        x, expand = layer(expand, activation, x), None
    for i, block in enumerate(layout.blocks):
        parts = folded[f"block_{i}"]
        if "expand" in parts:
            expand = Map(parts["expand"])
        filter_ = Map(parts["filter"], block.stride, block.dilation)
        project = Map(parts["project"])
        if expand is not None and model.shortcut in BANDED and (n := _bands(x, expand, band)) > 1:
            maps = (linear, linear, partial(_in_bands, model, expand, filter_, project, n))
        else:
            maps = (
                linear if expand is None else partial(layer, expand, activation),
                partial(layer, filter_, activation),
                partial(layer, project, model.bottleneck),
            )
        x, wide = model.shortcut(*maps, x, wide, block.stride)
        expand = None
    if layout.last is not None:
        x = layer(Map(folded["last"]), activation, x)
    if model.num_classes is None:
        return x
    classifier = folded["classifier"]
    pooled = x.astype(jnp.float32).mean(axis=(1, 2))
    return pooled @ classifier["kernel"] + classifier["bias"][None]


class Map(NamedTuple):
    """A folded convolution and how its kernel moves."""

    weights: Folded
    stride: int = 1
    dilation: int = 1

    @property
    def reach(self) -> int:
        """Input rows that one output row is computed from."""
        return self.dilation * (self.weights.kernel.shape[0] - 1) + 1


def _layer(
    model: MobileNetV2,
    map_: Map,
    activation: Any,
    x: Float[Array, "b h w c"],
    rows_are_padded: bool = False,
) -> Float[Array, "b ho wo f"]:
    kernel, bias = map_.weights
    padding = [
        PADDINGS[model.dialect.padding](n, kernel.shape[0], map_.stride, map_.dilation)
        for n in x.shape[1:3]
    ]
    if rows_are_padded:
        padding[0] = (0, 0)
    y = model.convolve(
        x,
        kernel,
        (map_.stride, map_.stride),
        padding,
        rhs_dilation=(map_.dilation, map_.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3] // kernel.shape[2],
    )
    return activation(y + bias)


def _bands(x: Array, expand: Map, band: float) -> int:
    """Into how many bands a block is cut, whose expanded tensor comes from `x`."""
    rows, columns = (-(-n // expand.stride) for n in x.shape[1:3])
    channels = expand.weights.kernel.shape[3]
    size = x.shape[0] * rows * columns * channels * expand.weights.kernel.dtype.itemsize
    return min(rows, math.ceil(size / band))


def _in_bands(
    model: MobileNetV2,
    expand: Map,
    filter_: Map,
    project: Map,
    bands: int,
    x: Float[Array, "b h w c"],
) -> Float[Array, "b ho wo f"]:
    """Computes project(filter(expand(x))) in at least so many bands of output rows."""
    pad = PADDINGS[model.dialect.padding]
    wide_rows = -(-x.shape[1] // expand.stride)
    out_rows = -(-wide_rows // filter_.stride)
    bands = min(bands, out_rows)
    # Of the next few numbers of bands, the one that leaves the fewest rows over.
    bands = min(range(bands, min(2 * bands, out_rows) + 1), key=lambda n: -(-out_rows // n) * n)
    rows = -(-out_rows // bands)
    # Of each band: rows of the expanded tensor, and of x.
    wide, wide_step = (rows - 1) * filter_.stride + filter_.reach, rows * filter_.stride
    read, read_step = (wide - 1) * expand.stride + expand.reach, wide_step * expand.stride
    above = pad(wide_rows, filter_.weights.kernel.shape[0], filter_.stride, filter_.dilation)[0]
    top = above * expand.stride + pad(x.shape[1], expand.reach, expand.stride, 1)[0]
    below = max(0, (bands - 1) * read_step + read - top - x.shape[1])
    source = jnp.pad(x, ((0, 0), (top, below), (0, 0), (0, 0)))
    layer = partial(_layer, model, rows_are_padded=True)

    def band(_: None, i: Array) -> tuple[None, Array]:
        y = lax.dynamic_slice_in_dim(source, i * read_step, read, axis=1)
        y = layer(expand, model.activation, y)
        # The filter's padding is zero behind the activation, not what a row of zeros expands to.
        row = i * wide_step - above + jnp.arange(wide)
        y = jnp.where(((row >= 0) & (row < wide_rows)).reshape(1, -1, 1, 1), y, 0)
        y = layer(filter_, model.activation, y)
        return None, layer(project, model.bottleneck, y)

    _, out = lax.scan(band, None, jnp.arange(bands))  # (bands, b, rows, w, c)
    out = jnp.moveaxis(out, 0, 1).reshape(x.shape[0], bands * rows, *out.shape[3:])
    return out[:, :out_rows]
