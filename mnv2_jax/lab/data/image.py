"""One image at a time: decoding, resizing, cropping, padding and flipping, in numpy.

An image is uint8 (height, width, channels) with 1 or 3 channels. What draws at random takes the
generator second, `(image, rng, ...)`, and depends on nothing else.
"""

import contextlib
import functools
import importlib
import io
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from mnv2_jax.errors import first_line
from mnv2_jax.lab.data.source import BadRecord, Pair, Rng

LARGE = 1 << 25  # pixels that are read as they are; of more, a half or a quarter of each side
ALONE = 1 << 23  # what has more pixels is decoded by one thread at a time
# Formats and the most pixels that are decoded within 450 MB; none of them calls other programs.
# JPEG is made smaller while it is decoded, WebP takes 14 bytes a pixel.
FORMATS: Mapping[str, int] = {
    "JPEG": 1 << 28, "WEBP": 3 << 23,
    **dict.fromkeys(("PNG", "BMP", "GIF", "PPM", "TIFF"), 1 << 26),
}  # fmt: skip
PROGRESSIVE = 3 << 26  # the most numbers in a JPEG that is in memory before it is decoded
LABEL_FORMATS = {name: FORMATS[name] for name in ("PNG", "TIFF", "BMP")}
MEAN_PIXEL = 127  # which the authors pad segmenters' images with, 0 in their input range
ORIENTATIONS = (b"Exif\0\0", b"tiff:Orientation")  # one of them is in a JPEG that may lie
INCEPTION_ASPECT = (3 / 4, 4 / 3)  # width over height
KEYS_CUBIC_A = -0.5  # as Pillow's and TensorFlow's bicubic
METHODS = ("bilinear", "bicubic", "nearest")
_large = threading.Lock()


@functools.cache
def _optional(module: str) -> Any:
    """Imports a faster decoder or resizer; None if it is not installed."""
    with contextlib.suppress(ImportError):
        found = importlib.import_module(module)
        if module == "cv2":
            found.setNumThreads(1)  # the pipeline has its own threads
        return found


