"""The architecture as data: Table 2, the width multiplier and the output stride.

A `Spec` says what Table 2 says; `unroll` makes of it the blocks of a network.
"""

import itertools
import math
import operator
from typing import NamedTuple

from mnv2_jax.errors import UsageError


class Row(NamedTuple):
    """A line of Table 2: `n` bottleneck blocks of `c` channels, expansion `t`, first stride `s`."""

    t: int
    c: int
    n: int
    s: int


class Spec(NamedTuple):
    """A MobileNetV2-shaped architecture at width 1, before it is unrolled.

    `stem` and `stem_stride` are channels and stride of the first full 3×3 convolution, `rows` the
    bottlenecks of Table 2. `last` are the channels of the final 1×1 convolution; None leaves it out
    (Sec. 6.3). Every channel count is rounded to a multiple of `divisor`. Which blocks an output
    stride dilates, `dilates_first` says: see `unroll`.
    """

    stem: int
    stem_stride: int
    rows: tuple[Row, ...]
    last: int | None
    divisor: int = 8
    dilates_first: bool = False


class Block(NamedTuple):
    """One inverted residual of the unrolled network."""

    in_channels: int
    channels: int
    expansion: int
    stride: int
    dilation: int

    @property
    def expanded(self) -> int:
        """Channels between the expansion and the projection."""
        return self.in_channels * self.expansion


class Layout(NamedTuple):
    """An unrolled network: what is built, in order."""

    stem: int
    stem_stride: int
    blocks: tuple[Block, ...]
    last: int | None

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image for one of the stem's output, then of every block's."""
        steps = (self.stem_stride, *(block.stride for block in self.blocks))
        return tuple(itertools.accumulate(steps, operator.mul))

    @property
    def stages(self) -> dict[int, tuple[str, int]]:
        """By stride, (endpoint, channels) of the last bottleneck of that stride.

        >>> {stride: channels for stride, (_, channels) in unroll().stages.items()}
        {2: 16, 4: 24, 8: 32, 16: 96, 32: 320}
        >>> unroll().stages[16]
        ('block_12', 96)
        """
        blocks = [(f"block_{i}", block.channels) for i, block in enumerate(self.blocks)]
        return dict(zip(self.strides, [("stem", self.stem), *blocks], strict=True))


TABLE_2 = (
    Row(t=1, c=16, n=1, s=1), Row(6, 24, 2, 2), Row(6, 32, 3, 2), Row(6, 64, 4, 2),
    Row(6, 96, 3, 1), Row(6, 160, 3, 2), Row(6, 320, 1, 1),
)  # fmt: skip


def with_expansion(spec: Spec, t: int) -> Spec:
    """Returns `spec` with expansion `t` in every row that expands at all (t > 1 in Table 2)."""
    if not isinstance(t, int) or t < 1:
        raise UsageError(f"expansion is {t!r}: it must be an integer of at least 1.")
    return spec._replace(rows=tuple(row._replace(t=t) if row.t > 1 else row for row in spec.rows))


IMAGENET = Spec(stem=32, stem_stride=2, rows=TABLE_2, last=1280)
"""The network of the paper, total stride 32, for images of 96 to 224 pixels and larger."""

SMALL_32 = IMAGENET._replace(
    stem_stride=1,
    rows=tuple(row._replace(s=s) for row, s in zip(TABLE_2, (1, 1, 2, 2, 1, 2, 1), strict=True)),
)
"""The same blocks with total stride 8, for images of about 32×32."""

TINY_8 = Spec(
    8, 1, (Row(1, 4, 1, 1), Row(6, 4, 2, 1), Row(6, 6, 3, 2), Row(6, 8, 2, 2)), last=64, divisor=2
)
"""Eight blocks with total stride 4, for 8×8 digits: so thin that a minute shows what they lose."""

SMALL_96 = Spec(
    16, 2, (Row(1, 16, 1, 1), Row(4, 24, 2, 2), Row(4, 48, 3, 2), Row(4, 96, 2, 2)), last=256
)
"""Eight blocks with total stride 16, for 96×96 pictures of small objects: wide early layers."""

TIMM_110D = IMAGENET._replace(
    rows=(
        Row(1, 16, 1, 1), Row(6, 24, 3, 2), Row(6, 32, 4, 2), Row(6, 72, 5, 2),
        Row(6, 104, 4, 1), Row(6, 176, 4, 2), Row(6, 352, 1, 1),
    ),
    divisor=1,
)  # fmt: skip
"""timm's `mobilenetv2_110d`: 1.1 times as wide, 1.2 times as deep; same stem and last layer."""

