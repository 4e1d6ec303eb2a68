"""Random changes of color and shape, and the policies made of them.

Operations are `(picture, number) -> picture` on Pillow's images in gray or RGB; what draws them at
random is `(image, rng, ...) -> image` on uint8 (height, width, channels).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mnv2_jax.lab.data.image import apply_pillow
from mnv2_jax.lab.data.source import Pair, Rng

Picture = Image.Image
Operation = Callable[[Picture, float], Picture]
GRAY = 128
MAX_MAGNITUDE = 30


def enhance(kind: str, picture: Picture, factor: float) -> Picture:
    """Blends with a degenerate picture: 0 gives that one, 1 the picture, more goes beyond it.

    It is black for brightness, the mean gray for contrast, the picture's own gray for color
    (saturation) and a smoothed one for sharpness.
    """
    return getattr(ImageEnhance, kind)(picture).enhance(factor)


KINDS = ("Brightness", "Contrast", "Color", "Sharpness")
brightness, contrast, saturation, sharpness = (partial(enhance, kind) for kind in KINDS)


def hue(picture: Picture, shift: float) -> Picture:
    """Turns the hue by a fraction of the circle, between -0.5 and 0.5; gray stays as it is."""
    if picture.mode == "L":
        return picture
    hsv = np.array(picture.convert("HSV"))
    hsv[..., 0] += np.uint8(round(shift * 255) % 256)
    return Image.fromarray(hsv, "HSV").convert("RGB")


def autocontrast(picture: Picture) -> Picture:
    """Stretches each channel to the full range; Pillow's own rounds some values to one less."""
    values, tables = np.arange(256), []
    for low, high in np.reshape(picture.getextrema(), (-1, 2)).tolist():
        stretched = (values - low) * (255 / (high - low)) if low < high else values
        tables += np.clip(stretched, 0, 255).astype(np.uint8).tolist()
    return picture.point(tables)


def affine(picture: Picture, matrix: tuple[float, ...], fill: int = GRAY) -> Picture:
    """Takes pixel (x, y) from the center from (a x + b y + c, d x + e y + f) of it, the nearest."""
    a, b, c, d, e, f = matrix
    x, y = picture.width / 2, picture.height / 2
    about_center = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
    color = fill if picture.mode == "L" else (fill,) * 3
    return picture.transform(picture.size, Image.Transform.AFFINE, about_center, fillcolor=color)