def decode(data: bytes, name: str, channels: int = 3, orient: bool = True) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP, BMP, GIF (its first frame), PPM or TIFF image.

    CMYK, palette and 16-bit images are converted, transparency is dropped. JPEG goes through
    simplejpeg where it is installed and the file is flawless, everything else through Pillow; both
    use libjpeg-turbo and give the same pixels. A large picture is read smaller, see `read_size`.
    With `orient` it is turned upright by its EXIF or XMP tag, which the reference pipelines for
    ImageNet do not do. `BadRecord` of this name for a file that is empty, damaged, of another
    format or, by its header and before any memory is set aside, larger than `FORMATS` allows.
    """
    if not data:
        raise BadRecord(name, "the file is empty")
    if data[:2] == b"\xff\xd8" and not (orient and any(tag in data for tag in ORIENTATIONS)):
        pixels = _decode_jpeg(data, channels)
        if pixels is not None:
            return pixels
    with _opened(data, name, FORMATS) as picture:
        if picture.mode in ("I", "F"):
            raise BadRecord(name, f"pixels of mode {picture.mode} have no known range")
        pixels = _pixels(picture, "RGB" if channels == 3 else "L")
        turn = _orientation(picture) if orient else 1
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    if turn > 1:
        pixels = pixels[:: -1 if turn in (3, 4, 6, 7) else 1, :: -1 if turn in (2, 3, 7, 8) else 1]
        pixels = np.ascontiguousarray(pixels if turn < 5 else pixels.swapaxes(0, 1))
    return pixels


def decode_labels(data: bytes, name: str) -> np.ndarray:
    """Decodes a label map, (h, w) uint8: a gray picture or the indices of a palette."""
    with _opened(data, name, LABEL_FORMATS) as picture:
        if picture.mode not in ("P", "L"):
            raise BadRecord(name, f"a picture of mode {picture.mode} is not a label map")
        labels = np.array(picture)
    return resize(labels[..., None], *read_size(*labels.shape), "nearest")[..., 0]


def read_size(height: int, width: int) -> tuple[int, int]:
    """Returns the size in which a picture is read: its own, or that of a half, quarter, eighth.

    >>> read_size(3000, 4000), read_size(9000, 12001)
    ((3000, 4000), (4500, 6001))
    """
    factor = _factor(height, width)
    return -(-height // factor), -(-width // factor)


def _factor(height: int, width: int) -> int:
    return next(f for f in (1, 2, 4, 8, 16, 32) if height * width <= LARGE * f * f)


@contextlib.contextmanager
def _opened(data: bytes, name: str, formats: Mapping[str, int]) -> Iterator[Image.Image]:
    """Opens a picture that is not too large; whatever goes wrong in the block is a `BadRecord`."""
    try:
        format_, picture = _identified(data, formats)
        with picture:
            pixels, limit = picture.height * picture.width, formats[format_]
            if picture.info.get("progressive"):
                sizes = [across * down for _, across, down, _ in picture.layer]  # pyright: ignore
                format_, limit = "progressive JPEG", PROGRESSIVE * max(sizes) // sum(sizes)
            if not 0 < pixels <= limit:
                size = f"{picture.width}x{picture.height} pixels, {pixels / 1e6:.1f} megapixels"
                limits = f"the limit is {limit / 1e6:.1f} for {format_}: make it smaller"
                raise BadRecord(name, f"is a picture of {size}; {limits}")
            with _large if pixels > ALONE else contextlib.nullcontext():
                yield picture
    except BadRecord:
        raise
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise BadRecord(name, f"cannot be decoded ({first_line(error)})") from error


def _identified(data: bytes, formats: Iterable[str]) -> tuple[str, Image.Image]:
    """Opens as `Image.open` does, without its limit, which is one for the whole process."""
    Image.init()
    for name in formats:
        factory, accepts = Image.OPEN[name]
        if accepts is None or accepts(data[:16]) is True:
            return name, factory(io.BytesIO(data), "")
    raise ValueError("not an image of a known format")


def _orientation(picture: Image.Image) -> int:
    """Returns how a picture has to be turned, 1 to 8; 1 where its tags are damaged."""
    try:
        turn = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises anything on damaged tags
        return 1
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _pixels(picture: Image.Image, mode: str) -> np.ndarray:
    """Converts a picture by strips, so that little is in memory twice, and makes it smaller."""
    size, factor = picture.size, _factor(*picture.size)
    picture.draft(None, (max(1, size[0] // factor), max(1, size[1] // factor)))  # for JPEG
    factor = factor if picture.size == size else 1
    picture.load()
    width, height = picture.size  # of TIFF, once it is turned by its tag, which loading does
    rows = factor * max(1, (1 << 22) // (width * factor))
    bands = (3,) if mode == "RGB" else ()
    pixels = np.empty((-(-height // factor), -(-width // factor), *bands), np.uint8)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        strip = picture if rows >= height else picture.crop(box)
        if strip.mode.startswith("I;16"):
            strip = Image.fromarray((np.asarray(strip) >> 8).astype(np.uint8))
        strip = strip.convert(mode)
        into = pixels[top // factor : -(-box[3] // factor)]
        into[...] = strip.reduce(factor) if factor > 1 else strip
    return pixels


def _decode_jpeg(data: bytes, channels: int) -> np.ndarray | None:
    """Decodes with simplejpeg; None if it is absent, refuses the file, or the file is large."""
    if not (simplejpeg := _optional("simplejpeg")):
        return None
    with contextlib.suppress(ValueError):
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        unlike = colorspace in ("CMYK", "YCCK") or (channels == 1 and colorspace != "Gray")
        if not unlike and _factor(int(height), int(width)) == 1:
            return simplejpeg.decode_jpeg(data, colorspace="RGB" if channels == 3 else "GRAY")


def apply_pillow(
    image: np.ndarray, operation: Callable[..., Image.Image], *arguments: Any
) -> np.ndarray:
    """Applies `operation(picture, *arguments)` to an array of 1 or 3 channels, and keeps them."""
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture = operation(picture, *arguments)
    return np.asarray(picture).reshape(picture.height, picture.width, image.shape[2])


def resize(
    image: np.ndarray, height: int, width: int, method: str = "bilinear", antialias: bool = True
) -> np.ndarray:
    """Resizes to (height, width), with pixel centers at half-integers.

    With `antialias` the kernel widens when shrinking, as in Pillow and `jax.image.resize`; without,
    its support is fixed, as in `tf.image.resize` and OpenCV, which is nine times faster and gives
    another sharpness.
    """
    if image.shape[:2] == (height, width):
        return image
    if method == "nearest":
        rows = ((np.arange(height) + 0.5) * (image.shape[0] / height)).astype(np.int64)
        columns = ((np.arange(width) + 0.5) * (image.shape[1] / width)).astype(np.int64)
        return image[rows[:, None], columns]
    if antialias:
        kernel = getattr(Image.Resampling, method.upper())
        return apply_pillow(image, Image.Image.resize, (width, height), kernel)
    cv2 = _optional("cv2")
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


def inception_crop(image: np.ndarray, rng: Rng, size: int, area: Pair = (0.08, 1)) -> np.ndarray:
    """Cuts a random rectangle and stretches it to a square: the crop of Szegedy et al. (2015).

    The area is uniform in `area` times the image's, the aspect ratio log-uniform from 3/4 to 4/3.
    After ten rectangles that do not fit, the largest central one of such a ratio is taken.
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


