"""The sandglass block of experiments/ablate_sandglass.py against loops, formulas and its paper.

That it trains, goes on, predicts and is exported is tested in test_own_blocks.
"""

import jax
import numpy as np
import pytest

from experiments.ablate_sandglass import MAPS, MOBILENEXT
from experiments.scales import SCALES
from mnv2_jax import DIALECTS, InvertedResidual, MobileNetV2, account
from mnv2_jax.lab.tasks import make_model
from mnv2_jax.lab.train.config import load_config
from mnv2_jax.lab.train.sweep import variant_config


def depthwise(x, kernel, stride, dilation):
    """A 3×3 depthwise convolution by position, padded by half its span on either side."""
    b, h, w, c = x.shape
    out = np.zeros((b, -(-h // stride), -(-w // stride), c))
    for i, j, u, v in np.ndindex(*out.shape[1:3], 3, 3):
        row, column = i * stride + (u - 1) * dilation, j * stride + (v - 1) * dilation
        if 0 <= row < h and 0 <= column < w:
            out[:, i, j] += x[:, row, column] * kernel[u, v, 0]
    return out


def sandglass(variables, x, stride, dilation, epsilon):
    """The block as its paper's table lists it: operator, then activation."""
    params, stats = variables["params"], variables["batch_stats"]

    def norm(name, y):
        p, s = params[name]["norm"], stats[name]["norm"]
        return (y - s["mean"]) / np.sqrt(s["var"] + epsilon) * p["scale"] + p["bias"]

    def kernel(name):
        return params[name]["conv"]["kernel"]

    y = np.clip(norm("filter_first", depthwise(x, kernel("filter_first"), 1, dilation)), 0, 6)
    y = norm("reduce", y @ kernel("reduce")[0, 0])
    y = np.clip(norm("expand", y @ kernel("expand")[0, 0]), 0, 6)
    y = norm("filter", depthwise(y, kernel("filter"), stride, dilation))
    return x + y if x.shape == y.shape else y


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "thin", "stride", "dilation"),
    [(12, 2, 1, 1), (12, 2, 2, 1), (20, 4, 1, 1), (20, 4, 2, 1), (12, 2, 1, 2), (6, 2, 1, 1)],
)
def test_against_loops_in_numpy(randomize, channels, thin, stride, dilation):
    dialect = DIALECTS["torchvision"]
    block = InvertedResidual(channels, 6, stride, dilation, dialect=dialect, **MAPS)
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 12)).astype(np.float32)
    variables = randomize(block, x.shape)
    assert variables["params"]["reduce"]["conv"]["kernel"].shape == (1, 1, 12, thin)
    out = jax.jit(block.apply)(variables, x)
    expected = sandglass(variables, x, stride, dilation, dialect.bn_epsilon)
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)


def counted(rows, size, classes):
    """Parameters and multiply-adds of MobileNeXt, from (channels, thin, blocks, stride)."""
    size //= 2
    width, params, madds = 32, 27 * 32 + 2 * 32, 27 * 32 * size**2
    for channels, thin, blocks, first in rows:
        for stride in (first, *[1] * (blocks - 1)):
            enters = 9 * width + width * thin + thin * channels
            params += enters + 9 * channels + 2 * (width + thin + 2 * channels)
            madds += enters * size**2 + 9 * channels * (size // stride) ** 2
            size, width = size // stride, channels
    return params + (width + 1) * classes, madds + width * classes


@pytest.mark.slow
def test_the_whole_network_has_the_size_of_mobilenext():
    """Its Table 2 with t = 6; published are 3.4 M and 300 M, as without the first layer."""
    rows = (
        (96, 16, 1, 2), (144, 24, 1, 1), (192, 32, 3, 2), (288, 48, 3, 2), (384, 64, 4, 1),
        (576, 96, 4, 2), (960, 160, 3, 1), (1280, 214, 1, 1),
    )  # fmt: skip
    cost = account(MobileNetV2(spec=MOBILENEXT, **MAPS), (1, 224, 224, 3))
    assert (cost.params, cost.madds) == counted(rows, 224, 1000)
    assert cost.params == pytest.approx(3.4e6, rel=0.06)
    assert cost.madds - 27 * 32 * 112**2 == pytest.approx(300e6, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scale", [pytest.param(s, marks=[pytest.mark.nightly] * (s != "digits")) for s in SCALES]
)
def test_both_blocks_cost_the_same_at_every_scale(scale):
    config = load_config(f"experiments/ablate_sandglass.py:{scale}")
    channels = 1 if scale == "digits" or "mnist" in scale else 3
    classes, size = 1000 if scale == "imagenet2012" else 10, config.data.resolution
    inverted, sandglass = (
        account(
            make_model(variant_config(config, name), classes, channels), (1, size, size, channels)
        )
        for name in config.sweep.claim
    )
    assert sandglass.madds == pytest.approx(inverted.madds, rel=0.02)
    assert sandglass.params == pytest.approx(inverted.params, rel=0.15)
