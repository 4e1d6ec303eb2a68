"""How images were prepared for each set of published weights, which is part of their accuracy."""

import re
from pathlib import Path
from typing import NamedTuple

from mnv2_jax.models.dialect import Dialect


class Preprocessing(NamedTuple):
    """The evaluation transform with which the accuracy of the weights was measured.

    The fields up to `size` are arguments of `mnv2_jax.lab.data.transforms.eval_transform`; for
    segmenters and detectors, `crop` and `size` are of `segmentation_eval` and `detection_eval`.
    `crop` "center" keeps the aspect ratio, "stretch" takes the fraction of each side, "none" takes
    the whole image, and "pad", for segmenters, the whole image at its own resolution.
    """

    crop: str
    fraction: float  # of the side, that is seen
    method: str = "bilinear"  # of the interpolation
    antialias: bool = True  # whether shrinking widens its kernel
    size: int = 224  # height and width of the network's input
    mean: tuple[float, ...] = ()  # pixels in [0, 1] become (pixel - mean) / std
    std: tuple[float, ...] = ()

    @property
    def resize(self) -> int | None:
        """The length of the shorter side before a center crop, as other libraries state it."""
        return round(self.size / self.fraction) if self.crop == "center" else None


_TORCH = Preprocessing("center", 224 / 256)

RULES = {
    # slim's preprocess_for_eval; its resize_bilinear does not antialias
    "slim": Preprocessing("stretch", 0.875, antialias=False),
    # Keras resizes to the input's size and states nothing else
    "keras": Preprocessing("none", 1.0),
    "timm": _TORCH._replace(method="bicubic"),
    **dict.fromkeys(("torchvision", "hf", "d-li14", "tonylins", "mmpretrain"), _TORCH),
    # OpenCV's bilinear
    "paddleclas": _TORCH._replace(antialias=False),
    # which evaluates whole images, each at a size of its own
    "mmseg": Preprocessing("none", 1.0, antialias=False, size=512),
}

RELEASES = {
    "b0353104": ("torchvision IMAGENET1K_V1, top-1 71.878", _TORCH),
    "7ebf99e0": ("torchvision IMAGENET1K_V2, top-1 72.154", Preprocessing("center", 224 / 232)),
}
"""Published files by the start of their sha256, as their names promise it: title and rule."""

DEFAULT_SIZE = 224
SEGMENTER_SIZE = 513  # the authors' for Pascal VOC
DETECTOR_SIZE = 300  # of the weights that the authors published


def preprocessing_of(
    ecosystem: str, dialect: Dialect, path: str | Path, sha256: str, size: int | None = None
) -> Preprocessing:
    """Returns how images are to be prepared for a classifier.

    torchvision's two releases differ in it and are recognized by their sha256; any other weights of
    torchvision are prepared as the first release. Without a `size`, it is read from the name.
    """
    _, rule = RELEASES.get(sha256[:8], ("", RULES[ecosystem]))
    size = size or resolution_of(path, rule.size)
    if ecosystem == "hf":  # its converted models of other sizes are resized to 32 pixels more
        rule = rule._replace(fraction=size / (size + 32))
    return rule._replace(size=size, mean=dialect.mean, std=dialect.std)


def segmenter_preprocessing(
    dialect: Dialect, path: str | Path, size: int | None = None
) -> Preprocessing:
    """Returns how images are to be prepared for a segmenter, as the authors evaluate it.

    An image smaller than the square keeps its resolution and is padded. Hugging Face's processor
    stretches the shorter side and crops the middle, which labels only a part of the image; the
    weights are the authors'.
    """
    size = size or resolution_of(path, SEGMENTER_SIZE)
    return Preprocessing("pad", 1.0, size=size, mean=dialect.mean, std=dialect.std)


def detector_preprocessing(
    dialect: Dialect, path: str | Path, size: int | None = None
) -> Preprocessing:
    """Returns how images are to be prepared for a detector: the whole of one, stretched."""
    size = size or resolution_of(path, DETECTOR_SIZE)
    return Preprocessing(
        "none", 1.0, antialias=False, size=size, mean=dialect.mean, std=dialect.std
    )


def resolution_of(path: str | Path, default: int = DEFAULT_SIZE) -> int:
    """Reads the resolution from the name of a file or of its folder.

    >>> resolution_of("mobilenet_v2_1.4_192.ckpt"), resolution_of("mobilenetv2_128x128-fd66.pth")
    (192, 128)
    >>> resolution_of("google/mobilenet_v2_0.35_96/model.safetensors")
    96
    """
    for name in (Path(path).name, Path(path).parent.name):
        match = re.search(r"(?<!\d)(\d{2,3})x\1(?!\d)", name) or re.search(
            r"_[01]\.\d+_(\d{2,3})(?!\d)", name
        )
        if match and 32 <= int(match[1]) <= 999:
            return int(match[1])
    return default
