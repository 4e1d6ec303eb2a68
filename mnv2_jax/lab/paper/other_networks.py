"""MobileNetV1 and ShuffleNet as Table 3 compares them: their tensors' shapes, by their papers."""

from typing import NamedTuple

from mnv2_jax.models.spec import Layout

BYTES = 2  # of an activation: Table 3 assumes 16-bit floats

# MobileNetV1 (arXiv 1704.04861, Table 1) materializes every tensor: size -> most channels there.
MOBILENET_V1 = {112: 64, 56: 128, 28: 256, 14: 512, 7: 1024, 1: 1024}


class ShuffleNet(NamedTuple):
    """ShuffleNet at 2x (arXiv 1707.01083, Table 1)."""

    groups: int  # g of its grouped 1×1 convolutions
    stem: int  # channels of the first convolution, and of the max-pooling after it
    stages: tuple[int, int, int]  # channels of stages 2, 3, 4


SHUFFLENET_G3 = ShuffleNet(3, 48, (480, 960, 1920))
SHUFFLENET_G2 = ShuffleNet(2, 48, (400, 800, 1600))
REPEATS = (3, 7, 3)  # units of stages 2, 3, 4 after the strided one


def mobilenet_v2_channels(layout: Layout, size: int = 224) -> dict[int, int]:
    """Returns the most channels of a MobileNetV2 at each size, each block being one operation.

    >>> from mnv2_jax.models.spec import unroll
    >>> mobilenet_v2_channels(unroll())
    {112: 16, 56: 24, 28: 32, 14: 96, 7: 320, 1: 1280}
    """
    most: dict[int, int] = {}
    size = -(-size // layout.stem_stride)
    for block in layout.blocks:
        size = -(-size // block.stride)
        most[size] = max(most.get(size, 0), block.channels)
    return most | ({1: layout.last} if layout.last else {})


def shufflenet_channels(network: ShuffleNet) -> dict[int, int]:
    """Returns the most channels at each size: shortcuts join the wide tensors, so those count."""
    second, third, fourth = network.stages
    return {112: network.stem, 56: network.stem, 28: second, 14: third, 7: fourth, 1: fourth}


def shufflenet_madds(network: ShuffleNet, classes: int = 1000) -> int:
    """Counts ShuffleNet's multiply-adds at 224×224.

    A unit is a grouped 1×1 convolution to a quarter of its output (the first one's has no groups),
    a depthwise 3×3 and a grouped 1×1; a strided unit's shortcut is pooled and concatenated.

    >>> shufflenet_madds(SHUFFLENET_G3)
    524045184
    """
    g, thin = network.groups, network.stem
    total, size = 112**2 * 27 * thin, 56
    for wide, repeats in zip(network.stages, REPEATS, strict=True):
        inner, first = wide // 4, 1 if thin == network.stem else g
        total += size**2 * thin * inner // first
        size //= 2
        total += size**2 * inner * (9 + (wide - thin) // g)
        total += repeats * size**2 * inner * (wide // g + 9 + wide // g)
        thin = wide
    return total + thin * classes


def kilobytes(channels: int, size: int) -> float:
    """Returns the memory of a square tensor at 16 bit, in thousands of bytes as Table 3 counts.

    >>> kilobytes(16, 112)
    401.408
    """
    return channels * size**2 * BYTES / 1000
