"""Scenes for detection and segmentation without a download: real items on textured backgrounds.

Each shows items in color and many sizes, some behind others and some cut by the border. Boxes and
masks are made of the pixels that are seen. A set of any length costs no space.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np

from mnv2_jax.lab.data.annotations import padded_objects
from mnv2_jax.lab.data.image import resize
from mnv2_jax.lab.data.source import LazySource, Pair, Rng, Source

ATTEMPTS = 8
FAINTEST = 40  # below it, Fashion-MNIST has stray specks around its items
LEAST_PIXELS = 12


class Scene(NamedTuple):
    """One picture and what is in it."""

    image: np.ndarray  # (h, w, 3) uint8
    classes: np.ndarray  # (n,) int32, one for each object, from 0
    instances: np.ndarray  # (h, w) uint8: 0 where no object is, i + 1 where object i is seen

    @property
    def labels(self) -> np.ndarray:
        """(h, w) uint8: 0 for the background, class + 1 elsewhere."""
        return np.append(0, self.classes + 1).astype(np.uint8)[self.instances]

    @property
    def corners(self) -> np.ndarray:
        """(n, 4) int32 boxes in pixels: top, left, bottom, right, the last two exclusive."""
        corners = []
        for number in range(1, len(self.classes) + 1):
            rows, columns = (np.flatnonzero((self.instances == number).any(a)) for a in (1, 0))
            corners.append((rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
        return np.array(corners, np.int32).reshape(-1, 4)


class Scenes(LazySource):
    """A source of scenes, deterministic by (seed, index), for detection and segmentation.

    Records have `image` (h, w, 3), `boxes` (max_objects, 4), `classes` (max_objects,), padded as
    `annotations.clean_objects` does, and `label` (h, w), 0 for the background and class + 1 else.

    >>> from mnv2_jax.lab.data import open_source
    >>> scenes = Scenes(open_source("fashion_mnist_small", "train"), length=1000, size=(64, 96))
    >>> record = scenes[7]
    >>> record["image"].shape, record["boxes"].shape, record["label"].shape
    ((64, 96, 3), (8, 4), (64, 96))
    """

    def __init__(
        self, items: Source, length: int, size: tuple[int, int] = (128, 128), max_objects: int = 8,
        scales: Pair = (0.15, 0.7), seed: int = 0, least_visible: float = 0.4,
    ):  # fmt: skip
        """Describes `length` scenes of `size` (h, w) with up to `max_objects` items each.

        The items are pictures on black that fit in memory. `scales` are the smallest and largest
        height of an item, as a share of the image's shorter side; `least_visible` is the share of
        every item's pixels that others leave to be seen.
        """
        super().__init__(length, self._record, items.classes, ("background", *items.classes))
        self.size, self.max_objects, self.scales, self.seed = size, max_objects, scales, seed
        self.least_visible, self._items = least_visible, cast(dict, items.arrays())

    def _record(self, index: int) -> dict:
        scene = self.scene(index)
        boxes = scene.corners / np.tile(self.size, 2)
        boxes, classes = padded_objects(boxes, scene.classes, self.max_objects)
        return {"image": scene.image, "boxes": boxes, "classes": classes, "label": scene.labels}

    def scene(self, index: int) -> Scene:
        """Composes one scene; `IndexError` if there is none of this index."""
        if not 0 <= index < self._length:
            raise IndexError(f"scene {index} of {self._length}")
        rng = np.random.default_rng((self.seed, index))
        image = texture(rng, *self.size)
        instances, areas, classes = np.zeros(self.size, np.uint8), [], []
        for _ in range(rng.integers(1, self.max_objects + 1)):
            for _ in range(ATTEMPTS):
                which = rng.integers(len(self._items["image"]))
                shape, paint = self._cut_out(self._items["image"][which], rng)
                window, part = _place(self.size, shape.shape, rng)
                mask, after, grown = shape[part], instances.copy(), [*areas, int(shape.sum())]
                after[window][mask] = len(grown)
                seen = np.bincount(after.ravel(), minlength=len(grown) + 1)[1:]
                least = np.maximum(np.multiply(grown, self.least_visible), LEAST_PIXELS)
                if (seen >= least).all():
                    image[window][mask] = paint()[part][mask]
                    instances, areas = after, grown
                    classes.append(self._items["label"][which])
                    break
        return Scene(image, np.array(classes, np.int32), instances)

    def _cut_out(self, item: np.ndarray, rng: Rng) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        """Gives a resized item's own pixels (h, w) and, for few find a place, what paints it."""
        rows, columns = (np.flatnonzero((item[..., 0] > FAINTEST).any(a)) for a in (1, 0))
        if not len(rows):  # an all-black picture is an object as it is
            rows, columns = np.arange(item.shape[0]), np.arange(item.shape[1])
            item = np.full_like(item, FAINTEST + 1)
        item = item[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, :1]
        height = np.exp(rng.uniform(*np.log(self.scales))) * min(self.size)
        width = height * item.shape[1] / item.shape[0] * rng.uniform(0.8, 1.25)
        height, width = max(3, round(height)), max(3, round(width))
        turned = slice(None, None, -1 if rng.random() < 0.5 else 1)
        tint = rng.uniform(0.35, 1, 3)

        # Pillow's interpolation, the same on every machine.
        mask = resize(np.where(item > FAINTEST, 255, 0).astype(np.uint8), height, width)

        def paint() -> np.ndarray:
            return np.rint(resize(item, height, width)[:, turned] * tint).astype(np.uint8)

        return mask[:, turned, 0] >= 128, paint


def _place(
    size: tuple[int, int], item: tuple[int, ...], rng: Rng
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Gives where an item goes in the image, and which part of it; up to a fifth is cut off."""
    window, part = [], []
    for n, m in zip(size, item, strict=True):
        low, high = sorted((-(m // 5), n - m + m // 5))
        start = int(rng.integers(low, high + 1))
        window.append(slice(max(0, start), min(n, start + m)))
        part.append(slice(window[-1].start - start, window[-1].stop - start))
    return (window[0], window[1]), (part[0], part[1])


def texture(rng: Rng, height: int, width: int) -> np.ndarray:
    """Draws a background: clouds of color, three gratings and grain, (height, width, 3) uint8."""
    base = rng.integers(50, 160, 3, np.uint8)
    coarse = base + rng.integers(0, 60, (5, 5, 3), np.uint8)
    image = resize(coarse, height, width, "bicubic").astype(np.float32)
    rows = image.reshape(height, -1)
    for _ in range(3):
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 32)
        color = rng.uniform(-14, 14, 3)
        # A wave across the image is sin(y + x) = sin y cos x + cos y sin x: no sine for each pixel.
        y = np.arange(height) * (np.cos(angle) * 2 * np.pi / period)
        x = np.arange(width) * (np.sin(angle) * 2 * np.pi / period)
        for down, across in ((np.sin(y), np.cos(x)), (np.cos(y), np.sin(x))):
            colored = np.outer(across, color).ravel()
            rows += down.astype(np.float32)[:, None] * colored.astype(np.float32)
    image += rng.integers(-10, 11, image.shape, np.int8)
    return image.clip(0, 255).astype(np.uint8)
