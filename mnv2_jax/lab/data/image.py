"""One image at a time: decoding, resizing, cropping, padding and flipping, in numpy.

An image is uint8 (height, width, channels) with 1 or 3 channels. What draws at random takes the
generator second, `(image, rng, ...)`, and depends on nothing else.
"""

import contextlib
import functools
import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mnv2_jax.errors import UsageError, first_line, unknown
from mnv2_jax.lab.data.source import BadRecord

MAX_PIXELS = 1 << 26  # 67 megapixels: 200 MB as RGB, in each thread
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # none that calls other programs
LABEL_FORMATS = ("PNG", "TIFF", "BMP")
MEAN_PIXEL = 127  # which the authors pad segmenters' images with, 0 in their input range
EXIF_WITHIN = 4096  # the tag's segment comes first in the file, or after the JFIF header
INCEPTION_ASPECT = (3 / 4, 4 / 3)  # width over height
KEYS_CUBIC_A = -0.5  # as Pillow's and TensorFlow's bicubic
METHODS = ("bilinear", "bicubic", "nearest")


@functools.cache
def _cv2():
    """Imports OpenCV if installed, with one thread a call: the pipeline has its own threads."""
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)
    return cv2


@functools.cache
def _simplejpeg():
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def decode(data: bytes, name: str, channels: int = 3, orient: bool = True) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP, BMP, GIF (its first frame), PPM or TIFF image.

    CMYK, palette and 16-bit images are converted, transparency is dropped. JPEG goes through
    simplejpeg where it is installed and the file is flawless, everything else through Pillow; both
    use libjpeg-turbo and give the same pixels.

    Args:
        data: the whole file.
        name: names the record in errors.
        channels: 3 for RGB, 1 for gray.
        orient: whether to turn the image upright by its EXIF tag. The reference pipelines for
            ImageNet do not.

    Raises:
        BadRecord: the file is empty, damaged, of another format or larger than `MAX_PIXELS`; the
            size is taken from the header, before any memory is set aside.
    """
    if not data:
        raise BadRecord(name, "the file is empty")
    pixels = _decode_jpeg(data, name, channels) if data[:2] == b"\xff\xd8" else None
    if pixels is not None and not (orient and data.find(b"Exif\0\0", 0, EXIF_WITHIN) >= 0):
        return pixels
    with _opened(data, name, FORMATS) as picture:
        if orient:
            picture = ImageOps.exif_transpose(picture)
        if picture.mode in ("I", "F"):
            raise BadRecord(name, f"pixels of mode {picture.mode} have no known range")
        if picture.mode.startswith("I;16"):
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        pixels = np.asarray(picture.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def decode_labels(data: bytes, name: str) -> np.ndarray:
    """Decodes a label map, (h, w) uint8: a gray picture, or the indices of one with a palette.

    Raises:
        BadRecord: it is damaged, too large or in color.
    """
    with _opened(data, name, LABEL_FORMATS) as picture:
        if picture.mode not in ("P", "L"):
            raise BadRecord(name, f"a picture of mode {picture.mode} is not a label map")
        return np.array(picture)


@contextlib.contextmanager
def _opened(data: bytes, name: str, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Opens a picture that is not too large; whatever goes wrong in the block is a `BadRecord`."""
    try:
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            _check_size(name, picture.height, picture.width)
            yield picture
    except BadRecord:
        raise
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        reason = first_line(error)
        if "cannot identify image file" in reason:  # it goes on with an address in memory
            reason = "not an image of a known format"
        raise BadRecord(name, f"cannot be decoded ({reason})") from error


def _check_size(name: str, height: int, width: int) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise BadRecord(name, f"{width}x{height} pixels; the limit is {MAX_PIXELS:,}")


def _decode_jpeg(data: bytes, name: str, channels: int) -> np.ndarray | None:
    """Decodes with simplejpeg; None if it is absent or refuses the file."""
    simplejpeg = _simplejpeg()
    if simplejpeg is None:
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(name, int(height), int(width))
        if colorspace in ("CMYK", "YCCK") or (channels == 1 and colorspace != "Gray"):
            return None
        return simplejpeg.decode_jpeg(data, colorspace="RGB" if channels == 3 else "GRAY")
    except BadRecord:
        raise
    except ValueError:
        return None


def apply_pillow(
    image: np.ndarray, operation: Callable[..., Image.Image], *arguments: Any
) -> np.ndarray:
    """Applies `operation(picture, *arguments)` to an array of 1 or 3 channels, and keeps them."""
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture = operation(picture, *arguments)
    return np.asarray(picture).reshape(picture.height, picture.width, image.shape[2])


