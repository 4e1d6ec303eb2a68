"""The inverted residual with linear bottleneck (Sec. 3.2–3.4, Table 1) and its variations.

Three maps (*expand*, *filter*, *project*) and their wiring are functions handed to the block. Both
ablations of Fig. 6 are among them, activation of the bottleneck and placement of the shortcut;
neither changes a parameter, so these variants are directly comparable.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnv2_jax.errors import UsageError
from mnv2_jax.models import layers
from mnv2_jax.models.layers import Activation, Images, Mask, linear, relu6
from mnv2_jax.ops.batch_norm import BatchNorm

# (expand, filter, project, thin, wide, stride) -> (thin, wide). `thin` is the bottleneck; `wide`
# the expanded tensor that the next block may add to its own, or None where it must not.
Wiring = Callable[..., tuple[Array, Array | None]]


def between_bottlenecks(expand, filter_, project, thin, wide, stride):
    """The paper's shortcut: the block's thin input is added to its thin output (Fig. 3b, 4d)."""
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
    return project(filter_(expand(thin))), None


SHORTCUTS: dict[str, Wiring] = {
    "between_bottlenecks": between_bottlenecks, "between_expansions": between_expansions,
    "none": no_shortcut,
}  # fmt: skip


class BlockInfo(NamedTuple):
    """What a map is told of its block.

    The channels are those of the bottleneck that enters, the expanded tensor, and the bottleneck
    that leaves; stride and dilation those of the depthwise convolution.
    """

    in_channels: int
    expanded: int
    channels: int
    stride: int
    dilation: int
    activation: Activation
    bottleneck: Activation
    train: bool  # whether the network is training


# (conv, x, block) -> the map of x; for conv see `mnv2_jax.models.layers.bind_conv`.
Map = Callable[[Callable[..., Array], Array, BlockInfo], Array]


def standard_expand(conv, x, block):
    """Expands to t times the channels (1×1); where t is 1 nothing is done (Sec. 3.2, Table 2)."""
    return x if block.expanded == block.in_channels else conv(x, block.expanded, name="expand")


def always_expand(conv, x, block):
    """Expands by a 1×1 convolution where t is 1 too, as PaddleClas' first block does."""
    return conv(x, block.expanded, name="expand")


def standard_filter(conv, x, block):
    """Filters every channel alone: the 3×3 depthwise convolution, which has the block's stride."""
    window = {"kernel": 3, "stride": block.stride, "dilation": block.dilation}
    return conv(x, x.shape[-1], depthwise=True, name="filter", **window)


def standard_project(conv, x, block):
    """Projects to the thin bottleneck (1×1), which is linear unless the block says otherwise."""
    return conv(x, block.channels, activation=block.bottleneck, name="project")


STANDARD = (standard_expand, standard_filter, standard_project)


class BlockSettings(layers.LayerSettings, kw_only=True):
    """What varies the blocks of a network, as keyword arguments; see `LayerSettings` for the rest.

    The activations are that of the expanded layers and that of the bottleneck, before the shortcut
    (`linear` or `relu6`, Fig. 6a). The shortcut is the wiring of the three maps (Fig. 6b), each
    `(conv, x, block) -> x`: `layers.bind_conv` says what conv is, `BlockInfo` what the block is.
    `split` is into how many groups of expanded channels inference cuts a block, so that the
    expanded tensor never exists as a whole (Sec. 5.1); 1 computes it at once. `stochastic_depth` is
    the probability with which training drops a block that has a shortcut, for each image alone, and
    divides what it keeps by the rest of 1 (Huang et al., 2016); above 0, that needs an rng named
    "dropout". Of a network it is the end of a line from 0: block i of n is dropped with i/n of it.
    """

    activation: Activation = relu6
    bottleneck: Activation = linear
    shortcut: Wiring = between_bottlenecks
    expand: Map = standard_expand
    filter: Map = standard_filter
    project: Map = standard_project
    split: int = 1
    stochastic_depth: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_split(self)
        check_stochastic_depth(self)

    @property
    def is_standard(self) -> bool:
        """Whether the three maps are the paper's."""
        return (self.expand, self.filter, self.project) == STANDARD


