"""SSD's anchors (Sec. 6.2), and the code that boxes are predicted in relative to them.

A box is (top, left, bottom, right) in fractions of the image's height and width.
"""

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnv2_jax.errors import UsageError

CODER_SCALES = (10.0, 10.0, 5.0, 5.0)
"""What the authors multiply the four codes by (their `faster_rcnn_box_coder`)."""

MIN_SCALE, MAX_SCALE = 0.2, 0.95
# The authors' configuration writes the last one with four digits.
ASPECT_RATIOS = (1.0, 2.0, 0.5, 3.0, 0.3333)
SMALLEST_SIDE = 1e-8


def anchor_shapes(maps: int) -> list[list[tuple[float, float]]]:
    """Lists the (scale, aspect ratio) of the anchors in one cell of each feature map.

    Scales run from 0.2 to 0.95 of the image's shorter side; aspect is width over height. The finest
    map has three anchors, every other one six: five aspects, and a square one half way (in the
    geometric mean) to the next map's scale.

    >>> [len(shapes) for shapes in anchor_shapes(6)]
    [3, 6, 6, 6, 6, 6]
    """
    if maps < 2:
        raise UsageError(f"{maps} feature map(s) for anchors: at least 2 are needed.")
    step = (MAX_SCALE - MIN_SCALE) / (maps - 1)
    scales = [MIN_SCALE + step * i for i in range(maps)] + [1.0]
    shapes = [[(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)]]
    for scale, larger in itertools.pairwise(scales[1:]):
        own = [(scale, aspect) for aspect in ASPECT_RATIOS]
        shapes.append([*own, (math.sqrt(scale * larger), 1.0)])
    return shapes


def ssd_anchors(
    grids: Sequence[tuple[int, int]], image: tuple[int, int] = (1, 1)
) -> Float[np.ndarray, "a 4"]:
    """Lays out SSD's anchors: 2,034 for the authors' network at 320×320, 1,917 at 300×300.

    Centers are those of the cells. Anchors are not clipped: some reach over the border. They are
    ordered by map, row, column and shape.

    Args:
      grids: (rows, columns) of the feature maps, finest first.
      image: height and width in pixels; only their ratio counts. An anchor of aspect 1 is a square
        of pixels on any image.

    >>> len(ssd_anchors([(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]))
    2034
    >>> ssd_anchors([(1, 1), (1, 1)])[0]
    array([0.45, 0.45, 0.55, 0.55], dtype=float32)
    """
    shorter = min(image)
    anchors = []
    for (rows, columns), shapes in zip(grids, anchor_shapes(len(grids)), strict=True):
        y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
        scale, aspect = np.array(shapes).T
        height = scale / np.sqrt(aspect) * shorter / image[0]
        width = scale * np.sqrt(aspect) * shorter / image[1]
        y, x = y[:, None, None], x[None, :, None]
        sides = (y - height / 2, x - width / 2, y + height / 2, x + width / 2)
        anchors.append(np.stack(np.broadcast_arrays(*sides), axis=-1).reshape(-1, 4))
    return np.concatenate(anchors).astype(np.float32)


def encode(boxes: Float[Array, "n 4"], anchors: Float[Array, "n 4"]) -> Float[Array, "n 4"]:
    """Writes boxes relative to anchors, as the network predicts them.

    The code is (10 Δy / h, 10 Δx / w, 5 log h'/h, 5 log w'/w): the shift of the center in sizes of
    the anchor, and the logarithm of the ratio of sizes.

    >>> encode(jnp.array([[0.1, 0.0, 0.6, 1.0]]), jnp.array([[0.0, 0.0, 0.5, 1.0]])).round(4)
    Array([[2., 0., 0., 0.]], dtype=float32)
    """
    center, size = _center_and_size(boxes)
    anchor_center, anchor_size = _center_and_size(anchors)
    shift = (center - anchor_center) / anchor_size
    growth = jnp.log(jnp.maximum(size, SMALLEST_SIDE) / anchor_size)
    return jnp.concatenate([shift, growth], axis=-1) * jnp.asarray(CODER_SCALES)[None]


def decode(codes: Float[Array, "n 4"], anchors: Float[Array, "n 4"]) -> Float[Array, "n 4"]:
    """Returns the boxes that codes stand for; the inverse of `encode`.

    >>> decode(jnp.array([[2.5, 0.0, 0.0, 0.0]]), jnp.array([[0.0, 0.0, 0.5, 1.0]]))
    Array([[0.125, 0.   , 0.625, 1.   ]], dtype=float32)
    """
    shift, growth = jnp.split(codes / jnp.asarray(CODER_SCALES)[None], 2, axis=-1)
    anchor_center, anchor_size = _center_and_size(anchors)
    center, half = anchor_center + shift * anchor_size, jnp.exp(growth) * anchor_size / 2
    return jnp.concatenate([center - half, center + half], axis=-1)


def _center_and_size(boxes: Array) -> tuple[Array, Array]:
    """Gives (y, x) and (height, width)."""
    low, high = jnp.split(boxes, 2, axis=-1)
    return (low + high) / 2, high - low
