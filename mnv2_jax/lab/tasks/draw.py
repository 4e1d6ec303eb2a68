"""Boxes and label maps drawn over images, for eyes; nothing here decides anything."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mnv2_jax.files import replacing
from mnv2_jax.lab.data.image import resize, with_channels

# Okabe and Ito's colors, told apart with any color vision. Boxes take them in turn, for each has
# its name beside it; pixels have none, see `label_colors`.
COLORS = np.array([
    [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0],
    [204, 121, 167],
], np.uint8)  # fmt: skip
LINE, LETTERS = 1 / 320, 1 / 40  # a line's width and the size of letters, of a picture's mean side
COVER = 0.55  # of a class's color over the image
GAP = 4  # pixels between panels
SHOWN_SIDE = 192  # pixels that small pictures are enlarged to, so that names can be read


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, classes: Sequence[int], names: Sequence[str]
) -> np.ndarray:
    """Draws boxes with their names over an image, (h, w, 1 or 3) uint8; returns (h, w, 3).

    Boxes (n, 4) are top, left, bottom and right in fractions of the image; classes (n,) say which
    color each of them has. Lines and letters are as large as the image asks for.
    """
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(with_channels(image, 3))
    pen = ImageDraw.Draw(picture)
    height, width = image.shape[:2]
    side = (height + width) / 2
    line, font = max(2, round(side * LINE)), ImageFont.load_default(max(10, side * LETTERS))
    for (top, left, bottom, right), kind, name in zip(boxes, classes, names, strict=True):
        color = tuple(COLORS[kind % len(COLORS)].tolist())
        corner = left * width, top * height
        pen.rectangle((*corner, right * width - 1, bottom * height - 1), outline=color, width=line)
        size = pen.textbbox((0, 0), name, font)[2:]
        start = min(corner[0] + line, width - size[0]), min(corner[1] + line / 2, height - size[1])
        start = max(start[0], 0), max(start[1], 0)  # a name is cut where it is wider than all
        pen.rectangle(pen.textbbox(start, name, font), fill=color)
        pen.text(start, name, fill=(0, 0, 0), font=font)
    return np.asarray(picture)


def draw_labels(image: np.ndarray, labels: np.ndarray, background: int | None = 0) -> np.ndarray:
    """Tints every pixel of an image, (h, w, 1 or 3) uint8, with the color of its class.

    Of the labels (h, w), 255 becomes black and the background, if there is one, is left as it is.
    """
    color, image = label_colors(labels, background), with_channels(image, 3)
    color = np.where((labels == 255)[..., None], 0, color)
    shown = np.rint((1 - COVER) * image + COVER * color).astype(np.uint8)
    kept = labels == (-1 if background is None else background)
    return np.where(kept[..., None], image, shown)


def label_colors(labels: np.ndarray, background: int | None = 0) -> np.ndarray:
    """Returns the colors (..., 3) uint8 that PASCAL VOC's label maps have: a class, a color.

    The bits of a class's number, lowest first, are the highest of red, green and blue in turn.
    Number 0 is black, so classes without a background are counted from 1.

    >>> label_colors(np.array([1, 2, 15])).tolist()  # aeroplane, bicycle and person
    [[128, 0, 0], [0, 128, 0], [192, 128, 128]]
    """
    number = labels.astype(int)[..., None] + (background is None)
    channel, colors = np.arange(3), 0
    for bit in range(8):
        colors |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return np.asarray(colors, np.uint8)


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