TIMM_120D = TIMM_110D._replace(
    rows=(
        Row(1, 24, 1, 1), Row(6, 32, 3, 2), Row(6, 40, 5, 2), Row(6, 80, 6, 2),
        Row(6, 112, 5, 1), Row(6, 192, 5, 2), Row(6, 384, 1, 1),
    )
)  # fmt: skip
"""timm's `mobilenetv2_120d`: 1.2 times as wide and 1.4 times as deep."""

PADDLE = IMAGENET._replace(divisor=1)
"""PaddleClas' network, which does not round channels: the first bottleneck at width 0.25 has 4."""

MMSEG = IMAGENET._replace(last=None, dilates_first=True)
"""The backbone of mmsegmentation's segmenters, which ends with the 320 channels."""

SPECS = {
    "imagenet": IMAGENET, "small_32": SMALL_32, "tiny_8": TINY_8, "small_96": SMALL_96,
    "timm_110d": TIMM_110D, "timm_120d": TIMM_120D, "paddle": PADDLE, "mmseg": MMSEG,
}  # fmt: skip


def make_divisible(value: float, divisor: int = 8) -> int:
    """Rounds a channel count half up to a multiple of `divisor`, or up where a tenth would be lost.

    The rule of the authors' released code; never below `divisor`.

    >>> [make_divisible(c * 0.35) for c in (32, 16, 24, 32, 64, 96, 160, 320)]
    [16, 8, 8, 16, 24, 32, 56, 112]
    >>> make_divisible(1280 * 1.3)
    1664
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def unroll(width: float = 1.0, output_stride: int | None = None, spec: Spec = IMAGENET) -> Layout:
    """Unrolls a spec into the blocks of a network.

    The width multiplier of Sec. 4 is any number above 0; the last convolution does not shrink below
    width 1. `output_stride` is the ratio of input to final resolution: once the strides so far are
    that, later strides become 1 and the blocks *after* such a block take its stride as dilation
    (Sec. 6.3, as the authors released it); None leaves every stride as it is. A spec that
    `dilates_first` dilates the first block of every row alone, by its own stride too. The paper's
    network has 17 blocks: Table 2 is right, and the "19" of the text is not.

    Raises:
      UsageError: `width` is not above 0, or `output_stride` is none that `spec` can have.

    >>> unroll(0.35).blocks[1]
    Block(in_channels=8, channels=8, expansion=6, stride=2, dilation=1)
    >>> [(b.stride, b.dilation) for b in unroll(output_stride=16).blocks[12:]]
    [(1, 1), (1, 1), (1, 2), (1, 2), (1, 2)]
    """
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width < math.inf:
        raise UsageError(
            f"width is {width!r}: it must be a number above 0 (the paper's are 0.35 to 1.4)."
        )
    strides = (spec.stem_stride, *(row.s for row in spec.rows))
    choices = sorted(set(itertools.accumulate(strides, operator.mul)))
    if output_stride is not None and output_stride not in choices:
        listed = ", ".join(map(str, choices))
        raise UsageError(
            f"output_stride is {output_stride!r}: this architecture can have {listed}."
        )

    def scale(channels: int) -> int:
        return make_divisible(channels * width, spec.divisor)

    in_channels = stem = scale(spec.stem)
    reached, dilation = spec.stem_stride, 1
    blocks = []
    for row in spec.rows:
        for i, stride in enumerate((row.s, *[1] * (row.n - 1))):
            full = output_stride is not None and reached >= output_stride
            step, rate = (1, stride) if full else (stride, 1)
            own = dilation if not spec.dilates_first else 1 if i else dilation * rate
            blocks.append(Block(in_channels, scale(row.c), row.t, step, own))
            reached, dilation, in_channels = reached * step, dilation * rate, scale(row.c)
    last = None if spec.last is None else make_divisible(spec.last * max(1.0, width), spec.divisor)
    return Layout(stem, spec.stem_stride, tuple(blocks), last)