def resize(
    image: np.ndarray,
    height: int,
    width: int,
    method: str = "bilinear",
    antialias: bool = True,
) -> np.ndarray:
    """Resizes to (height, width), with pixel centers at half-integers.

    With `antialias` the kernel widens when shrinking, as in Pillow and `jax.image.resize`; without,
    its support is fixed, as in `tf.image.resize` and OpenCV, which is nine times faster (0.14
    against 1.28 ms from 350x300 to 224x224) and gives another sharpness.
    """
    if method not in METHODS:
        raise unknown("resize method", method, METHODS)
    if height < 1 or width < 1:
        raise UsageError(f"cannot resize to {width}x{height}: both must be at least 1.")
    if image.shape[:2] == (height, width):
        return image
    if method == "nearest":
        rows = ((np.arange(height) + 0.5) * (image.shape[0] / height)).astype(np.int64)
        columns = ((np.arange(width) + 0.5) * (image.shape[1] / width)).astype(np.int64)
        return image[rows[:, None], columns]
    if antialias:
        kernel = getattr(Image.Resampling, method.upper())
        return apply_pillow(image, Image.Image.resize, (width, height), kernel)
    cv2 = _cv2()
    if cv2 is not None and method == "bilinear":
        return cv2.resize(image, (width, height)).reshape(height, width, image.shape[2])
    rows = _interpolate(image.astype(np.float32), height, method)
    resized = _interpolate(rows.swapaxes(0, 1), width, method).swapaxes(0, 1)
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


def _interpolate(values: np.ndarray, size: int, method: str) -> np.ndarray:
    """Resizes along the first axis with a kernel of fixed support, where OpenCV cannot."""
    center = (np.arange(size) + 0.5) * (len(values) / size) - 0.5
    taps = np.arange(0, 2) if method == "bilinear" else np.arange(-1, 3)
    index = np.floor(center).astype(np.int64)[:, None] + taps
    x, a = np.abs(center[:, None] - index), KEYS_CUBIC_A
    weight = 1 - x
    if method == "bicubic":
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        weight = np.where(x <= 1, near, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a)
    taken = values[np.clip(index, 0, len(values) - 1)]
    return np.einsum("nt,ntwc->nwc", weight.astype(np.float32), taken)


def inception_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
) -> np.ndarray:
    """Cuts a random rectangle and stretches it to a square: the crop of Szegedy et al. (2015).

    The area is uniform in `area` times the image's, the aspect ratio log-uniform from 3/4 to 4/3.
    After ten rectangles that do not fit, the largest central one of such a ratio is taken.

    >>> image = np.zeros((30, 40, 3), np.uint8)
    >>> inception_crop(image, np.random.default_rng(0), size=16).shape
    (16, 16, 3)
    """
    height, width = image.shape[:2]
    low, high = map(math.log, INCEPTION_ASPECT)
    for _ in range(10):
        target = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(low, high))
        h, w = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            window = image[top : top + h, left : left + w]
            break
    else:
        h = min(height, max(1, round(width / INCEPTION_ASPECT[0])))
        w = min(width, max(1, round(height * INCEPTION_ASPECT[1])))
        window = central(image, h, w)
    return resize(window, size, size, antialias=False)


def center_crop(image: np.ndarray, size: int, fraction: float = 0.875, **kernel: Any) -> np.ndarray:
    """Cuts the central square, `fraction` of the shorter side, and resizes it (see `resize`).

    With 0.875 = 224 / 256 it sees what resizing the shorter side to 256 and cutting 224 sees.

    >>> center_crop(np.zeros((100, 200, 3), np.uint8), 56).shape
    (56, 56, 3)
    """
    side = max(1, round(fraction * min(image.shape[:2])))
    return resize(central(image, side, side), size, size, **kernel)


def stretch_crop(
    image: np.ndarray, size: int, fraction: float = 0.875, **kernel: Any
) -> np.ndarray:
    """Cuts the central `fraction` of each side and stretches it to a square, as TF-slim does."""
    height, width = (max(1, round(fraction * side)) for side in image.shape[:2])
    return resize(central(image, height, width), size, size, **kernel)


def central(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cuts the central (height, width); an odd margin leaves the longer side at the end."""
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


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


def with_channels(image: np.ndarray, channels: int | None) -> np.ndarray:
    """Converts between gray and color, unless `channels` is None or what the image has.

    Gray is ITU-R 601 luma, rounded as Pillow does.

    >>> with_channels(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8), 1).ravel()
    array([ 76, 150,  29], dtype=uint8)
    """
    if channels is None or channels == image.shape[2]:
        return image
    if channels == 1:
        return np.asarray(Image.fromarray(image).convert("L"))[..., None]
    return np.repeat(image, channels, axis=2)


def flip(image: np.ndarray) -> np.ndarray:
    """Mirrors left and right.

    The result is contiguous: stacking mirrored views into a batch takes as long as decoding them.
    """
    cv2 = _cv2()
    if cv2 is not None:
        return cv2.flip(image, 1).reshape(image.shape)
    return np.ascontiguousarray(image[:, ::-1])


def pad_crop(image: np.ndarray, rng: np.random.Generator, pad: int = 4) -> np.ndarray:
    """Pads with zeros on all sides and cuts the old size at a random place: the CIFAR crop.

    >>> pad_crop(np.ones((8, 8, 1), np.uint8), np.random.default_rng(0), pad=2).shape
    (8, 8, 1)
    """
    height, width = image.shape[:2]
    top, left = rng.integers(2 * pad + 1, size=2)
    framed = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return framed[top : top + height, left : left + width]
