"""Folders of images with label maps: Pascal VOC's and Cityscapes' layouts.

A map that is of another size than its image, or that holds a value which is no class, makes a bad
record: training masks and counts it, evaluation stops and names it.
"""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.lab.data import image
from mnv2_jax.lab.data.annotations import IGNORED, check_labels
from mnv2_jax.lab.data.readers.detection import read_bytes, voc_classes, voc_split
from mnv2_jax.lab.data.record import BadRecord

VOC_LAYOUT = (
    "The layout is that of VOC2012: ROOT/JPEGImages, ROOT/SegmentationClass, "
    "ROOT/ImageSets/Segmentation/SPLIT.txt"
)
CITYSCAPES_LAYOUT = (
    "The layout is ROOT/leftImg8bit/SPLIT/CITY/*_leftImg8bit.png beside "
    "ROOT/gtFine/SPLIT/CITY/*_gtFine_labelIds.png"
)
CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip
"""The classes that are evaluated, and their values in `labelIds` maps; all others are ignored."""
CITYSCAPES_SPLITS = {"train": "train", "test": "val", "val": "val", "validation": "val"}


class SegmentationSource:
    """Images with a label for each pixel, decoded when read.

    Records have `image` (h, w, 3) uint8 and `label` (h, w) uint8, 255 where it counts nowhere.
    """

    def __init__(
        self,
        pairs: list[tuple[Path, Path]],
        pixel_classes: tuple[str, ...],
        table: np.ndarray | None = None,
    ):
        """Describes a set.

        Args:
          pairs: of an image and its label map.
          pixel_classes: their names, by label.
          table: (256,) uint8, from values in the files to labels; None where they are the same.
        """
        self.classes = self.pixel_classes = pixel_classes
        self._pairs, self._table = pairs, table

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture, map_file = self._pairs[index]
        pixels = image.decode(read_bytes(picture), str(picture), orient=False)
        label = read_labels(map_file)
        if self._table is not None:
            label = self._table[label]
        check_labels(label, len(self.pixel_classes), str(map_file))
        if label.shape != pixels.shape[:2]:
            ours, theirs = ("{1}x{0}".format(*shape) for shape in (label.shape, pixels.shape))
            raise BadRecord(str(map_file), f"{ours} pixels, and its image {theirs}")
        return {"image": pixels, "label": label}

    def arrays(self) -> None:
        return None


def read_labels(path: Path) -> np.ndarray:
    """Reads a label map: a picture with a palette, whose indices count, or a gray one, (h, w).

    Raises:
      BadRecord: it is missing, damaged, too large or in color.
    """
    return decode_labels(read_bytes(path), str(path))


def decode_labels(data: bytes, name: str) -> np.ndarray:
    """Decodes a label map, see `read_labels`; `name` is for errors.

    Raises:
      BadRecord: it is damaged, too large or in color.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "TIFF", "BMP")) as picture:
            if picture.width * picture.height > image.MAX_PIXELS:
                raise BadRecord(name, f"{picture.width}x{picture.height} pixels are too many")
            if picture.mode not in ("P", "L"):
                raise BadRecord(name, f"a picture of mode {picture.mode}, and no map of labels")
            return np.array(picture)
    except BadRecord:
        raise
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise BadRecord(name, "cannot be decoded as a map of labels") from error


def open_voc_segmentation(split: str, root: str | None) -> SegmentationSource:
    """Opens one split of a folder in VOC's layout, with its label maps.

    The split `trainaug` takes its maps from `SegmentationClassAug`, where the field keeps them.

    Raises:
      UsageError: files are missing.
    """
    top, names = voc_split(split, root, "Segmentation", VOC_LAYOUT)
    maps = top / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")
    pairs = [(top / "JPEGImages" / f"{name}.jpg", maps / f"{name}.png") for name in names]
    return SegmentationSource(_present(pairs, VOC_LAYOUT), ("background", *voc_classes(top)))


def open_cityscapes(split: str, root: str | None) -> SegmentationSource:
    """Opens one split of Cityscapes, with its 19 classes.

    Raises:
      UsageError: files are missing.
    """
    if root is None:
        raise UsageError(f"cityscapes needs its root. {CITYSCAPES_LAYOUT}.")
    if split not in CITYSCAPES_SPLITS:
        raise unknown("split", split, CITYSCAPES_SPLITS)
    images, maps = (
        Path(root) / part / CITYSCAPES_SPLITS[split] for part in ("leftImg8bit", "gtFine")
    )
    files = sorted(images.glob("*/*_leftImg8bit.png"))
    if not files:
        raise UsageError(f"{images} has no images. {CITYSCAPES_LAYOUT}.")
    ending = "_gtFine_labelIds.png"
    pairs = [
        (file, maps / file.parent.name / file.name.replace("_leftImg8bit.png", ending))
        for file in files
    ]
    table = np.full(256, IGNORED, np.uint8)
    table[list(CITYSCAPES.values())] = range(len(CITYSCAPES))
    return SegmentationSource(_present(pairs, CITYSCAPES_LAYOUT), tuple(CITYSCAPES), table)


def _present(pairs: list[tuple[Path, Path]], layout: str) -> list[tuple[Path, Path]]:
    missing = next((str(p) for pair in pairs for p in pair if not os.path.isfile(p)), None)
    if missing:
        raise UsageError(f"{missing} is missing. {layout}.")
    return pairs
