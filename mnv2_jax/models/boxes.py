"""Boxes (Sec. 6.2): their overlap, matching with objects, and non-maximum suppression.

A box is (top, left, bottom, right) in fractions of the image's height and width. One without area
(zero, crossed corners, NaN) overlaps and matches nothing and is never detected, so zeros serve as
padding. Every function has fixed shapes and compiles; batches go through `jax.vmap`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mnv2_jax.models.anchors import decode


class Detections(NamedTuple):
    """The detections of one image, best first; where there is none: zeros, and class -1."""

    boxes: Float[Array, "k 4"]  # clipped to the image
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


def match(
    objects: Float[Array, "g 4"], anchors: Float[Array, "a 4"], threshold: float = 0.5
) -> Int[Array, " a"]:
    """Assigns to every anchor the object that it has to predict, or -1 for background.

    An anchor takes the object it overlaps most, if their IoU is at least `threshold`. Moreover
    every object gets the anchor that overlaps it most, whatever their IoU; of two objects with the
    same best anchor the first has it. There is at least one row of objects, padding included.

    >>> anchors = jnp.array([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0]])
    >>> match(jnp.array([[0.0, 0.0, 0.5, 0.4], [0.8, 0.8, 1.0, 1.0], [0.0] * 4]), anchors)
    Array([ 0,  1, -1], dtype=int32)
    """
    overlap = iou(objects, anchors)  # (g, a)
    best = overlap.argmax(axis=0).astype(jnp.int32)
    chosen = jnp.where(overlap.max(axis=0) >= threshold, best, -1)
    favorite = jnp.where(overlap.max(axis=1) > 0, overlap.argmax(axis=1), -1)
    forced = favorite[:, None] == jnp.arange(len(anchors))[None, :]
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

    Scores have no background class and count above `score_threshold`, which NaN never is; boxes of
    an IoU above `iou_threshold` are suppressed. The defaults are the authors'.

    >>> boxes = jnp.array([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.45], [0.5, 0.5, 1.0, 1.0]])
    >>> kept = non_maximum_suppression(boxes, jnp.array([[0.9], [0.8], [0.7]]), total=3)
    >>> kept.scores, kept.valid
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
    codes: Float[Array, "b a 4"], logits: Float[Array, "b a slots"], anchors: Float[Array, "a 4"]
) -> Detections:
    """Turns a network's outputs into detections, each field with the batch as its first axis.

    Scores are the sigmoids of the logits; slot 0, the background, is dropped, so class 0 is slot 1.
    """

    def one(codes: Array, logits: Array) -> Detections:
        scores = jax.nn.sigmoid(logits[:, 1:])
        return non_maximum_suppression(decode(codes, anchors), scores)

    return jax.vmap(one)(codes, logits)
