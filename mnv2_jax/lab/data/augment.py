"""Random changes of color and shape, and the policies made of them.

Every operation on one image is `(image, rng, ...) -> image` on uint8 (height, width, channels).
Per-pixel operations are look-up tables, so they cost one indexing whatever they compute.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

GRAY = 128
RED, GREEN, BLUE = 19595, 38470, 7471  # ITU-R 601 luma in 1/65536, as Pillow rounds it
MAX_MAGNITUDE = 30

Operation = Callable[[np.ndarray, float], np.ndarray]


def luma(image: np.ndarray) -> np.ndarray:
    """Weighs red, green and blue to gray: uint8 (h, w, 1).

    >>> luma(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)).ravel()
    array([ 76, 150,  29], dtype=uint8)
    """
    if image.shape[2] == 1:
        return image
    weights = np.array((RED, GREEN, BLUE), np.uint32)
    return ((image @ weights + (1 << 15)) >> 16).astype(np.uint8)[..., None]


def blend(other: np.ndarray | float, image: np.ndarray, factor: float) -> np.ndarray:
    """Goes from `other` at 0 through `image` at 1 and beyond: other + factor (image - other)."""
    other = np.asarray(other, np.float32)
    mixed = other + np.float32(factor) * (image.astype(np.float32) - other)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with black.

    >>> brightness(np.array([[[100], [200]]], np.uint8), 1.5).ravel()
    array([150, 255], dtype=uint8)
    """
    return blend(0, np.arange(256, dtype=np.uint8), factor)[image]


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the mean gray of the image."""
    mean = int(luma(image).mean() + 0.5)
    return blend(mean, np.arange(256, dtype=np.uint8), factor)[image]


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the image's own gray; a gray image is returned as it is."""
    return image if image.shape[2] == 1 else blend(luma(image), image, factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13, but for its border."""
    if min(image.shape[:2]) < 3:
        return image
    height, width = image.shape[0] - 2, image.shape[1] - 2
    pixels = image.astype(np.float32)
    total = 4 * pixels[1:-1, 1:-1]
    for top in range(3):
        for left in range(3):
            total += pixels[top : top + height, left : left + width]
    smooth = image.copy()
    smooth[1:-1, 1:-1] = (total / 13 + 0.5).astype(np.uint8)
    return blend(smooth, image, factor)


def hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Turns the hue by a fraction of the circle, between -0.5 and 0.5."""
    if image.shape[2] == 1:
        return image
    from PIL import Image

    hsv = np.asarray(Image.fromarray(image).convert("HSV")).copy()
    hsv[..., 0] += np.uint8(round(shift * 255) % 256)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the highest bits of each value."""
    return image & np.uint8(256 - (1 << (8 - bits)))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Inverts the values from a threshold on."""
    values = np.arange(256)
    return np.where(values < threshold, values, 255 - values).astype(np.uint8)[image]


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel to the full range."""
    stretched = image.copy()
    for channel in range(image.shape[2]):
        low, high = int(image[..., channel].min()), int(image[..., channel].max())
        if low < high:
            table = (np.arange(256) - low) * (255 / (high - low))
            stretched[..., channel] = np.clip(table, 0, 255).astype(np.uint8)[image[..., channel]]
    return stretched


def equalize(image: np.ndarray) -> np.ndarray:
    """Spreads the values of each channel evenly by rank."""
    spread = image.copy()
    for channel in range(image.shape[2]):
        histogram = np.bincount(image[..., channel].ravel(), minlength=256)
        occupied = histogram[histogram > 0]
        step = (histogram.sum() - occupied[-1]) // 255
        if len(occupied) > 1 and step:
            before = np.cumsum(histogram) - histogram
            table = np.minimum((step // 2 + before) // step, 255).astype(np.uint8)
            spread[..., channel] = table[image[..., channel]]
    return spread


def affine(image: np.ndarray, matrix: tuple[float, ...], fill: int = GRAY) -> np.ndarray:
    """Moves pixels by the inverse map (a, b, c, d, e, f) about the center; nearest neighbour.

    The value at (x, y) from the center comes from (a x + b y + c, d x + e y + f).
    """
    from PIL import Image

    a, b, c, d, e, f = matrix
    x, y = image.shape[1] / 2, image.shape[0] / 2
    about_center = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
    gray = image.shape[2] == 1
    whole = Image.fromarray(image[..., 0] if gray else image)
    moved = whole.transform(
        whole.size, Image.Transform.AFFINE, about_center, fillcolor=fill if gray else (fill,) * 3
    )
    return np.asarray(moved).reshape(image.shape)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates about the center, anticlockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return affine(image, (cos, -sin, 0, sin, cos, 0))


# Operations of RandAugment and TrivialAugment at a signed strength in [-1, 1]. Those without a
# direction use its size. Ranges: (narrow, wide), from the two papers' code.
NARROW, WIDE = 0, 1
RANGES = {"turn": (30, 135), "slant": (0.3, 0.99), "color": (0.9, 0.99), "bits": (4, 6)}


def _translation(image: np.ndarray, side: int, space: int) -> float:
    return 32 if space == WIDE else 150 / 331 * image.shape[side]


def policy_operations(space: int) -> Mapping[str, Operation]:
    """Gives the 14 operations of the two policies, each `(image, strength) -> image`."""
    turn, slant, color, bits = (RANGES[key][space] for key in ("turn", "slant", "color", "bits"))
    return {
        "identity": lambda image, s: image,
        "autocontrast": lambda image, s: autocontrast(image),
        "equalize": lambda image, s: equalize(image),
        "brightness": lambda image, s: brightness(image, 1 + color * s),
        "contrast": lambda image, s: contrast(image, 1 + color * s),
        "saturation": lambda image, s: saturation(image, 1 + color * s),
        "sharpness": lambda image, s: sharpness(image, 1 + color * s),
        "posterize": lambda image, s: posterize(image, 8 - round(bits * abs(s))),
        "solarize": lambda image, s: solarize(image, 256 * (1 - abs(s))),
        "rotate": lambda image, s: rotate(image, turn * s),
        "shear_x": lambda image, s: affine(image, (1, slant * s, 0, 0, 1, 0)),
        "shear_y": lambda image, s: affine(image, (1, 0, 0, slant * s, 1, 0)),
        "translate_x": lambda image, s: affine(
            image, (1, 0, round(_translation(image, 1, space) * s), 0, 1, 0)
        ),
        "translate_y": lambda image, s: affine(
            image, (1, 0, 0, 0, 1, round(_translation(image, 0, space) * s))
        ),
    }


_NARROW_OPERATIONS = tuple(policy_operations(NARROW).values())
_WIDE_OPERATIONS = tuple(policy_operations(WIDE).values())


def rand_augment(
    image: np.ndarray, rng: np.random.Generator, count: int = 2, magnitude: float = 9
) -> np.ndarray:
    """Applies `count` random operations at one magnitude of 0 to 30 (Cubuk et al., 2020)."""
    for _ in range(count):
        operation = _NARROW_OPERATIONS[rng.integers(len(_NARROW_OPERATIONS))]
        sign = 1 if rng.random() < 0.5 else -1
        image = operation(image, sign * magnitude / MAX_MAGNITUDE)
    return image


def trivial_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Applies one random operation at a random magnitude, wide space (Müller & Hutter, 2021)."""
    operation = _WIDE_OPERATIONS[rng.integers(len(_WIDE_OPERATIONS))]
    sign = 1 if rng.random() < 0.5 else -1
    return operation(image, sign * rng.integers(MAX_MAGNITUDE + 1) / MAX_MAGNITUDE)


def color_jitter(
    image: np.ndarray,
    rng: np.random.Generator,
    strength: float = 0.4,
    hue_strength: float = 0.0,
) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue in a random order.

    Each factor is uniform in [1 - strength, 1 + strength], and not negative; the hue turns by at
    most `hue_strength` of the circle.
    """
    low = max(0.0, 1 - strength)
    operations = (brightness, contrast, saturation, hue)
    factors = [*rng.uniform(low, 1 + strength, 3), rng.uniform(-hue_strength, hue_strength)]
    for index in rng.permutation(len(operations) if hue_strength else len(operations) - 1):
        image = operations[index](image, factors[index])
    return image


def random_erasing(
    image: np.ndarray,
    rng: np.random.Generator,
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> np.ndarray:
    """Fills a random rectangle with random pixels (Zhong et al., 2020)."""
    if rng.random() >= probability:
        return image
    height, width, channels = image.shape
    for _ in range(10):
        target = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            erased = image.copy()
            noise = rng.integers(0, 256, (h, w, channels), np.uint8)
            erased[top : top + h, left : left + w] = noise
            return erased
    return image