def center_crop(image: np.ndarray, size: int, fraction: float, **kernel: Any) -> np.ndarray:
    """Cuts the central square, `fraction` of the shorter side, and resizes it (see `resize`).

    With 0.875 = 224 / 256 it sees what resizing the shorter side to 256 and cutting 224 sees.
    """
    side = max(1, round(fraction * min(image.shape[:2])))
    return resize(central(image, side, side), size, size, **kernel)


def stretch_crop(image: np.ndarray, size: int, fraction: float, **kernel: Any) -> np.ndarray:
    """Cuts the central `fraction` of each side and stretches it to a square, as TF-slim does."""
    height, width = (max(1, round(fraction * side)) for side in image.shape[:2])
    return resize(central(image, height, width), size, size, **kernel)


def central(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cuts the central (height, width); an odd margin leaves the longer side at the end."""
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def fitted(shape: Sequence[int], size: int) -> tuple[int, int]:
    """Returns (height, width), shrunk where the longer one exceeds `size`."""
    factor = min(1.0, size / max(shape[:2]))
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def padded(array: np.ndarray, size: int, fill: int) -> np.ndarray:
    """Fills up below and right to at least `size` in both directions."""
    missing = [(0, max(0, size - n)) for n in array.shape[:2]]
    return np.pad(array, [*missing, *[(0, 0)] * (array.ndim - 2)], constant_values=fill)


def with_channels(image: np.ndarray, channels: int | None) -> np.ndarray:
    """Converts between color and gray (ITU-R 601 luma), unless `channels` is None or as it is."""
    if channels in (None, image.shape[2]):
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def flip(image: np.ndarray) -> np.ndarray:
    """Mirrors left and right; contiguous, for stacking mirrored views takes as long as decoding."""
    cv2 = _optional("cv2")
    return cv2.flip(image, 1).reshape(image.shape) if cv2 else np.ascontiguousarray(image[:, ::-1])


def pad_crop(image: np.ndarray, rng: Rng, pad: int = 4) -> np.ndarray:
    """Pads with zeros on all sides and cuts the old size at a random place: the CIFAR crop."""
    height, width = image.shape[:2]
    top, left = rng.integers(2 * pad + 1, size=2)
    return np.pad(image, ((pad, pad), (pad, pad), (0, 0)))[top : top + height, left : left + width]
