"""Dialects: the published constants, and the input range of each."""

import numpy as np
import pytest

from mnv2_jax import DIALECTS, normalize
from mnv2_jax.models.layers import pad_same, pad_symmetric


def test_constants_of_each_ecosystem():
    table = {name: (d.padding, d.bn_epsilon, d.bn_decay) for name, d in DIALECTS.items()}
    assert table == {
        "slim": ("same", 1e-3, 0.997),
        "keras": ("same", 1e-3, 0.999),
        "torchvision": ("symmetric", 1e-5, 0.9),
        "timm": ("symmetric", 1e-5, 0.9),
        "hf": ("same", 1e-3, 0.997),
    }


@pytest.mark.parametrize("name", DIALECTS)
def test_normalize_maps_pixels_to_the_dialects_range(name):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    if DIALECTS[name].padding == "same":
        expected = pixels / 127.5 - 1
    else:
        expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    out = normalize(pixels, DIALECTS[name])
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_grey_images_take_the_average_of_the_channels():
    grey = normalize(np.full((1, 2, 2, 1), 51, np.uint8), DIALECTS["torchvision"])
    mean, std = (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3
    np.testing.assert_allclose(grey, (0.2 - mean) / std, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_paddings_give_the_size_over_the_stride_rounded_up(stride, dilation):
    for size in range(1, 40):
        for pad in (pad_same, pad_symmetric):
            low, high = pad(size, 3, stride, dilation)
            assert (size + low + high - 2 * dilation - 1) // stride + 1 == -(-size // stride)
        low, high = pad_same(size, 3, stride, dilation)
        assert high - low in (0, 1)
