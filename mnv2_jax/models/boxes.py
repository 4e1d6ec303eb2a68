"""Boxes (Sec. 6.2): overlap, the box coder, SSD anchors, matching, non-maximum suppression.

A box is (top, left, bottom, right) in fractions of the image's height and width, so that it holds
at any resolution. A box without area (zero, crossed corners, NaN) overlaps nothing, matches nothing
and is never detected, so zeros serve as padding. Every function has fixed shapes, compiles, and
runs on the device; batches go through `jax.vmap`.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mnv2_jax.errors import UsageError

CODER_SCALES = (10.0, 10.0, 5.0, 5.0)
"""What the authors multiply the four codes by (their `faster_rcnn_box_coder`)."""

MIN_SCALE, MAX_SCALE = 0.2, 0.95
# The authors' configuration writes the last one with four digits.
ASPECT_RATIOS = (1.0, 2.0, 0.5, 3.0, 0.3333)
SMALLEST_SIDE = 1e-8


class Detections(NamedTuple):
    """What was found in one image, best first, in fixed shapes.

    Attributes:
      boxes: clipped to the image; zeros where there is no detection.
      scores: 0 where there is none.
      classes: -1 where there is none.
      valid: whether there is one.
    """

    boxes: Float[Array, "k 4"]
    scores: Float[Array, " k"]
    classes: Int[Array, " k"]
    valid: Bool[Array, " k"]


def area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Returns the share of the image that each box covers; 0 or NaN for one that is none.

    >>> area(jnp.array([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 0.2, 1.0]]))
    Array([0.5, 0. ], dtype=float32)
    """
    top, left, bottom, right = jnp.moveaxis(boxes, -1, 0)
    return jnp.maximum(bottom - top, 0) * jnp.maximum(right - left, 0)


