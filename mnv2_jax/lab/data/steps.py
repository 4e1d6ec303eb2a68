"""Steps that transforms are made of: each is `(record, rng, ...) -> record`.

A step changes the image, and boxes (n, 4) and label map (h, w) with it where the record has them.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mnv2_jax.lab.data import annotations, image
from mnv2_jax.lab.data.annotations import IGNORED
from mnv2_jax.lab.data.source import Pair, Rng, Transform

# Of `ssd_random_crop` in the authors' training code: the shares of a box that a crop must hold to
# keep it, of which each crop draws one, the chance of no crop, and the shape of the rectangle.
COVERED, UNCROPPED, CROP_ASPECT = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0), 0.15, (0.5, 2.0)
CROP_ATTEMPTS = 100
SCALE_STEP = 0.25


def random(function: Callable[..., np.ndarray], **options: Any) -> Transform:
    """Makes a step of a function of an image and random numbers."""
    return partial(_change, function, options, True)


def fixed(function: Callable[..., np.ndarray], **options: Any) -> Transform:
    """Makes a step of a function of an image."""
    return partial(_change, function, options, False)


def _change(function: Any, options: dict, draws: bool, record: dict, rng: Rng) -> dict:
    return record | {"image": function(record["image"], *[rng] * draws, **options)}


def resize(record: dict, _: Rng, size: int, **kernel: Any) -> dict:
    """Stretches image and labels to a square; without widening the kernel, unless told to."""
    return _resized(record, size, size, **kernel)


def fit(record: dict, _: Rng, size: int) -> dict:
    """Shrinks what does not fit, and fills up the rest."""
    height, width = image.fitted(record["image"].shape, size)
    return _padded(_resized(record, height, width, antialias=True), size)


def flip(record: dict, rng: Rng, probability: float) -> dict:
    """Mirrors the image left and right with a probability, and its boxes and label map with it."""
    if rng.random() >= probability:
        return record
    changed = {"image": image.flip(record["image"])}
    if "boxes" in record:
        top, left, bottom, right = record["boxes"].T
        changed["boxes"] = np.stack([top, 1 - right, bottom, 1 - left], axis=1)
    if _has_map(record):
        changed["label"] = record["label"][:, ::-1]
    return record | changed


def ssd_crop(record: dict, rng: Rng, area: Pair = (0.1, 1.0)) -> dict:
    """Cuts a random rectangle that holds enough of at least one box, and cuts the boxes with it.

    What is enough is drawn from `COVERED`; boxes of which the rectangle holds less are dropped. The
    image stays whole with a chance of 0.15, and where no rectangle of 100 fits.
    """
    covered = rng.choice(COVERED)
    if rng.random() < UNCROPPED:
        return record
    pixels, boxes, classes = record["image"], record["boxes"], record["classes"]
    height, width = pixels.shape[:2]
    for _ in range(CROP_ATTEMPTS):
        share, aspect = rng.uniform(*area), rng.uniform(*CROP_ASPECT)
        h = round(math.sqrt(share * height * width / aspect))
        w = round(math.sqrt(share * height * width * aspect))
        if not (0 < h <= height and 0 < w <= width):
            continue
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        low = np.tile([top / height, left / width], 2)
        size = np.tile([h / height, w / width], 2)
        cut = boxes.clip(low, low + size)
        held = annotations.area_of(cut) / np.maximum(annotations.area_of(boxes), 1e-12)
        kept = (held > 0) & (held >= covered - 1e-6)
        if kept.any() or not len(boxes):
            pixels, boxes = pixels[top : top + h, left : left + w], (cut[kept] - low) / size
            return {"image": pixels, "boxes": boxes, "classes": classes[kept]}
    return record


def scale_crop(record: dict, rng: Rng, size: int, scale: Pair = (0.5, 2.0)) -> dict:
    """Scales image and labels by a random factor, in steps of 0.25, and cuts a random square.

    Where the scaled image is smaller than the square, gray pixels labelled 255 fill it up.
    """
    steps = math.floor((scale[1] - scale[0]) / SCALE_STEP + 1e-6)
    factor = scale[0] + SCALE_STEP * int(rng.integers(steps + 1))
    height, width = (max(1, round(n * factor)) for n in record["label"].shape)
    record = _padded(_resized(record, height, width), size)
    top, left = (int(rng.integers(n - size + 1)) for n in record["label"].shape)
    window = slice(top, top + size), slice(left, left + size)
    return {key: array[window] for key, array in record.items()}


def select_labels(record: dict, _: Rng) -> dict:
    """Keeps the image and its label map."""
    return {"image": record["image"], "label": record["label"]}


def select_objects(record: dict, _: Rng, crowds: bool) -> dict:
    """Keeps the image and its objects, without padding, and without crowds unless asked for."""
    classes = record["classes"]
    kept = classes != annotations.PADDING_CLASS if crowds else classes >= 0
    return {"image": record["image"], "boxes": record["boxes"][kept], "classes": classes[kept]}


def pad_objects(record: dict, _: Rng, rows: int) -> dict:
    """Brings the objects to a fixed number of rows: the largest are kept, missing ones padded."""
    boxes, classes = record["boxes"], record["classes"]
    crowd = classes <= annotations.FIRST_CROWD
    classes = np.where(crowd, annotations.crowd_of(classes), classes)
    count = int(classes.max(initial=-1)) + 1
    objects = annotations.clean_objects(boxes, classes, count, rows, "record", crowd)
    return {"image": record["image"], "boxes": objects.boxes, "classes": objects.classes}


def _resized(
    record: dict, height: int, width: int, method: str = "bilinear", antialias: bool = False
) -> dict:
    """Resizes the image, and its label map to the nearest label: none lies between two classes."""
    changed = {"image": image.resize(record["image"], height, width, method, antialias)}
    if _has_map(record):
        labels = record["label"][..., None]
        changed["label"] = image.resize(labels, height, width, "nearest")[..., 0]
    return record | changed


def _padded(record: dict, size: int) -> dict:
    """Fills image and labels up with gray pixels that count nowhere."""
    pixels = image.padded(record["image"], size, image.MEAN_PIXEL)
    return record | {"image": pixels, "label": image.padded(record["label"], size, IGNORED)}


def _has_map(record: dict) -> bool:
    return np.ndim(record.get("label")) == 2
