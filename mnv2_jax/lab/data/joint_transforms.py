"""Transforms of an image together with its boxes or its label map (Sec. 6.2 and 6.3).

`detection_train` and the others compose functions of `(record, rng) -> record` that move boxes and
labels along with the pixels. Boxes are (n, 4) fractions of the image, so resizing leaves them
alone; label maps are (h, w) integers, where 255 counts nowhere.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.lab.data import augment, image
from mnv2_jax.lab.data.annotations import (
    FIRST_CROWD,
    IGNORED,
    PADDING_CLASS,
    clean_objects,
    crowd_of,
)
from mnv2_jax.lab.data.transforms import with_channels

Transform = Callable[[dict, np.random.Generator], dict]

COVERED = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Shares of a box that a crop must hold to keep it; each crop draws one. These, the chance of no
crop and the shape of the rectangle are those of `ssd_random_crop` in the authors' training code."""
UNCROPPED = 0.15
CROP_ATTEMPTS = 100
CROP_ASPECT = (0.5, 2.0)
SCALE_STEP = 0.25
MEAN_PIXEL = 127  # which the authors pad with, 0 in their input range

DETECTION_CROPS, DETECTION_EVAL_CROPS = ("ssd", "none"), ("none",)
SEGMENTATION_CROPS, SEGMENTATION_EVAL_CROPS = ("scale", "none"), ("pad", "none")


def detection_train(
    size: int,
    max_objects: int,
    crop: str = "ssd",
    area: tuple[float, float] = (0.1, 1.0),
    flip: float = 0.5,
    color: float = 0.0,
    channels: int | None = None,
) -> Transform:
    """Composes SSD's training transform: crop, photometric distortion, resize, flip.

    Args:
      size: height and width of the result; images are stretched to it.
      max_objects: rows of `boxes` and `classes`; of more objects the largest are kept.
      crop: "ssd", see `ssd_crop`, or "none".
      area: the crop's share of the image.
      flip: probability of mirroring left and right.
      color: strength of `photometric_distortion`; SSD's is 0.5, and the authors' detectors have 0.
      channels: 1 or 3 to convert to; by default as the image comes.

    Raises:
      UsageError: a name that is in no table or a number out of its range.
    """
    _check(crop, DETECTION_CROPS, "training crop for detection", flip, color)
    _check_range("area", area, 1.0)

    def transform(record: dict, rng: np.random.Generator) -> dict:
        pixels, boxes, classes = record["image"], *_objects(record)
        if crop == "ssd":
            pixels, boxes, classes = ssd_crop(pixels, boxes, classes, rng, area)
        if color:
            pixels = photometric_distortion(pixels, rng, color)
        pixels = image.resize(pixels, size, size, antialias=False)
        if rng.random() < flip:
            pixels, boxes = pixels[:, ::-1], mirrored(boxes)
        return _padded(with_channels(pixels, channels), boxes, classes, max_objects)

    return transform


def detection_eval(
    size: int, max_objects: int, crop: str = "none", channels: int | None = None
) -> Transform:
    """Composes the evaluation transform of a detector: the whole image, stretched.

    Crowds stay among the objects, for the evaluation to know where nothing counts.
    """
    _check(crop, DETECTION_EVAL_CROPS, "evaluation crop for detection")

    def transform(record: dict, rng: np.random.Generator) -> dict:
        del rng
        pixels = image.resize(record["image"], size, size, antialias=False)
        kept = record["classes"] != PADDING_CLASS
        boxes, classes = record["boxes"][kept], record["classes"][kept]
        return _padded(with_channels(pixels, channels), boxes, classes, max_objects)

    return transform