def clip(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Cuts boxes at the border of the image; one that lies outside is left without area.

    >>> clip(jnp.array([-0.5, 0.25, 0.5, 1.5]))
    Array([0.  , 0.25, 0.5 , 1.  ], dtype=float32)
    """
    return jnp.clip(boxes, 0.0, 1.0)


def iou(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Returns the intersection over union of every pair; 0 with a box that has no area.

    >>> iou(jnp.array([[0.0, 0.0, 1.0, 1.0]]), jnp.array([[0.0, 0.0, 0.5, 0.5]]))
    Array([[0.25]], dtype=float32)
    """
    shared = _intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - shared
    return jnp.where(shared > 0, shared / jnp.where(shared > 0, union, 1), 0)


def covered(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Returns the share of each of the first boxes that lies in each of the second.

    >>> covered(jnp.array([[0.0, 0.0, 0.5, 0.5]]), jnp.array([[0.0, 0.25, 1.0, 1.0]]))
    Array([[0.5]], dtype=float32)
    """
    shared = _intersection(a, b)
    return jnp.where(shared > 0, shared / jnp.where(shared > 0, area(a)[:, None], 1), 0)


def _intersection(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    # One side at a time: a CPU is slow where the last axis has but two or four numbers.
    top, left = (jnp.maximum(a[:, None, k], b[None, :, k]) for k in (0, 1))
    bottom, right = (jnp.minimum(a[:, None, k], b[None, :, k]) for k in (2, 3))
    return jnp.maximum(bottom - top, 0) * jnp.maximum(right - left, 0)


def encode(boxes: Float[Array, "n 4"], anchors: Float[Array, "n 4"]) -> Float[Array, "n 4"]:
    """Writes boxes relative to anchors, as the network predicts them.

    The code is (10 Δy / h, 10 Δx / w, 5 log h'/h, 5 log w'/w): the shift of the centre in sizes of
    the anchor, and the logarithm of the ratio of sizes.

    >>> encode(jnp.array([[0.1, 0.0, 0.6, 1.0]]), jnp.array([[0.0, 0.0, 0.5, 1.0]])).round(4)
    Array([[2., 0., 0., 0.]], dtype=float32)
    """
    centre, size = _centre_and_size(boxes)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    shift = (centre - anchor_centre) / anchor_size
    growth = jnp.log(jnp.maximum(size, SMALLEST_SIDE) / anchor_size)
    return jnp.concatenate([shift, growth], axis=-1) * jnp.asarray(CODER_SCALES)[None]


def decode(codes: Float[Array, "n 4"], anchors: Float[Array, "n 4"]) -> Float[Array, "n 4"]:
    """Returns the boxes that codes stand for; the inverse of `encode`.

    >>> decode(jnp.array([[2.5, 0.0, 0.0, 0.0]]), jnp.array([[0.0, 0.0, 0.5, 1.0]]))
    Array([[0.125, 0.   , 0.625, 1.   ]], dtype=float32)
    """
    shift, growth = jnp.split(codes / jnp.asarray(CODER_SCALES)[None], 2, axis=-1)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre, half = anchor_centre + shift * anchor_size, jnp.exp(growth) * anchor_size / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def _centre_and_size(boxes: Array) -> tuple[Array, Array]:
    """Gives (y, x) and (height, width)."""
    low, high = jnp.split(boxes, 2, axis=-1)
    return (low + high) / 2, high - low


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

    Centres are those of the cells. Anchors are not clipped: some reach over the border.

    Args:
      grids: (rows, columns) of the feature maps, finest first.
      image: height and width in pixels; only their ratio counts. An anchor of aspect 1 is a square
        of pixels on any image.

    Returns:
      The boxes, a constant, ordered by map, row, column and shape.

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
        boxes = np.empty((rows, columns, len(shapes), 4))
        boxes[..., 0] = y[:, None, None] - height / 2
        boxes[..., 1] = x[None, :, None] - width / 2
        boxes[..., 2] = y[:, None, None] + height / 2
        boxes[..., 3] = x[None, :, None] + width / 2
        anchors.append(boxes.reshape(-1, 4))
    return np.concatenate(anchors).astype(np.float32)


def match(
    objects: Float[Array, "g 4"],
    anchors: Float[Array, "a 4"],
    threshold: float = 0.5,
) -> Int[Array, " a"]:
    """Assigns to every anchor the object that it has to predict, or -1 for background.

    An anchor takes the object it overlaps most, if their IoU is at least `threshold`. Moreover
    every object gets the anchor that overlaps it most, whatever their IoU; of two objects with the
    same best anchor the first has it.

    Args:
      objects: padded with boxes that have no area; at least one row.
      anchors: as `ssd_anchors` makes them.
      threshold: the authors' is 0.5.

    >>> anchors = jnp.array([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0]])
    >>> match(jnp.array([[0.0, 0.0, 0.5, 0.4], [0.8, 0.8, 1.0, 1.0], [0.0] * 4]), anchors)
    Array([ 0,  1, -1], dtype=int32)
    """
    overlap = iou(objects, anchors)  # (g, a)
    best = overlap.argmax(axis=0).astype(jnp.int32)
    chosen = jnp.where(overlap.max(axis=0) >= threshold, best, -1)
    favourite = jnp.where(overlap.max(axis=1) > 0, overlap.argmax(axis=1), -1)
    forced = favourite[:, None] == jnp.arange(len(anchors))[None, :]
    return jnp.where(forced.any(axis=0), forced.argmax(axis=0).astype(jnp.int32), chosen)


def non_maximum_suppression(
    boxes: Float[Array, "a 4"],
    scores: Float[Array, "a c"],
    iou_threshold: float = 0.6,
    score_threshold: float = 1e-8,
    per_class: int = 100,
    total: int = 100,
) -> Detections:
    """Keeps the best boxes of every class that no better one of the same class overlaps.

    Boxes are clipped to the image first. Greedy over all classes at once, which gives the best
    `total` of what suppression class by class would keep: one step takes the best score that is
    left and drops what overlaps its box, so the work is `total` passes over one class.

    Args:
      boxes: one for each anchor, the same for all classes.
      scores: without a background class; NaN is never detected.
      iou_threshold: boxes of a larger IoU are suppressed.
      score_threshold: scores must be larger.
      per_class, total: at most so many detections. The defaults are the authors' throughout.

    >>> boxes = jnp.array([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.45], [0.5, 0.5, 1.0, 1.0]])
    >>> found = non_maximum_suppression(boxes, jnp.array([[0.9], [0.8], [0.7]]), total=3)
    >>> found.scores, found.valid
    (Array([0.9, 0.7, 0. ], dtype=float32), Array([ True,  True, False], dtype=bool))
    """
    boxes = clip(boxes)
    usable = (area(boxes) > 0)[:, None] & (scores > score_threshold)
    remaining = jnp.where(usable, scores, -jnp.inf).T  # (c, a)

    def keep(state: tuple[Array, Array, Array], _: None) -> tuple[tuple, tuple]:
        remaining, best, room = state
        of_class = best.argmax()
        # The score is `row[i]`, but read there it would cost a CPU two thirds of the step.
        score, row = best[of_class], remaining[of_class]
        i = row.argmax()
        suppressed = iou(boxes[i][None], boxes)[0] > iou_threshold
        row = jnp.where(suppressed, -jnp.inf, row).at[i].set(-jnp.inf)
        room = room.at[of_class].add(-1)
        following = jnp.where(room[of_class] > 0, row.max(), -jnp.inf)
        state = remaining.at[of_class].set(row), best.at[of_class].set(following), room
        return state, (i, of_class, score)

    room = jnp.full(scores.shape[1:], per_class)
    start = remaining, jnp.where(room > 0, remaining.max(axis=1), -jnp.inf), room
    _, (index, classes, kept) = lax.scan(keep, start, length=total)
    valid = kept > -jnp.inf
    return Detections(
        boxes=jnp.where(valid[:, None], boxes[index], 0),
        scores=jnp.where(valid, kept, 0),
        classes=jnp.where(valid, classes.astype(jnp.int32), -1),
        valid=valid,
    )


def detections(
    codes: Float[Array, "b a 4"],
    logits: Float[Array, "b a slots"],
    anchors: Float[Array, "a 4"],
) -> Detections:
    """Turns a network's outputs into detections, each field with the batch as its first axis.

    Scores are the sigmoids of the logits; slot 0, the background, is dropped, so class 0 is slot 1.
    """

    def one(codes: Array, logits: Array) -> Detections:
        scores = jax.nn.sigmoid(logits[:, 1:])
        return non_maximum_suppression(decode(codes, anchors), scores)

    return jax.vmap(one)(codes, logits)
