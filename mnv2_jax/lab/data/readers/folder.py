"""Folders of images: `root/train/CLASS/*.jpg` beside `root/val` or `root/test`."""

import os
from pathlib import Path

import numpy as np

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.files import UnreadableFile, read_file
from mnv2_jax.lab.data import image
from mnv2_jax.lab.data.record import BadRecord, Record

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
MAX_FILE_BYTES = 1 << 28
FOLDERS = {
    "train": ("train",),
    "test": ("test", "val", "validation"),
    "validation": ("val", "validation", "test"),
    "val": ("val", "validation", "test"),
}
LAYOUT = "The layout is ROOT/train/CLASS/*.jpg, and ROOT/val/CLASS/*.jpg or ROOT/test/CLASS/*.jpg"


class FolderSource:
    """Images in one folder per class, decoded when read."""

    def __init__(self, folder: Path, classes: tuple[str, ...], files: list[str], labels: list[int]):
        self.classes = classes
        self._folder = folder
        self._files = files
        self._labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        path = self._folder / self._files[index]
        try:
            data = read_file(path, MAX_FILE_BYTES)
        except UnreadableFile as error:
            raise BadRecord(str(path), error.reason) from error
        return {"image": image.decode(data, str(path)), "label": int(self._labels[index])}

    def arrays(self) -> None:
        return None


def open_folder(split: str, root: str | None) -> FolderSource:
    """Opens one split of a folder of class folders.

    Classes are numbered in the order of their sorted names. Where both splits exist they must have
    the same classes, or labels would not mean the same thing.
    """
    if root is None:
        raise UsageError(f"a folder data set needs its root. {LAYOUT}.")
    if split not in FOLDERS:
        raise unknown("split", split, FOLDERS)
    top = Path(root)
    folder = next((top / name for name in FOLDERS[split] if (top / name).is_dir()), None)
    if folder is None:
        looked = ", ".join(str(top / name) for name in FOLDERS[split])
        raise UsageError(f"there is no split {split!r} in {root}: looked for {looked}. {LAYOUT}.")
    classes = _class_names(folder)
    for other in {name for names in FOLDERS.values() for name in names}:
        if (top / other).is_dir():
            _check_same_classes(folder, classes, top / other)
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(
            entry.name
            for entry in os.scandir(folder / name)
            if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
        )
        if not found:
            raise UsageError(
                f"{folder / name} has no images. Add some ({', '.join(SUFFIXES)}) or remove it."
            )
        files += [f"{name}/{file}" for file in found]
        labels += [label] * len(found)
    return FolderSource(folder, classes, files, labels)


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
