"""Transforms of one record: names and numbers, as a config states them, to one function.

Every function here returns a `source.Transform`, `(record, rng) -> record`, composed of `steps`.
Those of a classifier change `record["image"]` and pass everything else on; those of a detector or
segmenter (Sec. 6.2 and 6.3) move boxes and label maps along with the pixels. Pixels stay uint8: the
network's dialect scales them on the device, and a quarter of the bytes travels there.

All of them take `size`, the height and width of the result; `flip`, the probability of mirroring
left and right; and `channels`, 1 or 3 to convert to, by default as the image comes. They raise
`UsageError` for an unknown name; the range of a number is the configuration's to check.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np

from mnv2_jax.errors import unknown
from mnv2_jax.lab.data import augment, image, steps
from mnv2_jax.lab.data.source import Pair, Transform

POLICIES = {
    "rand_augment": augment.rand_augment,
    # Of two operations each is made with a chance of one half, as TensorFlow's models have it.
    "rand_augment_half": partial(augment.rand_augment, probability=0.5),
    "trivial_augment": augment.trivial_augment,
}


def train_transform(
    size: int, crop: str = "inception", area: Pair = (0.08, 1.0), pad: int = 4, flip: float = 0.5,
    color: float = 0.0, policy: str = "none", erasing: float = 0.0, channels: int | None = None,
) -> Transform:  # fmt: skip
    """Composes the training transform of a classifier: crop, flip, policy, color, erasing.

    The crop is "inception" (a random rectangle with a share of the image in `area`, stretched),
    "pad" (padding by `pad` pixels, then a random window; images of another size are resized first)
    or "none" (resized only). `color` is the strength of changes of brightness, contrast and
    saturation, 0.4 in slim and torchvision; `erasing` the probability of random erasing.
    """
    _check("training crop", crop, ("inception", "pad", "none"))
    _check("augmentation policy", policy, ("none", *POLICIES))
    return _compose(
        channels,
        steps.random(image.inception_crop, size=size, area=area) if crop == "inception" else None,
        partial(steps.resize, size=size) if crop != "inception" else None,
        steps.random(image.pad_crop, pad=pad) if crop == "pad" else None,
        partial(steps.flip, probability=flip) if flip else None,
        steps.random(POLICIES[policy]) if policy in POLICIES else None,
        steps.random(augment.color_jitter, strength=color) if color else None,
        steps.random(augment.random_erasing, probability=erasing) if erasing else None,
    )


def eval_transform(
    size: int, crop: str = "center", fraction: float = 0.875, method: str = "bilinear",
    antialias: bool = True, channels: int | None = None,
) -> Transform:  # fmt: skip
    """Composes the evaluation transform of a classifier, which draws nothing at random.

    The crop is "center" (the central square, a `fraction` of the shorter side), "stretch" (the
    central `fraction` of each side, stretched, as TF-slim evaluates) or "none" (the whole image,
    stretched). `method` and `antialias` are those of `image.resize`.

    >>> eval_transform(24)({"image": np.zeros((30, 40, 3), np.uint8)}, None)["image"].shape
    (24, 24, 3)
    """
    _check("evaluation crop", crop, ("center", "stretch", "none"))
    _check("resize method", method, image.METHODS)
    kernel = {"size": size, "method": method, "antialias": antialias}
    cuts = {
        "center": steps.fixed(image.center_crop, fraction=fraction, **kernel),
        "stretch": steps.fixed(image.stretch_crop, fraction=fraction, **kernel),
        "none": partial(steps.resize, **kernel),
    }
    return _compose(channels, cuts[crop])


def detection_train(
    size: int, max_objects: int, crop: str = "ssd", area: Pair = (0.1, 1.0), flip: float = 0.5,
    color: float = 0.0, channels: int | None = None,
) -> Transform:  # fmt: skip
    """Composes SSD's training transform: crop, photometric distortion, resize, flip.

    There are `max_objects` rows of `boxes` and `classes`; of more objects the largest are kept. The
    crop is "ssd" (`steps.ssd_crop`, with a share of the image in `area`) or "none"; `color` is the
    strength of `augment.photometric_distortion`, 0.5 for SSD and 0 for the authors' detectors.
    """
    _check("training crop for detection", crop, ("ssd", "none"))
    return _compose(
        channels, partial(steps.select_objects, crowds=False),
        partial(steps.ssd_crop, area=area) if crop == "ssd" else None,
        steps.random(augment.photometric_distortion, strength=color) if color else None,
        partial(steps.resize, size=size), partial(steps.flip, probability=flip),
        partial(steps.pad_objects, rows=max_objects),
    )  # fmt: skip


def detection_eval(
    size: int, max_objects: int, crop: str = "none", channels: int | None = None
) -> Transform:
    """Composes the evaluation transform of a detector: the whole image, stretched.

    Crowds stay among the objects, for the evaluation to know where nothing counts.
    """
    _check("evaluation crop for detection", crop, ("none",))
    select, pad = partial(steps.select_objects, crowds=True), steps.pad_objects
    return _compose(
        channels, select, partial(steps.resize, size=size), partial(pad, rows=max_objects)
    )


def segmentation_train(
    size: int, crop: str = "scale", scale: Pair = (0.5, 2.0), flip: float = 0.5,
    color: float = 0.0, channels: int | None = None,
) -> Transform:  # fmt: skip
    """Composes DeepLab's training transform: scale, crop, photometric distortion, flip.

    The crop is "scale" (`steps.scale_crop`, by a factor in `scale`) or "none" (stretched); `color`
    is the strength of `augment.photometric_distortion`, 0 for the authors' segmenters.
    """
    _check("training crop for segmentation", crop, ("scale", "none"))
    cut = partial(steps.scale_crop, scale=scale) if crop == "scale" else steps.resize
    return _compose(
        channels, steps.select_labels, partial(cut, size=size),
        steps.random(augment.photometric_distortion, strength=color) if color else None,
        partial(steps.flip, probability=flip),
    )  # fmt: skip


def segmentation_eval(size: int, crop: str = "pad", channels: int | None = None) -> Transform:
    """Composes the evaluation transform of a segmenter.

    The crop is "pad", which keeps the resolution and shrinks what does not fit, or "none", which
    stretches.
    """
    _check("evaluation crop for segmentation", crop, ("pad", "none"))
    cut = steps.fit if crop == "pad" else steps.resize
    return _compose(channels, steps.select_labels, partial(cut, size=size))


def _compose(channels: int | None, *chosen: Transform | None) -> Transform:
    """Chains the steps that are not None, then gray or color; it pickles if they do."""
    last = steps.fixed(image.with_channels, channels=channels)
    return partial(_apply, (*filter(None, chosen), last))


def _apply(chosen: tuple[Transform, ...], record: dict, rng: np.random.Generator) -> dict:
    for step in chosen:
        record = step(record, rng)
    return record


def _check(kind: str, name: str, choices: Iterable[str]) -> None:
    if name not in choices:
        raise unknown(kind, name, choices)
