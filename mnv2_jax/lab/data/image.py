"""One image at a time: decoding, resizing, cropping and flipping, in numpy.

An image is uint8 (height, width, channels) with 1 or 3 channels. Random transforms take the random
generator second, `(image, rng, ...)`, and depend on nothing else.
"""

import functools
import io
import math

import numpy as np

from mnv2_jax.errors import UsageError, first_line, unknown
from mnv2_jax.lab.data.record import BadRecord

MAX_PIXELS = 1 << 26  # 67 megapixels: 200 MB as RGB, in each thread
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # none that calls other programs
EXIF_WITHIN = 4096  # the tag's segment comes first in the file, or after the JFIF header
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
    image = _decode_jpeg(data, name, channels) if data[:2] == b"\xff\xd8" else None
    if image is not None and not (orient and data.find(b"Exif\0\0", 0, EXIF_WITHIN) >= 0):
        return image
    try:
        return _decode_with_pillow(data, name, channels, orient)
    except BadRecord:
        raise
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        reason = first_line(error)
        if "cannot identify image file" in reason:  # it goes on with an address in memory
            reason = "no image of a known format"
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


def _decode_with_pillow(data: bytes, name: str, channels: int, orient: bool) -> np.ndarray:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(name, image.height, image.width)
        if orient:
            image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F"):
            raise BadRecord(name, f"pixels of mode {image.mode} have no known range")
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def resize(
    image: np.ndarray,
    height: int,
    width: int,
    method: str = "bilinear",
    antialias: bool = True,
) -> np.ndarray:
    """Resizes to (height, width), with pixel centers at half-integers.

    With `antialias` the kernel widens when shrinking, as in Pillow and `jax.image.resize`; without,
    it has a fixed support, as in `tf.image.resize` and OpenCV: nine times faster (0.14 against
    1.28 ms from 350x300 to 224x224), and of another sharpness.
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
        return _resize_with_pillow(image, height, width, method)
    cv2 = _cv2()
    if cv2 is not None and method == "bilinear":
        resized = cv2.resize(image, (width, height))
        return resized.reshape(height, width, image.shape[2])
    vertical = _interpolation(image.shape[0], height, method)
    horizontal = _interpolation(image.shape[1], width, method)
    rows = _interpolate(image.astype(np.float32), *vertical)
    resized = _interpolate(rows.swapaxes(0, 1), *horizontal).swapaxes(0, 1)
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


def _resize_with_pillow(image: np.ndarray, height: int, width: int, method: str) -> np.ndarray:
    from PIL import Image

    resample = getattr(Image.Resampling, method.upper())
    whole = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    resized = np.asarray(whole.resize((width, height), resample))
    return resized.reshape(height, width, image.shape[2])


def _interpolation(size: int, new_size: int, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Gives the source indices and weights, (new_size, taps) each, of a kernel of fixed support."""
    center = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    taps = np.arange(0, 2) if method == "bilinear" else np.arange(-1, 3)
    index = np.floor(center).astype(np.int64)[:, None] + taps
    x = np.abs(center[:, None] - index)
    if method == "bilinear":
        weight = 1 - x
    else:
        a = KEYS_CUBIC_A
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        weight = np.where(x <= 1, near, far)
    return np.clip(index, 0, size - 1), weight.astype(np.float32)


def _interpolate(values: np.ndarray, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Sums the taps along the first axis."""
    return np.einsum("nt,ntwc->nwc", weight, values[index])


def inception_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    method: str = "bilinear",
    antialias: bool = False,
) -> np.ndarray:
    """Cuts a random rectangle and stretches it to a square: the crop of Szegedy et al. (2015).

    The area is uniform in `area` times the image's, the aspect ratio log-uniform in `aspect`. After
    ten rectangles that do not fit, the largest central one within `aspect` is taken.

    >>> image = np.zeros((30, 40, 3), np.uint8)
    >>> inception_crop(image, np.random.default_rng(0), size=16).shape
    (16, 16, 3)
    """
    height, width = image.shape[:2]
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(10):
        target = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(low, high))
        h, w = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            break
    else:
        h = min(height, max(1, round(width / aspect[0])))
        w = min(width, max(1, round(height * aspect[1])))
        top, left = (height - h) // 2, (width - w) // 2
    return resize(image[top : top + h, left : left + w], size, size, method, antialias)


def center_crop(
    image: np.ndarray,
    size: int,
    fraction: float = 0.875,
    method: str = "bilinear",
    antialias: bool = True,
) -> np.ndarray:
    """Cuts the central square, `fraction` of the shorter side, and resizes it.

    With 0.875 = 224 / 256 it sees what resizing the shorter side to 256 and cutting 224 sees.

    >>> center_crop(np.zeros((100, 200, 3), np.uint8), 56).shape
    (56, 56, 3)
    """
    side = max(1, round(fraction * min(image.shape[:2])))
    return resize(central(image, side, side), size, size, method, antialias)


def stretch_crop(
    image: np.ndarray,
    size: int,
    fraction: float = 0.875,
    method: str = "bilinear",
    antialias: bool = True,
) -> np.ndarray:
    """Cuts the central `fraction` of each side and stretches it to a square, as TF-slim does."""
    height, width = (max(1, round(fraction * side)) for side in image.shape[:2])
    return resize(central(image, height, width), size, size, method, antialias)


def central(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cuts the central (height, width); an odd margin leaves the longer side at the end."""
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def resize_shorter(
    image: np.ndarray, size: int, method: str = "bilinear", antialias: bool = True
) -> np.ndarray:
    """Resizes to a shorter side of `size`, keeping the aspect ratio.

    >>> resize_shorter(np.zeros((30, 40, 3), np.uint8), 60).shape
    (60, 80, 3)
    """
    scale = size / min(image.shape[:2])
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    return resize(image, height, width, method, antialias)


def random_flip(
    image: np.ndarray, rng: np.random.Generator, probability: float = 0.5
) -> np.ndarray:
    """Mirrors left and right with a probability.

    The result is contiguous: stacking mirrored views into a batch takes as long as decoding them.
    """
    if rng.random() >= probability:
        return image
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
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return padded[top : top + height, left : left + width]
