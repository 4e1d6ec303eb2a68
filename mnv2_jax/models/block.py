"""The inverted residual with linear bottleneck (Sec. 3.2–3.4, Table 1) and its variations.

A block is three maps: *expand* (1×1 to t times the channels), *filter* (3×3 depthwise) and
*project* (1×1 back to a thin bottleneck). Both ablations of Fig. 6 are functions handed to the
block: the activation of the bottleneck, and the wiring of the three maps that places the shortcut.
Neither changes a parameter, so the variants are directly comparable.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnv2_jax.errors import UsageError
from mnv2_jax.models.dialect import SLIM, Dialect
from mnv2_jax.models.layers import (
    PADDINGS,
    Activation,
    ConvNorm,
    Folded,
    fold_norm,
    linear,
    relu6,
)
from mnv2_jax.ops.convolution import convolution

Map = Callable[[Array], Array]
# (expand, filter, project, thin, wide, stride) -> (thin, wide). `thin` is the bottleneck; `wide`
# the expanded tensor that the next block may add to its own, or None where it must not.
Wiring = Callable[[Map, Map, Map, Array, Array | None, int], tuple[Array, Array | None]]


def between_bottlenecks(expand, filter_, project, thin, wide, stride):
    """The paper's shortcut: the block's thin input is added to its thin output (Fig. 3b, 4d)."""
    del wide
    out = project(filter_(expand(thin)))
    return (thin + out if stride == 1 and thin.shape == out.shape else out), None


def between_expansions(expand, filter_, project, thin, wide, stride):
    """The shortcut of Fig. 6b's second curve: between the expanded tensors of adjacent blocks.

    The paper does not define it further. Here the expanded tensor that enters one block's depthwise
    convolution is added to the next block's, after that one's activation, wherever resolution and
    channels agree: 10 times in the paper's network, as often as between bottlenecks.
    """
    expanded = expand(thin)
    if wide is not None and wide.shape == expanded.shape:
        expanded = wide + expanded
    return project(filter_(expanded)), expanded if stride == 1 else None


def no_shortcut(expand, filter_, project, thin, wide, stride):
    """No shortcut at all (Fig. 6b's third curve)."""
    del wide, stride
    return project(filter_(expand(thin))), None


SHORTCUTS: dict[str, Wiring] = {
    "between_bottlenecks": between_bottlenecks,
    "between_expansions": between_expansions,
    "none": no_shortcut,
}


class InvertedResidual(nn.Module):
    """The building block of MobileNetV2.

    Maps (b, h, w, c) to (b, ceil(h / stride), ceil(w / stride), channels).

    Attributes:
      channels: of the output bottleneck.
      expansion: the expansion factor t; 1 leaves the expanding convolution out.
      stride, dilation: of the depthwise convolution.
      activation: of the expanded layers.
      bottleneck: activation of the bottleneck, before the shortcut: `linear` or `relu6` (Fig. 6a).
      shortcut: the wiring of the three maps (Fig. 6b).
      split: at inference, computes the block as a sum over this many groups of expanded channels,
        so that the expanded tensor never exists as a whole (Sec. 5.1); 1 computes it at once.
      dialect, dtype, norm_axis, frozen_norm, convolve: see `ConvNorm`.
    """

    channels: int
    expansion: int = 6
    stride: int = 1
    dilation: int = 1
    activation: Activation = relu6
    bottleneck: Activation = linear
    shortcut: Wiring = between_bottlenecks
    split: int = 1
    dialect: Dialect = SLIM
    dtype: Any = jnp.float32
    norm_axis: str | None = None
    frozen_norm: bool = False
    convolve: Callable[..., Array] = convolution

    def __post_init__(self):
        super().__post_init__()
        check_split(self.split, self.shortcut)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        train: bool = False,
        mask: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b ho wo k"]:
        """Applies one block on its own."""
        return self.wire(x, None, train, mask)[0]

    @nn.compact
    def wire(
        self,
        thin: Float[Array, "b h w c"],
        wide: Float[Array, "b h w e"] | None,
        train: bool = False,
        mask: Float[Array, " b"] | None = None,
    ) -> tuple[Array, Array | None, Array | None]:
        """Applies the block in a chain of blocks.

        Args:
          thin: the bottleneck that enters.
          wide: the expanded tensor that the block before passes on, or None.
          train: whether batch statistics are used and updated.
          mask: see `ConvNorm`.

        Returns:
          The bottleneck, the expanded tensor to pass on, and the expansion that entered the
          depthwise convolution (None where it is not computed as a whole).
        """
        conv = partial(
            ConvNorm,
            dialect=self.dialect,
            dtype=self.dtype,
            norm_axis=self.norm_axis,
            frozen_norm=self.frozen_norm,
            convolve=self.convolve,
        )
        expanded = thin.shape[-1] * self.expansion
        entering = None

        def expand(x):
            if self.expansion == 1:
                return x
            return conv(expanded, activation=self.activation, name="expand")(x, train, mask)

        def filter_(x):
            nonlocal entering
            entering = x
            return conv(
                expanded,
                kernel=3,
                stride=self.stride,
                dilation=self.dilation,
                depthwise=True,
                activation=self.activation,
                name="filter",
            )(x, train, mask)

        def project(x):
            return conv(self.channels, activation=self.bottleneck, name="project")(x, train, mask)

        if self.split > 1 and self.expansion > 1 and not train and not self.is_initializing():
            maps = (linear, linear, lambda x: self.bottleneck(split_bottleneck(self, x)))
        else:
            maps = (expand, filter_, project)
        thin, wide = self.shortcut(*maps, thin, wide, self.stride)
        return thin, wide, entering


def split_bottleneck(block: InvertedResidual, x: Float[Array, "b h w c"]) -> Array:
    """Computes a bound block's three maps as a sum over groups of expanded channels (Sec. 5.1).

    Expansion and depthwise convolution act on every expanded channel alone, and the projection is
    linear in them, so F(x) = sum over g of project_g(filter_g(expand_g(x))). Of the expanded tensor
    only one group exists at a time. Batch norm is folded in, hence inference only.

    Args:
      block: an `InvertedResidual` inside `apply`, with its variables; `block.split` groups.
      x: the bottleneck that enters.

    Returns:
      The output of the projection and its batch norm, before any activation or shortcut.
    """
    params, stats = block.variables["params"], block.variables["batch_stats"]
    expand, filter_, project = (
        jax.tree.map(
            lambda leaf: leaf.astype(block.dtype),
            fold_norm(params[name], stats[name], block.dialect.bn_epsilon),
        )
        for name in ("expand", "filter", "project")
    )
    x = x.astype(block.dtype)
    channels = filter_.kernel.shape[3]
    t = min(block.split, channels)
    padding = [
        PADDINGS[block.dialect.padding](n, 3, block.stride, block.dilation) for n in x.shape[1:3]
    ]
    convolve = partial(block.convolve, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def groups(array: Array, axis: int) -> Array:
        """Cuts an axis of expanded channels into t groups, now the leading axis; zeros fill up."""
        size = -(-channels // t)
        fill = [(0, size * t - channels if i == axis else 0) for i in range(array.ndim)]
        shape = (*array.shape[:axis], t, size, *array.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(array, fill).reshape(shape), axis, 0)

    def group_output(group: tuple[Folded, Folded, Array]) -> Array:
        expand, filter_, project_kernel = group
        wide = block.activation(convolve(x, expand.kernel, (1, 1), "VALID") + expand.bias)
        wide = convolve(
            wide,
            filter_.kernel,
            (block.stride, block.stride),
            padding,
            rhs_dilation=(block.dilation, block.dilation),
            feature_group_count=wide.shape[3],
        )
        wide = block.activation(wide + filter_.bias)
        return convolve(wide, project_kernel, (1, 1), "VALID")

    stacked = (
        Folded(groups(expand.kernel, 3), groups(expand.bias, 3)),
        Folded(groups(filter_.kernel, 3), groups(filter_.bias, 3)),
        groups(project.kernel, 2),
    )
    shape = jax.eval_shape(group_output, jax.tree.map(lambda leaf: leaf[0], stacked)).shape
    total, _ = jax.lax.scan(
        lambda total, group: (total + group_output(group), None),
        jnp.broadcast_to(project.bias, shape),
        stacked,
    )
    return total


def check_split(split: int, shortcut: Wiring) -> None:
    """Refuses a split that cannot be computed.

    Raises:
      UsageError: `split` is no positive integer, or the shortcut needs the expanded tensor whole.
    """
    if isinstance(split, bool) or not isinstance(split, int) or split < 1:
        raise UsageError(f"split is {split!r}: it must be an integer of at least 1 (Sec. 5.1).")
    if split > 1 and shortcut not in (between_bottlenecks, no_shortcut):
        raise UsageError(
            f"split is {split} with a shortcut that needs the expanded tensor whole: "
            "use split=1, or the shortcut between_bottlenecks or none."
        )
