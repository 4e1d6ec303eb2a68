"""Anchors against the authors' configuration, and the box coder against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.models.anchors import decode, encode, ssd_anchors
from mnv2_jax.models.boxes import clip
from tests.models.test_boxes import as_torch, random_boxes
from tests.weights.peers import torchvision_module


def test_coder_against_its_formula_and_back():
    rng = np.random.default_rng(1)
    boxes, anchors = np.float64(random_boxes(rng, 3000)), np.float64(random_boxes(rng, 3000))
    expected = np.empty((3000, 4))
    for i, (box, anchor) in enumerate(zip(boxes, anchors, strict=True)):
        h, w = anchor[2] - anchor[0], anchor[3] - anchor[1]
        expected[i, 0] = 10 * ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / h
        expected[i, 1] = 10 * ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / w
        expected[i, 2] = 5 * np.log((box[2] - box[0]) / h)
        expected[i, 3] = 5 * np.log((box[3] - box[1]) / w)
    codes = jax.jit(encode)(np.float32(boxes), np.float32(anchors))
    np.testing.assert_allclose(codes, expected, rtol=2e-3, atol=1e-3)
    back = jax.jit(decode)(codes, np.float32(anchors))
    np.testing.assert_allclose(back, boxes, atol=1e-5)


@pytest.mark.slow
def test_codes_of_padding_are_finite_and_huge_codes_stay_in_the_image():
    anchors = ssd_anchors([(2, 2), (1, 1)])
    padding = jnp.zeros_like(anchors)
    assert np.isfinite(encode(padding, anchors)).all()
    found = clip(decode(jnp.full_like(anchors, 1e4).at[:, :2].set(0), anchors))
    np.testing.assert_array_equal(found, np.tile([0, 0, 1, 1], (len(anchors), 1)))


GRIDS = {
    320: [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)],
    300: [(19, 19), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)],
}


@pytest.mark.parametrize(("size", "count"), [(320, 2034), (300, 1917)])
def test_number_of_anchors(size, count):
    anchors = ssd_anchors(GRIDS[size])
    assert anchors.shape == (count, 4) and anchors.dtype == np.float32


def test_anchors_computed_by_hand():
    """From scales .2 .35 .5 .65 .8 .95 and 1, and aspects 1, 2, 1/2, 3, 1/3."""
    anchors = ssd_anchors(GRIDS[320])

    def sides(box):
        return [box[2] - box[0], box[3] - box[1]]

    root = 2**0.5
    by_hand = {  # index: (center y, x), (height, width)
        0: ((0.025, 0.025), (0.1, 0.1)),
        1: ((0.025, 0.025), (0.2 / root, 0.2 * root)),
        2: ((0.025, 0.025), (0.2 * root, 0.2 / root)),
        3: ((0.025, 0.075), (0.1, 0.1)),  # the next column
        60: ((0.075, 0.025), (0.1, 0.1)),  # the next row
        1200: ((0.05, 0.05), (0.35, 0.35)),
        1201: ((0.05, 0.05), (0.35 / root, 0.35 * root)),
        1203: ((0.05, 0.05), (0.35 / 3**0.5, 0.35 * 3**0.5)),
        1204: ((0.05, 0.05), (0.35 * 3**0.5, 0.35 / 3**0.5)),
        1205: ((0.05, 0.05), ((0.35 * 0.5) ** 0.5,) * 2),
        2028: ((0.5, 0.5), (0.95, 0.95)),
        2033: ((0.5, 0.5), (0.95**0.5,) * 2),
    }
    for i, (center, size) in by_hand.items():
        box = anchors[i]
        np.testing.assert_allclose((box[:2] + box[2:]) / 2, center, atol=1e-6)
        # The configuration has 0.3333 for a third.
        np.testing.assert_allclose(sides(box), size, rtol=1e-4)


def test_square_anchors_are_square_on_any_image():
    anchors = ssd_anchors([(4, 8), (2, 4)], image=(200, 400))
    pixels = anchors * np.array([200, 400, 200, 400])
    h, w = pixels[:, 2] - pixels[:, 0], pixels[:, 3] - pixels[:, 1]
    np.testing.assert_allclose((h[::3], w[::3])[0][:32], 20, rtol=1e-5)  # 0.1 of the shorter side
    np.testing.assert_allclose(w[0:96:3], 20, rtol=1e-5)
    np.testing.assert_allclose((w / h)[1:96:3], 2, rtol=1e-5)


def test_one_map_is_too_few():
    with pytest.raises(UsageError, match="1 feature map"):
        ssd_anchors([(3, 3)])


@pytest.mark.oracle
def test_coder_against_torchvision():
    torchvision_module()
    from torchvision.models.detection._utils import BoxCoder

    rng = np.random.default_rng(5)
    a, b = random_boxes(rng, 3000), random_boxes(rng, 3000)
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    codes = coder.encode_single(as_torch(a), as_torch(b))
    ours = np.asarray(jax.jit(encode)(a, b))
    np.testing.assert_allclose(ours, codes.numpy()[:, [1, 0, 3, 2]], rtol=1e-3, atol=1e-4)
    back = coder.decode_single(codes, as_torch(b)).numpy()[:, [1, 0, 3, 2]]
    np.testing.assert_allclose(jax.jit(decode)(ours, b), back, atol=1e-5)
