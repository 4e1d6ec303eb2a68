"""Pipelines of one record: names and numbers, as a config states them, to one function.

`train_transform(**config)` and `eval_transform(**config)` return `(record, rng) -> record`. They
change `record["image"]` and pass everything else on. Pixels stay uint8: the network's dialect
scales them on the device, and a quarter of the bytes travels there.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.lab.data import augment, image

Transform = Callable[[dict, np.random.Generator], dict]
Step = Callable[[np.ndarray, np.random.Generator], np.ndarray]

CROPS = ("inception", "pad", "none")
POLICIES = ("none", "rand_augment", "trivial_augment")
EVAL_CROPS = {"center": image.center_crop, "stretch": image.stretch_crop}


def train_transform(
    size: int,
    crop: str = "inception",
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    pad: int = 4,
    method: str = "bilinear",
    antialias: bool = False,
    flip: float = 0.5,
    color: float = 0.0,
    hue: float = 0.0,
    policy: str = "none",
    policy_count: int = 2,
    policy_magnitude: float = 9.0,
    erasing: float = 0.0,
    channels: int | None = None,
) -> Transform:
    """Composes the training transform: crop, flip, policy, color, erasing, channels.

    >>> record = {"image": np.zeros((30, 40, 3), np.uint8), "label": 1}
    >>> train_transform(16)(record, np.random.default_rng(0))["image"].shape
    (16, 16, 3)

    Args:
        size: height and width of the result.
        crop: "inception" (a random rectangle, stretched), "pad" (padding by `pad`, then a random
            window; images of another size are resized first) or "none" (resized only).
        area: the rectangle's share of the image, for "inception".
        aspect: the rectangle's width over height, for "inception".
        pad: pixels on each side, for "pad".
        method: "bilinear", "bicubic" or "nearest".
        antialias: widens the kernel when shrinking; sharper scores, and half the speed.
        flip: probability of mirroring left and right; 0 for digits.
        color: strength of brightness, contrast and saturation changes; slim and torchvision 0.4.
        hue: the largest turn of the hue, as a fraction of the circle.
        policy: "none", "rand_augment" or "trivial_augment".
        policy_count: operations of "rand_augment".
        policy_magnitude: their magnitude, 0 to 30.
        erasing: probability of random erasing.
        channels: 1 or 3 to convert to; by default as the image comes.

    Raises:
        UsageError: a name that is in no table or a number out of its range.
    """
    _check_size(size, channels)
    _check_method(method)
    _check_share(flip=flip, erasing=erasing, hue=2 * hue)
    if not 0 < area[0] <= area[1] <= 1 or not 0 < aspect[0] <= aspect[1]:
        raise UsageError(f"area {area} must rise within (0, 1] and aspect {aspect} from above 0.")
    if min(pad, color, policy_count) < 0 or not 0 <= policy_magnitude <= augment.MAX_MAGNITUDE:
        raise UsageError(
            f"pad {pad}, color {color} and policy_count {policy_count} must not be negative, and "
            f"policy_magnitude {policy_magnitude} must lie in 0 to {augment.MAX_MAGNITUDE}."
        )
    if crop not in CROPS:
        raise unknown("training crop", crop, CROPS)
    if policy not in POLICIES:
        raise unknown("augmentation policy", policy, POLICIES)
    kernel = {"size": size, "method": method, "antialias": antialias}
    resize = functools.partial(_resized, **kernel)
    cuts = {
        "inception": [
            functools.partial(image.inception_crop, area=area, aspect=aspect, **kernel),
        ],
        "pad": [resize, functools.partial(image.pad_crop, pad=pad)],
        "none": [resize],
    }
    policies = {
        "none": identity,
        "rand_augment": functools.partial(
            augment.rand_augment, count=policy_count, magnitude=policy_magnitude
        ),
        "trivial_augment": augment.trivial_augment,
    }
    jitter = functools.partial(augment.color_jitter, strength=color, hue_strength=hue)
    steps = (
        *cuts[crop],
        functools.partial(image.random_flip, probability=flip) if flip else identity,
        policies[policy],
        jitter if color or hue else identity,
        functools.partial(augment.random_erasing, probability=erasing) if erasing else identity,
    )
    return compose(steps, channels)


def identity(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes nothing: the step that stands for one left out."""
    del rng
    return pixels


def eval_transform(
    size: int,
    crop: str = "center",
    fraction: float = 0.875,
    method: str = "bilinear",
    antialias: bool = True,
    channels: int | None = None,
) -> Transform:
    """Composes the evaluation transform, which draws nothing at random.

    >>> record = {"image": np.zeros((30, 40, 3), np.uint8), "label": 1}
    >>> eval_transform(24)(record, None)["image"].shape
    (24, 24, 3)

    Args:
        size: height and width of the result.
        crop: "center" (the central square), "stretch" (the central share of each side, stretched,
            as TF-slim evaluates) or "none" (the whole image, stretched).
        fraction: the share of the side, for "center" and "stretch".
        method: "bilinear", "bicubic" or "nearest".
        antialias: widens the kernel when shrinking.
        channels: 1 or 3 to convert to; by default as the image comes.
    """
    _check_size(size, channels)
    _check_method(method)
    if not 0 < fraction <= 1:
        raise UsageError(f"fraction {fraction} must lie above 0 and at most at 1.")
    if crop == "none":
        step = functools.partial(_resized, size=size, method=method, antialias=antialias)
        return compose([step], channels)
    if crop not in EVAL_CROPS:
        raise unknown("evaluation crop", crop, [*EVAL_CROPS, "none"])
    cut = functools.partial(
        EVAL_CROPS[crop], size=size, fraction=fraction, method=method, antialias=antialias
    )
    return compose([functools.partial(_cut, cut)], channels)


def compose(steps: Sequence[Step], channels: int | None = None) -> Transform:
    """Chains steps on the image into one transform of a record, which pickles if they do."""
    return functools.partial(_apply, tuple(steps), channels)


def _apply(
    steps: tuple[Step, ...], channels: int | None, record: dict, rng: np.random.Generator
) -> dict:
    pixels = record["image"]
    for step in steps:
        pixels = step(pixels, rng)
    return record | {"image": with_channels(pixels, channels)}


def _cut(cut: Callable[..., np.ndarray], pixels: np.ndarray, rng: np.random.Generator):
    """Applies a crop that draws nothing."""
    del rng
    return cut(pixels)


def _resized(
    pixels: np.ndarray, rng: np.random.Generator, size: int, method: str, antialias: bool
) -> np.ndarray:
    del rng
    return image.resize(pixels, size, size, method, antialias)


def with_channels(pixels: np.ndarray, channels: int | None) -> np.ndarray:
    """Converts between gray and color, if it has to."""
    if channels is None or channels == pixels.shape[2]:
        return pixels
    return augment.luma(pixels) if channels == 1 else np.repeat(pixels, channels, axis=2)


def _check_size(size: int, channels: int | None) -> None:
    if size < 1 or channels not in (None, 1, 3):
        raise UsageError(f"size {size} must be at least 1, and channels {channels} 1, 3 or None.")


def _check_method(method: str) -> None:
    if method not in image.METHODS:
        raise unknown("resize method", method, image.METHODS)


def _check_share(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UsageError(f"{name} {share} must lie between 0 and 1.")
