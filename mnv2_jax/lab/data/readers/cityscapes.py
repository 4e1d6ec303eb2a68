"""Cityscapes in its official layout, with the 19 classes that are evaluated."""

from pathlib import Path

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data.readers.annotated import label_table, paired_source
from mnv2_jax.lab.data.source import LazySource

LAYOUT = "The layout is ROOT/leftImg8bit/SPLIT/CITY/*_leftImg8bit.png beside "
LAYOUT += "ROOT/gtFine/SPLIT/CITY/*_gtFine_labelIds.png"
# The classes that are evaluated, and their values in `labelIds` maps; all others are ignored.
CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip


def open_cityscapes(split: str, root: str) -> LazySource:
    """Opens one split of Cityscapes."""
    images, maps = (Path(root) / part / split for part in ("leftImg8bit", "gtFine"))
    files = sorted(images.glob("*/*_leftImg8bit.png"))
    if not files:
        raise UsageError(f"{images} has no images. {LAYOUT}.")
    rest = "_leftImg8bit", "_gtFine_labelIds"
    pairs = [(file, maps / file.parent.name / file.name.replace(*rest)) for file in files]
    return paired_source(pairs, tuple(CITYSCAPES), LAYOUT, label_table(CITYSCAPES.values()))
