"""Random changes of color and shape, and the policies made of them.

Every operation on one image is `(image, ...) -> image` on uint8 (height, width, channels), and is
Pillow's but for `autocontrast`.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mnv2_jax.lab.data.image import apply_pillow

GRAY = 128
MAX_MAGNITUDE = 30

Operation = Callable[[np.ndarray, float], np.ndarray]


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with black: factor 0 is black, 1 the image, and what lies beyond is extrapolated.

    >>> brightness(np.array([[[100], [200]]], np.uint8), 1.5).ravel()
    array([150, 255], dtype=uint8)
    """
    return apply_pillow(image, lambda picture: ImageEnhance.Brightness(picture).enhance(factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the mean gray of the image."""
    return apply_pillow(image, lambda picture: ImageEnhance.Contrast(picture).enhance(factor))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the image's own gray; a gray image is returned as it is."""
    if image.shape[2] == 1:
        return image
    return apply_pillow(image, lambda picture: ImageEnhance.Color(picture).enhance(factor))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the smoothed image."""
    return apply_pillow(image, lambda picture: ImageEnhance.Sharpness(picture).enhance(factor))


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the highest bits of each value."""
    return apply_pillow(image, lambda picture: ImageOps.posterize(picture, bits))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Inverts the values from a threshold on."""
    return apply_pillow(image, lambda picture: ImageOps.solarize(picture, math.ceil(threshold)))


def equalize(image: np.ndarray) -> np.ndarray:
    """Spreads the values of each channel evenly by rank."""
    return apply_pillow(image, ImageOps.equalize)


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel to the full range; Pillow's rounds some values one lower."""
    stretched = image.copy()
    for channel in range(image.shape[2]):
        low, high = int(image[..., channel].min()), int(image[..., channel].max())
        if low < high:
            table = (np.arange(256) - low) * (255 / (high - low))
            stretched[..., channel] = np.clip(table, 0, 255).astype(np.uint8)[image[..., channel]]
    return stretched


def hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Turns the hue by a fraction of the circle, between -0.5 and 0.5; gray stays as it is."""
    if image.shape[2] == 1:
        return image
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 0] += np.uint8(round(shift * 255) % 256)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


def affine(image: np.ndarray, matrix: tuple[float, ...], fill: int = GRAY) -> np.ndarray:
    """Moves pixels by the inverse map (a, b, c, d, e, f) about the center; nearest neighbor.

    The value at (x, y) from the center comes from (a x + b y + c, d x + e y + f).
    """
    a, b, c, d, e, f = matrix
    height, width, channels = image.shape
    x, y = width / 2, height / 2
    about_center = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
    color = fill if channels == 1 else (fill,) * 3
    move = Image.Transform.AFFINE
    return apply_pillow(
        image,
        lambda picture: picture.transform((width, height), move, about_center, fillcolor=color),
    )


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


def color_jitter(image: np.ndarray, rng: np.random.Generator, strength: float = 0.4) -> np.ndarray:
    """Changes brightness, contrast and saturation in a random order.

    Each factor is uniform in [1 - strength, 1 + strength], and not negative.
    """
    operations = (brightness, contrast, saturation)
    # The fourth number is not used: without it every stream of augmented images would change.
    factors = rng.uniform(max(0.0, 1 - strength), 1 + strength, 4)
    for index in rng.permutation(len(operations)):
        image = operations[index](image, factors[index])
    return image


def photometric_distortion(
    image: np.ndarray, rng: np.random.Generator, strength: float = 0.5
) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each with a chance of one half.

    At strength 0.5 the ranges are those of SSD (arXiv 1512.02325): brightness ±32, contrast and
    saturation 0.5 to 1.5, hue ±18 degrees. Contrast comes before or after the other two.
    """
    shift = rng.uniform(-64, 64) * strength if rng.random() < 0.5 else 0.0
    more_contrast, more_saturation = (
        rng.uniform(max(0, 1 - strength), 1 + strength) if rng.random() < 0.5 else 1.0
        for _ in range(2)
    )
    turn = rng.uniform(-0.1, 0.1) * strength if rng.random() < 0.5 else 0.0
    contrast_first = rng.random() < 0.5
    if shift:
        image = (image.astype(np.float32) + shift).clip(0, 255).astype(np.uint8)
    if contrast_first:
        image = contrast(image, more_contrast)
    image = saturation(image, more_saturation)
    image = hue(image, turn) if turn else image  # the way to HSV and back is not exact
    return image if contrast_first else contrast(image, more_contrast)


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
