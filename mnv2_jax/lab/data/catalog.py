"""Data sets by name: one row for each, with the function that opens it."""

import logging
import os
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.files import user_path
from mnv2_jax.lab.data.readers import (
    cifar,
    cityscapes,
    coco,
    folder,
    idx,
    imagenet,
    prepared,
    robust,
    voc,
)
from mnv2_jax.lab.data.scenes import Scenes
from mnv2_jax.lab.data.source import ArraySource, Source, chosen_split, resplit, split_kind

log = logging.getLogger(__name__)

EMBEDDED, SMALL = Path(__file__).parent / "embedded", "fashion_mnist_small"
SCENE_CLASSES = ("top", "trouser", "dress", "sandal", "sneaker", "bag", "ankle boot")
SCENE_CLASS_OF = (0, 1, 0, 2, 0, 3, 0, 4, 5, 6)  # for each of `idx.FASHION_CLASSES`


@cache
def _load_embedded(name: str) -> dict[str, np.ndarray]:
    with np.load(EMBEDDED / f"{name}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    for array in arrays.values():
        array.setflags(write=False)  # shared by every caller in the process
    return arrays


def _open_embedded(name: str, classes: tuple[str, ...], split: str, root: None) -> Source:
    arrays = _load_embedded(name)
    return ArraySource(arrays[f"{split}_image"], arrays[f"{split}_label"], classes)


def _open_scenes(split: str, root: None) -> Source:
    """Scenes of 96×96 with one or two embedded items: 20,000 to train on, 1,000 held out.

    Shirts, t-shirts, pullovers and coats are one class, for even people confuse them, and a quarter
    of them is used, so that all classes are as frequent. Those held out show items of their own.
    """
    arrays = _load_embedded(SMALL)
    labels = np.array(SCENE_CLASS_OF)[arrays[f"{split}_label"]]
    kept = (labels != 0) | (np.cumsum(labels == 0) % 4 == 0)
    items = ArraySource(arrays[f"{split}_image"][kept], labels[kept], SCENE_CLASSES)
    length, seed = (20_000, 0) if split == "train" else (1_000, 1)
    return Scenes(items, length, (96, 96), 2, (0.45, 0.75), seed, least_visible=0.7)


class DataSet(NamedTuple):
    """A row of the catalog."""

    open: Callable[[str, Any], Source]  # of a split and a root
    root: str | None  # what it is; "" where there is a default, None where the package has the set
    splits: tuple[str, ...] | None = None  # None where the folder at hand decides


TWO = ("train", "test")
CATALOG: Mapping[str, DataSet] = {
    "digits": DataSet(partial(_open_embedded, "digits", idx.DIGIT_CLASSES), None, TWO),
    SMALL: DataSet(partial(_open_embedded, SMALL, idx.FASHION_CLASSES), None, TWO),
    "scenes": DataSet(_open_scenes, None, TWO),
    "fashion_mnist": DataSet(idx.open_fashion_mnist, "", TWO),
    "mnist": DataSet(idx.open_mnist, "It holds the four *-ubyte.gz files", TWO),
    "cifar10": DataSet(partial(cifar.open_cifar, "cifar10"), cifar.LAYOUT.format(10), TWO),
    "cifar100": DataSet(partial(cifar.open_cifar, "cifar100"), cifar.LAYOUT.format(100), TWO),
    "imagenet2012": DataSet(imagenet.open_imagenet, imagenet.LAYOUT, TWO),
    "imagenet_real": DataSet(robust.open_real, imagenet.LAYOUT, ("test",)),
    **{
        name: DataSet(
            partial(robust.open_robust, name),
            f"It is {kind.layout}",
            None if name == robust.CORRUPTED else ("test",),
        )
        for name, kind in robust.SETS.items()
    },
    "folder": DataSet(folder.open_folder, folder.LAYOUT),
    "coco": DataSet(coco.open_coco, coco.LAYOUT),
    "voc": DataSet(voc.open_voc, voc.LAYOUTS["Main"]),
    "voc_segmentation": DataSet(voc.open_voc_segmentation, voc.LAYOUTS["Segmentation"]),
    "cityscapes": DataSet(cityscapes.open_cityscapes, cityscapes.LAYOUT, ("train", "val")),
}
PREPARED = {"tfds:": False, "tfds_masks:": True}  # whether label maps are read


def open_source(
    name: str, split: str, root: str | None = None, tell: Callable[..., None] = log.warning
) -> Source:
    """Opens one split of a data set by name.

    >>> len(open_source("digits", "train")), len(open_source("digits", "test"))
    (1437, 360)

    The name is one in `CATALOG`, or `tfds:NAME` for a set prepared by TensorFlow Datasets;
    `tfds_masks:NAME` reads the label maps of a set whose images have labels too. The split is
    "train", "val" or "test", the last two the same in a set that has only one of them; sets on disk
    take their own names too; "test@3" is a part of train and test together, split anew by seed 3
    (`source.resplit`). The root is the folder of the data: embedded sets have none, `fashion_mnist`
    and `tfds:` a default one. What is left out is told in the log, or to `tell` as to a logger.
    `UsageError` if there is no such name or split, or the data is missing, damaged or empty.
    """
    split, again, seed = split.partition("@")
    if again:
        return _resplit(name, split, seed, root)
    root = root if root is None else str(user_path(root, "root of the data"))
    for prefix, masks in PREPARED.items():
        if name.startswith(prefix):
            return prepared.open_prepared(name.removeprefix(prefix), split, root, masks)
    if name not in CATALOG:
        if os.path.isdir(name):
            raise UsageError(f"data set {name!r} is a folder: name the set folder, with that root.")
        raise unknown("data set", name, [*CATALOG, *(f"{prefix}NAME" for prefix in PREPARED)])
    row = CATALOG[name]
    if root is None and row.root:
        raise UsageError(f"{name} needs a root, the folder of its files. {row.root}.")
    if root is not None and row.root is None:
        raise UsageError(f"{name} is part of the package and takes no root, given {root!r}.")
    source = row.open(chosen_split(split, row.splits) if row.splits else split, root)
    if left_out := getattr(source, "left_out", None):
        parts = ", ".join(f"{n:,} {what}" for what, n in sorted(left_out.items()))
        tell("%s of %s: left out: %s", split, root, parts)
    return source


def _resplit(name: str, split: str, seed: str, root: str | None) -> Source:
    if not seed.isdecimal() or (kind := split_kind(split)) is None:
        raise UsageError(f"split {split}@{seed} is not train@SEED or test@SEED, with an integer.")
    train, test = (open_source(name, part, root) for part in ("train", "test"))
    pool = pooled(train, test, name)
    images, labels = pool.arrays().values()
    ids = resplit(labels[: len(train)], labels[len(train) :], int(seed))[kind != "train"]
    return ArraySource(images[ids], labels[ids], pool.classes)


def pooled(train: Source, test: Source, place: str) -> ArraySource:
    """Returns train and test as one set, in this order; a UsageError where that cannot be."""
    one, two = train.arrays(), test.arrays()
    if one is None or two is None or train.classes != test.classes:
        why = "its records are not in memory, or its parts have other classes"
        raise UsageError(f"{place} cannot be split anew: {why}. Set data.resplit to False.")
    images, labels = (np.concatenate((one[key], two[key])) for key in ("image", "label"))
    return ArraySource(images, labels, train.classes)
