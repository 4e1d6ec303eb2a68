"""Boxes and label maps drawn over images, for eyes; nothing here decides anything."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mnv2_jax.files import replacing
from mnv2_jax.lab.data.image import resize, with_channels

# Okabe and Ito's colors, told apart with any color vision; classes take them in turn.
COLORS = np.array([
    [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0],
    [204, 121, 167],
], np.uint8)  # fmt: skip
COVER = 0.55  # of a class's color over the image
GAP = 4  # pixels between panels
SHOWN_SIDE = 192  # pixels that small pictures are enlarged to, so that names can be read


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, classes: Sequence[int], names: Sequence[str]
) -> np.ndarray:
    """Draws boxes with their names over an image, (h, w, 1 or 3) uint8; returns (h, w, 3).

    Boxes (n, 4) are top, left, bottom and right in fractions of the image; classes (n,) say which
    color each of them has.
    """
    from PIL import Image, ImageDraw

    picture = Image.fromarray(with_channels(image, 3))
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
    """Tints every pixel of an image, (h, w, 1 or 3) uint8, with the color of its class.

    Of the labels (h, w), 255 becomes black and the background, if there is one, is left as it is.
    """
    color, image = COLORS[(labels.astype(int) - 1) % len(COLORS)], with_channels(image, 3)
    color = np.where((labels == 255)[..., None], 0, color)
    shown = np.rint((1 - COVER) * image + COVER * color).astype(np.uint8)
    kept = labels == (-1 if background is None else background)
    return np.where(kept[..., None], image, shown)


def draw_heat(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Tints an image, (h, w, 1 or 3) uint8, by a map of any size; returns (h, w, 3).

    The largest number of the map is yellow and half of it orange; 0 and less leave the image gray.
    """
    large = resize(heat[..., None], *image.shape[:2])[..., 0]
    share = np.clip(large / max(float(heat.max()), 1e-12), 0, 1)[..., None]
    color = COLORS[5] + np.clip(2 * share - 1, 0, 1) * (COLORS[3] - COLORS[5].astype(float))
    gray = with_channels(image, 3).mean(axis=2, keepdims=True)
    cover = 0.7 * np.minimum(2 * share, 1)
    return np.rint((1 - cover) * gray + cover * color).astype(np.uint8)


def enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """Repeats pixels so that the longer side has at least `side`, for small pictures."""
    times = max(1, -(-side // max(image.shape[:2])))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Lays pictures of one size out in rows and columns, on white."""
    blank, columns = np.full_like(rows[0][0], 255), max(map(len, rows))
    full = [[*row, *[blank] * (columns - len(row))] for row in rows]
    gap = ((0, GAP), (0, GAP), (0, 0))  # below and to the right
    spaced = [[np.pad(picture, gap, constant_values=255) for picture in row] for row in full]
    return np.vstack([np.hstack(row) for row in spaced])[:-GAP, :-GAP]


def write_picture(picture: np.ndarray, path: Path) -> None:
    """Writes a PNG, whole or not at all; its folder is made. `OSError` if that cannot be."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        Image.fromarray(picture).save(partial, "PNG")