def rotate(picture: Picture, degrees: float) -> Picture:
    """Rotates about the center, counterclockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return affine(picture, (cos, -sin, 0, sin, cos, 0))


# Ranges of the operations of RandAugment and TrivialAugment: (narrow, wide), from the two papers'
# code. The narrow shift is 150 of 331 pixels of the side.
NARROW, WIDE = 0, 1
TURN, SLANT, COLOR, BITS = (30, 135), (0.3, 0.99), (0.9, 0.99), (4, 6)


def policy_operations(space: int) -> Mapping[str, Operation]:
    """Gives the 14 operations of the two policies, of a signed strength in [-1, 1]."""
    turn, slant, color, bits = TURN[space], SLANT[space], COLOR[space], BITS[space]

    def shift(side: int, s: float) -> int:
        return round((32 if space == WIDE else 150 / 331 * side) * s)

    return {
        "identity": lambda p, s: p,
        "autocontrast": lambda p, s: autocontrast(p),
        "equalize": lambda p, s: ImageOps.equalize(p),
        "brightness": lambda p, s: brightness(p, 1 + color * s),
        "contrast": lambda p, s: contrast(p, 1 + color * s),
        "saturation": lambda p, s: saturation(p, 1 + color * s),
        "sharpness": lambda p, s: sharpness(p, 1 + color * s),
        "posterize": lambda p, s: ImageOps.posterize(p, 8 - round(bits * abs(s))),
        "solarize": lambda p, s: ImageOps.solarize(p, math.ceil(256 * (1 - abs(s)))),
        "rotate": lambda p, s: rotate(p, turn * s),
        "shear_x": lambda p, s: affine(p, (1, slant * s, 0, 0, 1, 0)),
        "shear_y": lambda p, s: affine(p, (1, 0, 0, slant * s, 1, 0)),
        "translate_x": lambda p, s: affine(p, (1, 0, shift(p.width, s), 0, 1, 0)),
        "translate_y": lambda p, s: affine(p, (1, 0, 0, 0, 1, shift(p.height, s))),
    }


_OPERATIONS = [tuple(policy_operations(space).values()) for space in (NARROW, WIDE)]


def _drawn(space: int, rng: Rng) -> tuple[Operation, int]:
    operation = _OPERATIONS[space][rng.integers(len(_OPERATIONS[space]))]
    return operation, 1 if rng.random() < 0.5 else -1


def rand_augment(
    image: np.ndarray, rng: Rng, count: int = 2, magnitude: float = 9, probability: float = 1.0
) -> np.ndarray:
    """Applies `count` random operations at one magnitude of 0 to 30 (Cubuk et al., 2020).

    Each is left out unless it meets its `probability`.
    """
    for _ in range(count):
        operation, sign = _drawn(NARROW, rng)
        if probability < 1 and rng.random() >= probability:
            continue
        image = apply_pillow(image, operation, sign * magnitude / MAX_MAGNITUDE)
    return image


def trivial_augment(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Applies one random operation at a random magnitude, wide space (Müller & Hutter, 2021)."""
    operation, sign = _drawn(WIDE, rng)
    return apply_pillow(image, operation, sign * rng.integers(MAX_MAGNITUDE + 1) / MAX_MAGNITUDE)


def color_jitter(image: np.ndarray, rng: Rng, strength: float = 0.4) -> np.ndarray:
    """Changes brightness, contrast and saturation by 1 ± strength at most, in a random order."""
    operations = (brightness, contrast, saturation)
    # The fourth number is not used: without it every stream of augmented images would change.
    factors = rng.uniform(max(0.0, 1 - strength), 1 + strength, 4)
    for index in rng.permutation(len(operations)):
        image = apply_pillow(image, operations[index], factors[index])
    return image


def photometric_distortion(image: np.ndarray, rng: Rng, strength: float = 0.5) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each with a chance of one half.

    At strength 0.5 the ranges are those of SSD (arXiv 1512.02325): brightness ±32, contrast and
    saturation 0.5 to 1.5, hue ±18 degrees. Contrast comes before or after the other two.
    """
    shift = rng.uniform(-64, 64) * strength if rng.random() < 0.5 else 0.0
    low, high = max(0, 1 - strength), 1 + strength
    contrasting = rng.uniform(low, high) if rng.random() < 0.5 else 1.0
    saturating = rng.uniform(low, high) if rng.random() < 0.5 else 1.0
    turn = rng.uniform(-0.1, 0.1) * strength if rng.random() < 0.5 else 0.0
    changes = [(saturation, saturating), (hue, turn)]
    changes.insert(0 if rng.random() < 0.5 else 2, (contrast, contrasting))
    if shift:
        image = (image.astype(np.float32) + shift).clip(0, 255).astype(np.uint8)
    for operation, number in changes:
        if number != (0 if operation is hue else 1):  # the way to HSV and back is not exact
            image = apply_pillow(image, operation, number)
    return image


def random_erasing(
    image: np.ndarray, rng: Rng, probability: float = 0.25, area: Pair = (0.02, 1 / 3)
) -> np.ndarray:
    """Fills a random rectangle of aspect 0.3 to 1 / 0.3 with noise (Zhong et al., 2020)."""
    if rng.random() >= probability:
        return image
    height, width, channels = image.shape
    for _ in range(10):
        target = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            noise, image = rng.integers(0, 256, (h, w, channels), np.uint8), image.copy()
            image[top : top + h, left : left + w] = noise
            break
    return image