def segmentation_train(
    size: int,
    crop: str = "scale",
    scale: tuple[float, float] = (0.5, 2.0),
    flip: float = 0.5,
    color: float = 0.0,
    channels: int | None = None,
) -> Transform:
    """Composes DeepLab's training transform: scale, crop, photometric distortion, flip.

    Args:
      size: height and width of the result.
      crop: "scale", see `scale_crop`, or "none" (stretched).
      scale: smallest and largest factor.
      flip: probability of mirroring left and right.
      color: strength of `photometric_distortion`; the authors' segmenters have 0.
      channels: 1 or 3 to convert to; by default as the image comes.

    Raises:
      UsageError: a name that is in no table or a number out of its range.
    """
    _check(crop, SEGMENTATION_CROPS, "training crop for segmentation", flip, color)
    _check_range("scale", scale, math.inf)

    def transform(record: dict, rng: np.random.Generator) -> dict:
        pixels, label = record["image"], record["label"]
        if crop == "scale":
            pixels, label = scale_crop(pixels, label, rng, size, scale)
        else:
            pixels, label = _stretched(pixels, label, size)
        if color:
            pixels = photometric_distortion(pixels, rng, color)
        if rng.random() < flip:
            pixels, label = pixels[:, ::-1], label[:, ::-1]
        return {"image": np.ascontiguousarray(with_channels(pixels, channels)), "label": label}

    return transform


def segmentation_eval(size: int, crop: str = "pad", channels: int | None = None) -> Transform:
    """Composes the evaluation transform of a segmenter.

    Args:
      size: height and width of the result.
      crop: "pad" (the image at its own resolution, below and right of it gray pixels that count
        nowhere; one larger than `size` is shrunk to fit) or "none" (stretched).
      channels: 1 or 3 to convert to; by default as the image comes.
    """
    _check(crop, SEGMENTATION_EVAL_CROPS, "evaluation crop for segmentation")

    def transform(record: dict, rng: np.random.Generator) -> dict:
        del rng
        pixels, label = record["image"], record["label"]
        if crop == "none":
            pixels, label = _stretched(pixels, label, size)
        else:
            height, width = fitted(pixels.shape[:2], size)
            pixels = padded(image.resize(pixels, height, width), size, MEAN_PIXEL)
            label = padded(_resized(label, height, width), size, IGNORED)
        return {"image": with_channels(pixels, channels), "label": label}

    return transform


def ssd_crop(
    pixels: np.ndarray,
    boxes: np.ndarray,
    classes: np.ndarray,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.1, 1.0),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts a random rectangle that holds enough of at least one box, and cuts the boxes with it.

    What is enough is drawn from `COVERED`; boxes of which the rectangle holds less are dropped. The
    image stays whole with a chance of 0.15, and where no rectangle of 100 fits.

    Returns:
      Image, boxes relative to it, and classes.
    """
    covered = rng.choice(COVERED)
    if rng.random() < UNCROPPED:
        return pixels, boxes, classes
    height, width = pixels.shape[:2]
    for _ in range(CROP_ATTEMPTS):
        share, aspect = rng.uniform(*area), rng.uniform(*CROP_ASPECT)
        h = round(math.sqrt(share * height * width / aspect))
        w = round(math.sqrt(share * height * width * aspect))
        if not (0 < h <= height and 0 < w <= width):
            continue
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        low = np.array([top / height, left / width])
        size = np.array([h / height, w / width])
        cut = boxes.clip(np.tile(low, 2), np.tile(low + size, 2))
        held = _area(cut) / np.maximum(_area(boxes), 1e-12)
        kept = (held > 0) & (held >= covered - 1e-6)
        if kept.any() or not len(boxes):
            window = pixels[top : top + h, left : left + w]
            return window, ((cut[kept] - np.tile(low, 2)) / np.tile(size, 2)), classes[kept]
    return pixels, boxes, classes


def photometric_distortion(
    pixels: np.ndarray, rng: np.random.Generator, strength: float = 0.5
) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each with a chance of one half.

    At strength 0.5 the ranges are those of SSD (arXiv 1512.02325): brightness ±32, contrast and
    saturation 0.5 to 1.5, hue ±18 degrees. Contrast comes before or after the other two.
    """
    shift = rng.uniform(-64, 64) * strength if rng.random() < 0.5 else 0.0
    contrast, saturation = (
        rng.uniform(max(0, 1 - strength), 1 + strength) if rng.random() < 0.5 else 1.0
        for _ in range(2)
    )
    hue = rng.uniform(-0.1, 0.1) * strength if rng.random() < 0.5 else 0.0
    first = rng.random() < 0.5
    if shift:
        pixels = (pixels.astype(np.float32) + shift).clip(0, 255).astype(np.uint8)
    if contrast != 1 and first:
        pixels = augment.contrast(pixels, contrast)
    if saturation != 1:
        pixels = augment.saturation(pixels, saturation)
    if hue:
        pixels = augment.hue(pixels, hue)
    return augment.contrast(pixels, contrast) if contrast != 1 and not first else pixels


