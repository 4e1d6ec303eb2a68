"""Sets with label maps that TensorFlow Datasets has prepared: which feature is what, and records.

There is no agreed name for a map of labels, and only some sets say what its values mean. `MASKS`
lists the names that the stock sets use, `VALUES` the meaning where a stock set leaves it to its
documentation; for any other set a file says it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.lab.data import image
from mnv2_jax.lab.data.annotations import IGNORED, check_labels
from mnv2_jax.lab.data.readers.segmentation import CITYSCAPES, decode_labels
from mnv2_jax.lab.data.record import BadRecord

IMAGES = ("image", "image_left")
MASKS = ("segmentation_mask", "segmentation_label", "segmentation", "mask", "annotation", "label")
CLASSES_FILE = "pixel_classes.txt"
VALUES: Mapping[str, Mapping[str, int]] = {
    "cityscapes": CITYSCAPES,
    "oxford_iiit_pet": {"pet": 1, "background": 2, "border": 3},
}
"""What values in the maps of stock sets stand for; all others are ignored."""


class Maps(NamedTuple):
    """How a set holds images and their label maps.

    Attributes:
      image, mask: names of the features.
      classes: their names, by label.
      table: (256,) uint8, from values in the maps to labels; None where they are the same.
    """

    image: str
    mask: str
    classes: tuple[str, ...]
    table: np.ndarray | None


class PreparedMasks:
    """A prepared set of images with a label for each pixel, decoded here and not by tfds.

    Records have `image` (h, w, c) uint8 and `label` (h, w) uint8, 255 where it counts nowhere.
    """

    def __init__(self, name: str, records, maps: Maps, channels: int):
        self.classes = self.pixel_classes = maps.classes
        self._name, self._records, self._maps, self._channels = name, records, maps, channels

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = f"{self._name} record {index}"
        try:
            record = self._records[int(index)]
            encoded, mask = record[self._maps.image], record[self._maps.mask]
        except Exception as error:  # array_record and the parser raise anything on damage
            raise BadRecord(name, f"cannot be read ({first_line(error)})") from error
        pixels = image.decode(encoded, name, self._channels, orient=False)
        label = decode_labels(mask, name)
        if self._maps.table is not None:
            label = self._maps.table[label]
        check_labels(label, len(self.classes), name)
        if label.shape != pixels.shape[:2]:
            ours, theirs = ("{1}x{0}".format(*shape) for shape in (label.shape, pixels.shape))
            raise BadRecord(name, f"a map of {ours} pixels, and its image of {theirs}")
        return {"image": pixels, "label": label}

    def arrays(self) -> None:
        return None


def find_maps(name: str, folder: Path, features: Mapping[str, Any]) -> Maps | None:
    """Says how a set holds label maps; None where it has none.

    Args:
      name: of the set, as users write it.
      folder: of its version, where `pixel_classes.txt` may name the classes, one a line from 0 on.
      features: of tfds, by name.

    Raises:
      UsageError: there are maps, and nothing says what their values mean.
    """
    import tensorflow_datasets as tfds

    kinds = (tfds.features.Image, tfds.features.LabeledImage)
    picture = next((key for key in IMAGES if type(features.get(key)) is kinds[0]), None)
    mask = next((key for key in MASKS if type(features.get(key)) in kinds), None)
    if picture is None or mask is None:
        return None
    own = folder / CLASSES_FILE
    if own.is_file():
        lines = own.read_text("utf-8").splitlines()
        return Maps(picture, mask, tuple(line.strip() for line in lines if line.strip()), None)
    values = VALUES.get(name.partition(":")[0].partition("/")[0])
    if values is not None:
        table = np.full(256, IGNORED, np.uint8)
        table[list(values.values())] = range(len(values))
        return Maps(picture, mask, tuple(values), table)
    names = getattr(features[mask], "names", None)
    if not names:
        raise UsageError(
            f"{name} does not say what the values in {mask!r} mean: write the names of the classes "
            f"to {own}, one a line, that of value 0 first."
        )
    return Maps(picture, mask, tuple(str(item) for item in names), None)
