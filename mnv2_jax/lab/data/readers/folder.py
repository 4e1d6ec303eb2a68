"""Folders of images: `root/train/CLASS/*.jpg` beside `root/val` or `root/test`."""

import functools
import os
from pathlib import Path

import numpy as np

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.lab.data import image
from mnv2_jax.lab.data.readers.files import read_record
from mnv2_jax.lab.data.source import SPLITS, LazySource, find_split

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
LAYOUT = "The layout is ROOT/train/CLASS/*.jpg, and ROOT/val/CLASS/*.jpg or ROOT/test/CLASS/*.jpg"


def open_folder(split: str, root: str) -> LazySource:
    """Opens one split of a folder of class folders; images are decoded when they are read.

    Classes are numbered in the order of their sorted names. All splits that exist must have the
    same classes, or labels would not mean the same thing.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    top = Path(root)
    name = find_split(split, lambda name: (top / name).is_dir())
    if name is None:
        looked = ", ".join(str(top / name) for name in SPLITS[split])
        raise UsageError(f"there is no split {split!r} in {root}: looked for {looked}. {LAYOUT}.")
    folder = top / name
    classes = _class_names(folder)
    for other in SPLITS:
        if (top / other).is_dir():
            _check_same_classes(folder, classes, top / other)
    files, labels = [], []
    for label, name in enumerate(classes):
        images = sorted(
            entry.name
            for entry in os.scandir(folder / name)
            if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
        )
        if not images:
            raise UsageError(
                f"{folder / name} has no images. Add some ({', '.join(SUFFIXES)}) or remove it."
            )
        files += [f"{name}/{file}" for file in images]
        labels += [label] * len(images)
    read = functools.partial(_read, folder, files, np.array(labels, np.int32))
    return LazySource(len(files), read, classes)


def _read(folder: Path, files: list[str], labels: np.ndarray, index: int) -> dict:
    path = folder / files[index]
    return {"image": image.decode(read_record(path), str(path)), "label": int(labels[index])}


def _class_names(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise UsageError(f"{folder} has no class folders. {LAYOUT}.")
    return tuple(names)


def _check_same_classes(folder: Path, classes: tuple[str, ...], other: Path) -> None:
    theirs = set(_class_names(other))
    differences = [f"-{name}" for name in sorted(set(classes) - theirs)]
    differences += [f"+{name}" for name in sorted(theirs - set(classes))]
    if differences:
        shown = ", ".join(differences[:5]) + (", ..." if len(differences) > 5 else "")
        raise UsageError(
            f"{other} has other classes than {folder}: {shown}. Give both the same class folders."
        )