def mirrored(boxes: np.ndarray) -> np.ndarray:
    """Mirrors boxes left and right.

    >>> mirrored(np.array([[0.0, 0.25, 1.0, 0.5]]))
    array([[0.  , 0.5 , 1.  , 0.75]])
    """
    top, left, bottom, right = boxes.T
    return np.stack([top, 1 - right, bottom, 1 - left], axis=1)


def scale_crop(
    pixels: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float] = (0.5, 2.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Scales image and labels by a random factor, in steps of 0.25, and cuts a random square.

    Where the scaled image is smaller than the square, gray pixels labelled 255 fill it up.
    """
    steps = math.floor((scale[1] - scale[0]) / SCALE_STEP + 1e-6)
    factor = scale[0] + SCALE_STEP * int(rng.integers(steps + 1))
    height, width = (max(1, round(n * factor)) for n in label.shape)
    pixels = padded(image.resize(pixels, height, width, antialias=False), size, MEAN_PIXEL)
    label = padded(_resized(label, height, width), size, IGNORED)
    top, left = (int(rng.integers(n - size + 1)) for n in label.shape)
    window = slice(top, top + size), slice(left, left + size)
    return pixels[window], label[window]


def fitted(shape: Sequence[int], size: int) -> tuple[int, int]:
    """Returns (height, width), shrunk where the longer one exceeds `size`.

    >>> fitted((100, 400), 200), fitted((100, 150), 200)
    ((50, 200), (100, 150))
    """
    factor = min(1.0, size / max(shape[:2]))
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def padded(array: np.ndarray, size: int, fill: int) -> np.ndarray:
    """Fills up below and right to at least `size` in both directions."""
    missing = [(0, max(0, size - n)) for n in array.shape[:2]]
    return np.pad(array, [*missing, *[(0, 0)] * (array.ndim - 2)], constant_values=fill)


def _stretched(pixels: np.ndarray, label: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    return image.resize(pixels, size, size, antialias=False), _resized(label, size, size)


def _resized(label: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes labels by taking the nearest one: there is nothing between two classes."""
    return image.resize(label[..., None], height, width, "nearest")[..., 0]


def _objects(record: dict) -> tuple[np.ndarray, np.ndarray]:
    """Gives the boxes and classes of a record's objects, without crowds and padding."""
    real = record["classes"] >= 0
    return record["boxes"][real], record["classes"][real]


def _padded(pixels: np.ndarray, boxes: np.ndarray, classes: np.ndarray, rows: int) -> dict:
    crowd = classes <= FIRST_CROWD
    classes = np.where(crowd, crowd_of(classes), classes)
    count = int(classes.max(initial=-1)) + 1
    objects = clean_objects(boxes, classes, count, rows, "record", crowd)
    pixels = np.ascontiguousarray(pixels)
    return {"image": pixels, "boxes": objects.boxes, "classes": objects.classes}


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)


def _check(
    crop: str, crops: Sequence[str], kind: str, flip: float = 0.0, color: float = 0.0
) -> None:
    if crop not in crops:
        raise unknown(kind, crop, crops)
    if not 0 <= flip <= 1 or color < 0:
        raise UsageError(f"flip {flip} must lie between 0 and 1, and color {color} not below 0.")


def _check_range(name: str, given: tuple[float, float], top: float) -> None:
    if len(given) != 2 or not 0 < given[0] <= given[1] <= top or given[1] == math.inf:
        raise UsageError(f"{name} {given} must be two numbers that rise from above 0 to {top}.")
