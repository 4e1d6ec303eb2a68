"""MobileNetV1 and ShuffleNet as Table 3 compares them: their tensors' shapes, by their papers."""

from mnv2_jax.models.spec import Layout

# MobileNetV1 (arXiv 1704.04861, Table 1) materializes every tensor: size -> most channels there.
MOBILENET_V1 = {112: 64, 56: 128, 28: 256, 14: 512, 7: 1024, 1: 1024}
# ShuffleNet at 2x (arXiv 1707.01083, Table 1): the groups of its 1×1 convolutions -> channels of
# stages 2, 3, 4. Its first convolution and the max-pooling after it have `STEM`.
SHUFFLENET = {3: (480, 960, 1920), 2: (400, 800, 1600)}
STEM = 48
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


def shufflenet_channels(groups: int) -> dict[int, int]:
    """Returns the most channels at each size: shortcuts join the wide tensors, so those count."""
    second, third, fourth = SHUFFLENET[groups]
    return {112: STEM, 56: STEM, 28: second, 14: third, 7: fourth, 1: fourth}


def shufflenet_madds(groups: int, classes: int = 1000) -> int:
    """Counts ShuffleNet's multiply-adds at 224×224.

    A unit is a grouped 1×1 convolution to a quarter of its output (the first one's has no groups),
    a depthwise 3×3 and a grouped 1×1; a strided unit's shortcut is pooled and concatenated.

    >>> shufflenet_madds(3)
    524045184
    """
    total, size, thin = 112**2 * 27 * STEM, 56, STEM
    for wide, repeats in zip(SHUFFLENET[groups], REPEATS, strict=True):
        inner, first = wide // 4, 1 if thin == STEM else groups
        total += size**2 * thin * inner // first
        size //= 2
        total += size**2 * inner * (9 + (wide - thin) // groups)
        total += repeats * size**2 * inner * (wide // groups + 9 + wide // groups)
        thin = wide
    return total + thin * classes


def kilobytes(channels: int, size: int) -> float:
    """Returns the memory of a square tensor at 16 bit, in thousands of bytes as Table 3 counts.

    >>> kilobytes(16, 112)
    401.408
    """
    return 2 * channels * size**2 / 1000
