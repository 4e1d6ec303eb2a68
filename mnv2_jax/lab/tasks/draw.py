"""Boxes and label maps drawn over images, for eyes; nothing here decides anything."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mnv2_jax.files import replacing

# Okabe and Ito's colors, told apart with any color vision; classes take them in turn.
COLORS = np.array(
    [
        [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178],
        [213, 94, 0], [204, 121, 167],
    ],
    np.uint8,
)  # fmt: skip
COVER = 0.55  # of a class's color over the image
GAP = 4  # pixels between panels
SHOWN_SIDE = 192  # pixels that small pictures are enlarged to, so that names can be read


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, classes: Sequence[int], names: Sequence[str]
) -> np.ndarray:
    """Draws boxes with their names over an image.

    Args:
      image: (h, w, 3) or (h, w, 1) uint8.
      boxes: (n, 4) fractions of the image: top, left, bottom, right.
      classes: (n,) which color each box has.
      names: (n,) what is written at each box.

    Returns:
      (h, w, 3) uint8.
    """
    from PIL import Image, ImageDraw

    picture = Image.fromarray(in_color(image))
    pen = ImageDraw.Draw(picture)
    height, width = image.shape[:2]
    for (top, left, bottom, right), kind, name in zip(boxes, classes, names, strict=True):
        color = tuple(COLORS[kind % len(COLORS)].tolist())
        corner = left * width, top * height
        pen.rectangle((*corner, right * width - 1, bottom * height - 1), outline=color, width=2)
        place = pen.textbbox((corner[0] + 2, corner[1] + 1), name)
        pen.rectangle(place, fill=color)
        pen.text((corner[0] + 2, corner[1] + 1), name, fill=(0, 0, 0))
    return np.asarray(picture)


def draw_labels(image: np.ndarray, labels: np.ndarray, background: int | None = 0) -> np.ndarray:
    """Tints every pixel with the color of its class.

    Args:
      image: (h, w, 3) or (h, w, 1) uint8.
      labels: (h, w) classes; 255 becomes black.
      background: a class that is left as it is.
    """
    color = COLORS[(labels.astype(int) - 1) % len(COLORS)]
    color = np.where((labels == 255)[..., None], 0, color)
    mixed = (1 - COVER) * in_color(image) + COVER * color
    shown = np.rint(mixed).astype(np.uint8)
    if background is None:
        return shown
    return np.where((labels == background)[..., None], in_color(image), shown)


def in_color(image: np.ndarray) -> np.ndarray:
    """Returns an image with three channels."""
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """Repeats pixels so that the longer side has at least `side`, for small pictures."""
    times = max(1, -(-side // max(image.shape[:2])))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Lays pictures of one size out in rows and columns, on white."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = np.full(
        (len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8
    )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            sheet[top : top + height, left : left + width] = picture
    return sheet


def write_picture(picture: np.ndarray, path: Path) -> None:
    """Writes a PNG, whole or not at all; its folder is made. `OSError` if that cannot be."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        Image.fromarray(picture).save(partial, "PNG")
