"""Table 2, the width multiplier and the output stride, against the published figures."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnv2_jax.errors import UsageError
from mnv2_jax.models.mobilenet import MobileNetV2
from mnv2_jax.models.spec import (
    IMAGENET,
    MMSEG,
    PADDLE,
    SMALL_32,
    SMALL_96,
    SPECS,
    TIMM_110D,
    TIMM_120D,
    TINY_8,
    make_divisible,
    unroll,
    with_expansion,
)

# [stem, 16, 24, 32, 64, 96, 160, 320 | last] as the published checkpoints have them.
CHANNELS = {
    0.35: ([16, 8, 8, 16, 24, 32, 56, 112], 1280),
    0.5: ([16, 8, 16, 16, 32, 48, 80, 160], 1280),
    0.75: ([24, 16, 24, 24, 48, 72, 120, 240], 1280),
    1.0: ([32, 16, 24, 32, 64, 96, 160, 320], 1280),
    1.3: ([40, 24, 32, 40, 80, 128, 208, 416], 1664),
    1.4: ([48, 24, 32, 48, 88, 136, 224, 448], 1792),
}


@pytest.mark.parametrize("width", CHANNELS)
def test_channels_of_the_published_widths(width):
    layout = unroll(width)
    ends = [sum(row.n for row in IMAGENET.rows[: i + 1]) - 1 for i in range(7)]
    assert [layout.stem, *(layout.blocks[i].channels for i in ends)] == CHANNELS[width][0]
    assert layout.last == CHANNELS[width][1]


def test_the_network_has_17_blocks_with_the_strides_of_table_2():
    blocks = unroll().blocks
    assert len(blocks) == 17
    assert [i for i, b in enumerate(blocks) if b.stride == 2] == [1, 3, 6, 13]
    assert [b.expansion for b in blocks] == [1] + [6] * 16
    assert all(b.dilation == 1 for b in blocks)


@pytest.mark.parametrize(
    ("output_stride", "dilations"),
    [
        (32, [1] * 17),
        (16, [1] * 14 + [2] * 3),
        (8, [1] * 7 + [2] * 7 + [4] * 3),
    ],
)
def test_later_strides_become_dilation_of_the_blocks_after(output_stride, dilations):
    blocks = unroll(output_stride=output_stride).blocks
    assert [b.dilation for b in blocks] == dilations
    total = 2
    for block in blocks:
        total *= block.stride
    assert total == output_stride


def test_mmsegmentation_dilates_the_first_block_of_a_row():
    """Its configurations give the rows strides 1, 2, 2, 1, … and dilations 1, 1, 1, 2, 2, 4, 4."""
    blocks = unroll(output_stride=8, spec=MMSEG).blocks
    assert [b.dilation for b in blocks] == [1] * 6 + [2, 1, 1, 1, 2, 1, 1, 4, 1, 1, 4]
    assert [i for i, b in enumerate(blocks) if b.stride == 2] == [1, 3]
    assert unroll(spec=MMSEG).blocks == unroll().blocks


def test_paddleclas_does_not_round_channels():
    blocks = unroll(0.25, spec=PADDLE).blocks
    assert [b.channels for b in blocks if b.in_channels != b.channels] == [4, 6, 8, 16, 24, 40, 80]


@pytest.mark.parametrize(
    ("spec", "total"),
    [
        (IMAGENET, 32),
        (SMALL_32, 8),
        (TINY_8, 4),
        (SMALL_96, 16),
        (TIMM_110D, 32),
        (TIMM_120D, 32),
        (PADDLE, 32),
        (MMSEG, 32),
    ],
)
def test_total_stride_of_each_spec(spec, total):
    stride = spec.stem_stride
    for block in unroll(spec=spec).blocks:
        stride *= block.stride
    assert stride == total


def test_every_spec_is_tested_above():
    timm, others = {TIMM_110D, TIMM_120D}, {PADDLE, MMSEG}
    assert set(SPECS.values()) == {IMAGENET, SMALL_32, SMALL_96, TINY_8} | timm | others


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "millions"), [("timm_110d", 4.52), ("timm_120d", 5.83)]
)  # timm's own table of results
def test_timm_deeper_networks_have_its_number_of_parameters(spec, millions):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(MobileNetV2(spec=SPECS[spec]).init, jax.random.key(0), images)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert round(count / 1e6, 2) == millions


def test_expansion_replaces_all_but_the_first_row():
    assert [row.t for row in with_expansion(IMAGENET, 3).rows] == [1] + [3] * 6
    with pytest.raises(UsageError, match="expansion is 0: it must be an integer of at least 1"):
        with_expansion(IMAGENET, 0)


@pytest.mark.slow
@given(st.floats(0.01, 5000), st.sampled_from([1, 2, 4, 8, 16]))
def test_make_divisible_keeps_its_promises(value, divisor):
    rounded = make_divisible(value, divisor)
    assert rounded % divisor == 0 and rounded >= divisor
    assert rounded >= 0.9 * value
    assert rounded <= max(divisor, value + divisor)


@pytest.mark.parametrize("width", [0, -1.0, float("nan"), float("inf"), "1", None, True])
def test_impossible_widths_are_refused(width):
    with pytest.raises(UsageError, match=r"width is .*: it must be a number above 0"):
        unroll(width)


@pytest.mark.parametrize("output_stride", [12, 0, 64, 1, "16"])
def test_impossible_output_strides_are_refused(output_stride):
    with pytest.raises(UsageError, match=r"output_stride is .*can have 2, 4, 8, 16, 32"):
        unroll(output_stride=output_stride)


def test_stages_are_the_last_bottlenecks_of_each_stride():
    """Those that torchvision and timm give as features: the ends of Table 2's rows of a stride."""
    assert [c for _, c in unroll().stages.values()] == [16, 24, 32, 96, 320]
    assert unroll(output_stride=8).stages == {
        2: ("block_0", 16),
        4: ("block_2", 24),
        8: ("block_16", 320),
    }
    assert unroll().strides == (2, 2, 4, 4, 8, 8, 8, *[16] * 7, *[32] * 4)
