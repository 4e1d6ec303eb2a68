"""How images were prepared for each set of published weights, which is part of their accuracy."""

import re
from pathlib import Path
from typing import NamedTuple

from mnv2_jax.models.dialect import Dialect


class Preprocessing(NamedTuple):
    """The evaluation transform that a set of weights was measured with.

    `size`, `crop`, `fraction`, `method` and `antialias` are the arguments of
    `mnv2_jax.lab.data.transforms.eval_transform`; of a segmenter, `size` and `crop` are those of
    `mnv2_jax.lab.data.transforms.segmentation_eval`.

    Attributes:
      size: height and width that enter the network.
      crop: "center" keeps the aspect ratio, "stretch" takes the share of each side, "none" all,
        and "pad", of segmenters, the whole image at its own resolution.
      fraction: the share of the side that is seen.
      method: of the interpolation.
      antialias: whether shrinking widens the kernel.
      mean, std: pixels in [0, 1] become (pixel - mean) / std; of the dialect.
    """

    size: int
    crop: str
    fraction: float
    method: str
    antialias: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def resize(self) -> int | None:
        """What the shorter side is resized to before the crop, for peers that speak of it so."""
        return round(self.size / self.fraction) if self.crop == "center" else None


class _Rule(NamedTuple):
    crop: str
    resize: int | None  # of the shorter side where the network sees 224; None sees `fraction`
    fraction: float
    method: str
    antialias: bool


_TORCH = _Rule("center", 256, 0.875, "bilinear", True)

RULES = {
    # slim's preprocess_for_eval; its resize_bilinear does not antialias
    "slim": _Rule("stretch", None, 0.875, "bilinear", False),
    # Keras resizes to the input's size and states nothing else
    "keras": _Rule("none", None, 1.0, "bilinear", True),
    "torchvision": _TORCH,
    "timm": _Rule("center", 256, 0.875, "bicubic", True),
    "hf": _TORCH,
    "d-li14": _TORCH,
    "tonylins": _TORCH,
}

TORCHVISION_V2 = _TORCH._replace(resize=232)


class Release(NamedTuple):
    """Published files that the start of their sha256 identifies, as their names promise it."""

    ecosystem: str
    title: str
    rule: _Rule


RELEASES = {
    "b0353104": Release("torchvision", "torchvision IMAGENET1K_V1, top-1 71.878", _TORCH),
    "7ebf99e0": Release("torchvision", "torchvision IMAGENET1K_V2, top-1 72.154", TORCHVISION_V2),
}

DEFAULT_SIZE = 224
SEGMENTER_SIZE = 513  # the authors' for Pascal VOC


def preprocessing_of(
    ecosystem: str, dialect: Dialect, path: str | Path, sha256: str
) -> Preprocessing:
    """Returns how images are to be prepared for a file of weights.

    torchvision's two releases differ in it and are told apart by their sha256; anything else of
    torchvision's is taken to be prepared as the first was.

    Args:
      ecosystem: its name.
      dialect: of the weights.
      path: of the file; its name may tell the resolution.
      sha256: of the file.
    """
    release = RELEASES.get(sha256[:8])
    rule = release.rule if release and release.ecosystem == ecosystem else RULES[ecosystem]
    size = resolution_of(path)
    fraction = rule.fraction
    if rule.resize is not None:
        # Hugging Face's converted models of other sizes are resized to 32 pixels more
        resize = size + 32 if ecosystem == "hf" else rule.resize * size / DEFAULT_SIZE
        fraction = size / resize
    return Preprocessing(
        size, rule.crop, fraction, rule.method, rule.antialias, dialect.mean, dialect.std
    )


def segmenter_preprocessing(dialect: Dialect, path: str | Path) -> Preprocessing:
    """Returns how images are to be prepared for a segmenter: as the authors evaluate it.

    An image smaller than the square keeps its resolution and is padded. Hugging Face's processor
    stretches the shorter side and crops the middle instead, so that it labels no whole image; the
    weights are the authors'.
    """
    size = resolution_of(path, SEGMENTER_SIZE)
    return Preprocessing(size, "pad", 1.0, "bilinear", True, dialect.mean, dialect.std)


def resolution_of(path: str | Path, default: int = DEFAULT_SIZE) -> int:
    """Reads the resolution from a file's name or its folder's.

    >>> resolution_of("mobilenet_v2_1.4_192.ckpt"), resolution_of("mobilenetv2_128x128-fd66.pth")
    (192, 128)
    >>> resolution_of("google/mobilenet_v2_0.35_96/model.safetensors")
    96
    >>> resolution_of("mobilenet_v2-b0353104.pth")
    224
    """
    path = Path(path)
    for name in (path.name, path.parent.name):
        square = re.search(r"(?<!\d)(\d{2,3})x\1(?!\d)", name)
        after_width = re.search(r"_[01]\.\d+_(\d{2,3})(?!\d)", name)
        found = square or after_width
        if found and 32 <= int(found[1]) <= 999:
            return int(found[1])
    return default
