"""Counts against the published tables, the paper's formulas and other modules' known costs."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import InvertedResidual, MobileNetV2, account, unroll
from mnv2_jax.accounting import bottleneck_memory
from mnv2_jax.lab.cli import main

PARAMS = {  # width: (with batch norm and biases, without)
    0.35: (1_677_128, 1.662e6), 0.5: (1_968_680, 1.949e6), 0.75: (2_636_424, 2.609e6),
    1.0: (3_504_872, 3.470e6), 1.3: (5_386_792, 5.342e6), 1.4: (6_108_776, 6.060e6),
}  # fmt: skip
# Millions of multiply-adds as the authors' release prints them, by width and resolution.
RESOLUTIONS = (224, 192, 160, 128, 96)
MADDS = {
    1.4: (582,), 1.3: (509,), 1.0: (300, 221, 154, 99, 56), 0.75: (209, 153, 107, 69, 39),
    0.5: (97, 71, 50, 32, 18), 0.35: (59, 43, 30, 20, 11),
}  # fmt: skip
AT_224 = {0.35: 59.3, 0.5: 97.1, 0.75: 209.1, 1.0: 300.8, 1.3: 509.4, 1.4: 582.2}


@pytest.mark.slow
@pytest.mark.parametrize("width", PARAMS)
def test_parameters_and_madds_of_the_published_widths(width):
    result = account(MobileNetV2(width=width), (1, 224, 224, 3))
    assert result.params == PARAMS[width][0]
    assert round(result.kernel_params / 1e6, 3) == PARAMS[width][1] / 1e6
    assert round(result.madds / 1e6, 1) == AT_224[width]


@pytest.mark.nightly
def test_madds_of_all_22_published_pairs():
    pairs = [(w, r, m) for w, row in MADDS.items() for r, m in zip(RESOLUTIONS, row, strict=False)]
    assert len(pairs) == 22
    for width, resolution, published in pairs:
        counted = account(MobileNetV2(width=width), (1, resolution, resolution, 3)).madds
        # The release cuts some figures and rounds others.
        assert int(counted / 1e6) <= published <= round(counted / 1e6), (width, resolution)


@pytest.mark.slow
def test_table_1s_formula_on_random_blocks():
    rng = np.random.default_rng(0)
    for _ in range(12):
        h, w, d, t, out = (int(n) for n in rng.integers(2, 12, 5))
        result = account(InvertedResidual(out, t), (1, h, w, d))
        assert result.madds == h * w * d * t * (d + 3**2 + out)


@pytest.mark.slow
def test_account_is_the_same_for_any_form_of_computing():
    base = account(MobileNetV2(width=0.35), (1, 96, 96, 3))
    for other in (
        MobileNetV2(width=0.35, split=4),
        MobileNetV2(width=0.35, convolve=jax.lax.conv_general_dilated),
        MobileNetV2(width=0.35, dtype=jnp.bfloat16),
    ):
        assert account(other, (1, 96, 96, 3)) == base


class Foreign(nn.Module):
    """A model of someone else: attention, a convolution called twice, a product of its own."""

    @nn.compact
    def __call__(self, x):
        conv = nn.Conv(8, (3, 3), name="conv")
        x = conv(conv(nn.Conv(8, (1, 1), name="in")(x)))
        x = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x.reshape(1, 16, 8))
        return jnp.einsum("btc,bsc->bts", x, x)


def test_any_linen_model_is_counted_whole():
    result = account(Foreign(), (1, 4, 4, 3))
    conv, projections, products = 2 * 16 * 8 * 9 * 8, 4 * 16 * 8 * 8, 2 * 16 * 16 * 8
    assert result.madds == 16 * 3 * 8 + conv + projections + products + 16 * 16 * 8
    assert result.params == (3 * 8 + 8) + (9 * 64 + 8) + 4 * (64 + 8)
    assert result.kernel_params == 3 * 8 + 9 * 64 + 4 * 64


def test_loops_count_every_pass():
    class Looped(nn.Module):
        @nn.compact
        def __call__(self, x):
            w = self.param("w", nn.initializers.ones, (4, 4))
            return jax.lax.scan(lambda c, _: (c @ w, None), x, length=5)[0]

    assert account(Looped(), (2, 4)).madds == 5 * 2 * 4 * 4


@pytest.mark.slow
def test_arguments_pass_through_and_arrays_are_welcome():
    result = account(MobileNetV2(num_classes=10), np.zeros((1, 32, 32, 3), np.float32), train=True)
    assert result.madds == account(MobileNetV2(num_classes=10), (1, 32, 32, 3)).madds


def test_activation_memory_of_the_paper():
    layout, size = unroll(), (224, 224)
    layerwise = dict(bottleneck_memory(layout, size))
    # The expanded tensor of the second block, 112² × 96, beside the 112² × 16 it comes from.
    assert layerwise["block_1/expand"] == 112 * 112 * (16 + 96)
    assert max(layerwise.values()) == 112 * 112 * 96 + 56 * 56 * 96 == layerwise["block_1/filter"]
    fused = dict(bottleneck_memory(layout, size, split=10**9))
    # In the limit of many groups: input and output of the block alone, plus one element.
    assert fused["block_1"] == 112 * 112 * 16 + 56 * 56 * 24 + 1
    peaks = [max(n for _, n in bottleneck_memory(layout, size, t)) for t in range(1, 7)]
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.slow
def test_layer_rows_of_the_account():
    result = account(MobileNetV2(), (1, 224, 224, 3))
    assert result.activation_sum == 6_679_112  # every convolution's output, and the logits
    assert result.grouped().layers[2].output == (1, 56, 56, 24)
    assert len(result.grouped().layers) == 1 + 17 + 1 + 1
    assert result.grouped().madds == result.madds


@pytest.mark.slow
def test_the_verb_prints_the_table_and_json(capsys):
    assert main(["account", "--width", "0.75", "--resolution", "160"]) == 0
    text = capsys.readouterr().out
    assert "2,636,424" in text and "`block_16`" in text
    assert main(["account", "--width", "1.4", "--resolution", "192x256", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["params"] == 6_108_776 and figures["layers"][0]["output"] == [1, 96, 128, 48]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["account", "--width", "0"], "width is 0.0: it must be a number above 0"),
        (["account", "--width", "wide"], "invalid float value: 'wide'"),
        (["account", "--resolution", "22x"], "resolution is '22x': write a number of pixels, or"),
        (["account", "--resolution", "0"], "resolution is '0'"),
        (["account", "--spec", "imagnet"], "unknown spec 'imagnet': did you mean 'imagenet'"),
        (["account", "--output-stride", "12"], "output_stride is 12"),
        (["account", "--channels", "0"], "--channels is 0: give at least 1"),
        (["acount"], "unknown verb 'acount': did you mean 'account'"),
        ([], "VERB"),
    ],
)
def test_mistakes_are_one_line_and_status_2(capsys, argv, message):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
