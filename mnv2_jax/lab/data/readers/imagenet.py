"""ILSVRC2012 straight from its official tar files, which are never unpacked.

The first opening keeps an index of offsets, beside the archive or in the cache folder. Images are
not turned by their EXIF tags, as in the pipelines that published accuracies come from.
"""

import functools
import hashlib
import io
import logging
import os
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import cache_folder, opened, replacing
from mnv2_jax.lab.data import image
from mnv2_jax.lab.data.readers.archives import MAX_MEMBER_BYTES, read_tar_gz, tar_members
from mnv2_jax.lab.data.source import BadRecord, LazySource

TRAIN, TEST = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
GROUND_TRUTH, SYNSETS = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
LAYOUT = f"Register at https://image-net.org/download, and put {TRAIN}, {TEST} and {DEVKIT} in one "
LAYOUT += "folder, as they are"
INDEX_FORMAT = 2
Index = dict[str, np.ndarray]

log = logging.getLogger(__name__)


def open_imagenet(split: str, root: str) -> LazySource:
    """Opens the training or the validation ("test") images, labelled by sorted WordNet id."""
    needed = (TRAIN,) if split == "train" else (TEST, DEVKIT)
    for name in needed:
        if not (Path(root) / name).is_file():
            raise UsageError(f"imagenet2012: {name} is not in {root}. {LAYOUT}.")
    path = Path(root) / needed[0]
    index = cached_index(path, split == "train")
    classes = tuple(index["classes"].tolist())
    if split != "train":
        index["label"], classes = read_devkit(Path(root) / DEVKIT)
    images, labels = len(index["name"]), len(index["label"])
    if images != labels:
        numbers = f"{images:,} images and {DEVKIT} {labels:,} labels"
        raise UsageError(f"{path} has {numbers}. Download the one that is cut short again.")
    counts = np.bincount(index["label"], minlength=len(classes)).tolist()
    read = functools.partial(_read, path, index)
    return LazySource(images, read, classes, counts=counts, files=(root, needed))


def _read(path: Path, index: Index, i: int) -> dict:
    return {"image": read_tar_image(path, index, i), "label": int(index["label"][i])}


def read_tar_image(path: Path, index: Index, i: int) -> np.ndarray:
    """Reads an image inside an uncompressed tar file, by its offset."""
    name, size = f"{path}:{index['name'][i].decode()}", int(index["size"][i])
    try:
        with path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, int(index["offset"][i]))
    except OSError as error:
        raise BadRecord(name, first_line(error)) from error
    if len(data) != size:
        raise BadRecord(name, f"{len(data)} of its {size} bytes are left")
    return image.decode(data, name, orient=False)


def _make_index(path: Path, nested: bool) -> Index:
    """Indexes a tar file of images in the order of their names, which the labels follow.

    Where they are nested, each class has a tar file of its own in it, named by WordNet id.
    """
    rows, classes = [], []
    with path.open("rb") as file:
        members = sorted(tar_members(file.fileno(), str(path), 0, path.stat().st_size))
        for label, member in enumerate(members):
            if not nested:
                rows.append((*member, 0))
                continue
            archive, end = f"{path}:{member.name}", member.offset + member.size
            if not member.name.endswith(".tar"):
                raise UsageError(f"{archive} is not the tar file of a class. Is this {TRAIN}?")
            classes.append(PurePosixPath(member.name).stem)
            images = tar_members(file.fileno(), archive, member.offset, end)
            rows += [(*image, label) for image in sorted(images)]
    if not rows:
        raise UsageError(f"{path} has no images. Download it again.")
    large = next((name for name, _, size, _ in rows if size > MAX_MEMBER_BYTES), None)
    if large is not None:
        raise UsageError(f"{path} holds {large}, above {MAX_MEMBER_BYTES:,} bytes.")
    names, offsets, sizes, labels = zip(*rows, strict=True)
    twice = next((a for a, b in pairwise(sorted(names)) if a == b), None)
    if twice is not None:
        raise UsageError(f"{path} holds {twice!r} twice. Download it again.")
    return {
        "name": np.array([name.encode() for name in names]), "classes": np.array(classes, str),
        "offset": np.array(offsets, np.int64), "size": np.array(sizes, np.int64),
        "label": np.array(labels, np.int32),
    }  # fmt: skip


def cached_index(path: Path, nested: bool) -> Index:
    """Loads the index of an unchanged archive, or makes and keeps it."""
    status = path.stat()
    stamp = np.array([INDEX_FORMAT, status.st_size, status.st_mtime_ns])
    cache = cache_folder()
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    places = (path.with_name(path.name + ".index.npz"), cache / f"{path.name}.{digest}.index.npz")
    for place in places:
        if (index := _load_index(place, stamp)) is not None:
            return index
    log.info("indexing %s once; this reads all its headers", path)
    index = _make_index(path, nested)
    kept: dict[str, Any] = index | {"stamp": stamp}
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as partial, partial.open("wb") as file:  # processes may race
                np.savez_compressed(file, **kept)
            break
        except OSError as error:
            log.warning("cannot keep the index of %s at %s: %s", path, place, error)
    return index


def _load_index(place: Path, stamp: np.ndarray) -> Index | None:
    """Loads an index that belongs to this very archive; None if there is none or it is damaged."""
    if not os.path.lexists(place):
        return None
    try:
        with opened(place) as file, np.load(file, allow_pickle=False) as arrays:
            index = dict(arrays)
        same, ends = np.array_equal(index.pop("stamp"), stamp), index["offset"] + index["size"]
        sound = len(index["name"]) == len(index["label"]) == len(ends) and ends.max() <= stamp[1]
        return index if same and sound else None
    except Exception as error:  # zipfile and numpy raise anything on damaged files
        log.warning("ignoring the damaged index %s: %s", place, error)
        return None


def read_devkit(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads the validation labels, renumbered by sorted WordNet id, and those ids."""
    from scipy.io import loadmat

    files = read_tar_gz(path, (SYNSETS, GROUND_TRUTH))
    try:
        synsets = loadmat(io.BytesIO(files[SYNSETS]), squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"] == 0]
        wordnet = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
        classes = tuple(sorted(wordnet.values()))
        number = {key: classes.index(name) for key, name in wordnet.items()}
        truth = files[GROUND_TRUTH].split()
        return np.array([number[int(line)] for line in truth], np.int32), classes
    except Exception as error:  # scipy raises anything on a damaged meta.mat
        lacks = f"no usable {SYNSETS} and {GROUND_TRUTH} ({first_line(error)})"
        raise UsageError(f"{path} has {lacks}. Download it again.") from error