class InvertedResidual(BlockSettings):
    """The building block of MobileNetV2. For the other attributes see `BlockSettings`.

    Maps (b, h, w, c) to (b, ceil(h / stride), ceil(w / stride), channels). `expansion` is the
    factor t, of which 1 leaves the expanding convolution out; stride and dilation are those of the
    depthwise convolution.
    """

    channels: int
    expansion: int = 6
    stride: int = 1
    dilation: int = 1
    layers_need_train: ClassVar[bool] = True

    def __call__(
        self, x: Images, train: bool | None = None, mask: Mask = None
    ) -> Float[Array, "b ho wo k"]:
        """Applies one block on its own."""
        return self.wire(x, None, layers.given_train(self, train), mask)[0]

    @nn.compact
    def wire(
        self,
        thin: Images,
        wide: Float[Array, "b h w e"] | None,
        train: bool = False,
        mask: Mask = None,
    ) -> tuple[Array, Array | None, Array | None]:
        """Applies the block to a bottleneck, and the expanded tensor that the one before passes on.

        Returns the bottleneck, the expanded tensor to pass on, and the expansion that entered the
        depthwise convolution (None where it is not computed as a whole). Maps of one's own that
        give another shape than the block's are a UsageError.
        """
        conv = layers.bind_conv(layers.settings_of(self), self.activation, train, mask)
        channels = thin.shape[-1]
        block = BlockInfo(
            channels, channels * self.expansion, self.channels, self.stride,
            self.dilation, self.activation, self.bottleneck, train,
        )  # fmt: skip
        entering = None

        def filter_(x):
            nonlocal entering
            entering = x
            return self.filter(conv, x, block)

        if self.split > 1 and self.expansion > 1 and not train and not self.is_initializing():
            maps = (linear, linear, lambda x: self.bottleneck(split_bottleneck(self, x)))
        else:
            expand, project = self.expand, self.project
            drop = linear
            if train and self.stochastic_depth and self.stride == 1 and self.channels == channels:
                drop = nn.Dropout(self.stochastic_depth, (1, 2, 3), deterministic=False)
            maps = (
                lambda x: expand(conv, x, block), filter_, lambda x: drop(project(conv, x, block)),
            )  # fmt: skip
        expected = (*(-(-n // self.stride) for n in thin.shape[1:3]), self.channels)
        thin, wide = self.shortcut(*maps, thin, wide, self.stride)
        check_output(self.name or "the block", thin.shape[1:], expected)
        return thin, wide, entering


def split_bottleneck(block: InvertedResidual, x: Images) -> Array:
    """Computes a bound block's three maps as a sum over groups of expanded channels (Sec. 5.1).

    Expansion and depthwise convolution act on every expanded channel alone, and the projection is
    linear in them, so F(x) = sum over g of project_g(filter_g(expand_g(x))). For inference: batch
    statistics need all channels. Returns what leaves the projection's batch norm.
    """
    expanded = x.shape[-1] * block.expansion
    t, settings, variables = min(block.split, expanded), layers.settings_of(block), block.variables

    def groups(leaf: Array, axis: int) -> Array:
        """Cuts the axis of expanded channels into t groups, now the leading axis; zeros fill up."""
        fill = [(0, -leaf.shape[axis] % t if i == axis else 0) for i in range(leaf.ndim)]
        return jnp.stack(jnp.split(jnp.pad(leaf, fill), t, axis))

    def of(name: str) -> dict[str, Any]:
        return {kind: variables[kind][name] for kind in ("params", "batch_stats")}

    wide = {
        name: jax.tree.map(lambda leaf: groups(leaf, leaf.ndim - 1), of(name))
        for name in ("expand", "filter")
    }
    thin = groups(of("project")["params"]["conv"]["kernel"], 2)

    def add_group(total: Array, group: tuple[dict[str, Any], Array]) -> tuple[Array, None]:
        def conv(x: Array, features: int, *, name: str, **window: Any) -> Array:
            options = {"activation": block.activation, "parent": None, **window, **settings}
            return jnp.asarray(layers.ConvNorm(features, **options).apply(group[0][name], x))

        y = conv(x, group[1].shape[2], name="expand")
        y = standard_filter(conv, y, block)
        kernel = group[1].astype(block.dtype)
        y = block.convolve(y, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return total + y, None

    size = (-(-n // block.stride) for n in x.shape[1:3])
    zeros = jnp.zeros((x.shape[0], *size, block.channels), block.dtype)
    total, _ = jax.lax.scan(add_group, zeros, (wide, thin))
    norm = BatchNorm(True, epsilon=block.dialect.bn_epsilon, dtype=block.dtype, parent=None)
    return jnp.asarray(norm.apply({k: tree["norm"] for k, tree in of("project").items()}, total))


def check_output(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises UsageError where maps of one's own give another shape than the block's."""
    if shape != expected:
        raise UsageError(
            f"the maps of {name} give (height, width, channels) = {shape}, and the block's are "
            f"{expected}: filter has to apply block.stride, project to give block.channels."
        )


def check_split(block: BlockSettings) -> None:
    """Raises UsageError for a split that cannot be computed with these maps and this shortcut."""
    split = block.split
    if isinstance(split, bool) or not isinstance(split, int) or split < 1:
        raise UsageError(f"split is {split!r}: it must be an integer of at least 1 (Sec. 5.1).")
    if split > 1 and block.shortcut not in (between_bottlenecks, no_shortcut):
        raise UsageError(
            f"split is {split} with a shortcut that needs the expanded tensor whole: "
            "use split=1, or the shortcut between_bottlenecks or none."
        )
    if split > 1 and not block.is_standard:
        raise UsageError(
            f"split is {split} with maps other than the paper's, which it computes in another "
            "form (Sec. 5.1): use split=1."
        )


def check_stochastic_depth(block: BlockSettings) -> None:
    """Raises UsageError for a rate that is none, or that this shortcut has no use for."""
    rate = block.stochastic_depth
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise UsageError(
            f"stochastic_depth is {rate!r}: it must be a number of at least 0 and below 1."
        )
    if rate and block.shortcut is not between_bottlenecks:
        raise UsageError(
            f"stochastic_depth is {rate} with a shortcut other than between_bottlenecks, without "
            "which a dropped block leaves nothing: use stochastic_depth=0, or this shortcut."
        )
