"""Folders of images: `root/train/CLASS/*.jpg` and `root/val` or `root/test`, or classes alone."""

import functools
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mnv2_jax.errors import UsageError, first_line, unknown
from mnv2_jax.lab.data import image, source
from mnv2_jax.lab.data.readers.files import SUFFIXES, is_hidden, read_record, subfolders, unwrapped

LAYOUT = "The layout is ROOT/train/CLASS/*.jpg with ROOT/val/CLASS/*.jpg or ROOT/test/CLASS/*.jpg, "
LAYOUT += "or ROOT/CLASS/*.jpg, of which a fifth is held out"


def open_folder(split: str, root: str) -> source.LazySource:
    """Opens one split of a folder of class folders; images are decoded when they are read.

    Classes are those of `train`, numbered in the order of their sorted names; other splits may lack
    some. Images lie at any depth in the folder of their class. Where there is nothing to evaluate
    on, a fifth of the images is held out (see `source.share`).
    """
    if source.split_kind(split) is None:
        raise unknown("split", split, source.SPLITS)
    # Classes or splits are several.
    top = unwrapped(Path(root), lambda place: len(subfolders(place)) > 1 or bool(_splits(place)))
    inside = subfolders(top)
    name, shared = source.find_part(split, inside.__contains__)
    if name is None and not (shared and inside):
        raise UsageError(f"{root} has no images for the split {split!r}. {LAYOUT}.")
    folder = top / name if name else top
    train = top / (source.find_part("train", inside.__contains__)[0] or name or "")
    own, classes = _classes(folder), tuple(_classes(train))
    more = [f"+{name}" for name in own if name not in classes]
    if more:
        shown = f"{folder} has classes that {train} lacks: {', '.join(more[:5])}"
        raise UsageError(f"{shown}. Give both the same class folders.")
    if len(_splits(folder)) > 1:
        splits = f"folders {', '.join(own)}, which tell of splits"
        raise UsageError(f"{folder} has {splits}: call them train and val.")
    if shared and len(classes) == 1:
        raise UsageError(f"{folder} has one class, {classes[0]!r}, and two are needed. {LAYOUT}.")
    left_out, files, labels = Counter(), [], []
    for path in walk_images(folder, left_out, deep=False):
        left_out[f"{Path(path).suffix.lower()} files in no class"] += 1
    for label, kind in enumerate(classes):
        images = sorted(walk_images(folder / own[kind], left_out)) if kind in own else []
        if not images and folder == train:
            raise UsageError(f"{folder / own[kind]} has no images. Add some, or remove it.")
        images = [f"{own[kind]}/{path}" for path in images]
        chosen = source.share(images, split) if shared else range(len(images))
        files += [images[i] for i in chosen]
        labels += [label] * len(chosen)
    if not files:
        raise UsageError(f"{folder} has no images. {LAYOUT}.")
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    read = functools.partial(_read, folder, files, np.array(labels, np.int32))
    return source.LazySource(len(files), read, classes, None, counts, left_out, (folder, files))


def _read(folder: Path, files: list[str], labels: np.ndarray, index: int) -> dict:
    path = folder / files[index]
    return {"image": image.decode(read_record(path), str(path)), "label": int(labels[index])}


def _classes(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in subfolders(folder):
        other = found.setdefault(source.class_name(name), name)
        if other != name:
            two = f"two folders of the class {source.class_name(name)!r}, {other!a} and {name!a}"
            raise UsageError(f"{folder} has {two}: make them one.")
    if not found:
        raise UsageError(f"{folder} has no class folders. {LAYOUT}.")
    return found


def _splits(folder: Path) -> set[str]:
    """The kinds of splits that names of folders tell of, such as that of train_set."""
    words = (word for name in subfolders(folder) for word in re.split(r"[\W\d_]+", name))
    return set(filter(None, map(source.split_kind, words)))


def walk_images(
    folder: Path, left_out: Counter, deep: bool = True, endings: tuple[str, ...] = SUFFIXES
) -> Iterator[str]:
    """Yields the images in a folder, those in its subfolders too; counts what it leaves out."""
    seen = set()
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # links in a loop, or two to one folder
            left_out["folders met twice"] += 1
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if deep and not is_hidden(name)]
        for name in (name for name in files if not is_hidden(name)):
            if name.lower().endswith(endings):
                yield os.path.relpath(os.path.join(place, name), folder)
            else:
                ending = os.path.splitext(name)[1].lower()
                left_out[f"{ending} files" if ending else "files without an ending"] += 1


def _refuse(error: OSError) -> None:
    raise UsageError(f"{error.filename} cannot be read: {first_line(error)}.") from error
