"""Data sets by name: random access to decoded images and labels.

`open_source("digits", "train")` gives a `Source`: a length, records by index, class names, and the
whole set as arrays where it fits in memory. The name → opener table is `OPENERS`.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.lab.data.readers import archives, detection, folder, imagenet, prepared, segmentation
from mnv2_jax.lab.data.record import Record

EMBEDDED = Path(__file__).parent / "embedded"
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
SCENE_CLASSES = ("top", "trouser", "dress", "sandal", "sneaker", "bag", "ankle boot")
SCENE_CLASS_OF = (0, 1, 0, 2, 0, 3, 0, 4, 5, 6)  # for each of `FASHION_CLASSES`
DIGIT_CLASSES = tuple("0123456789")


@runtime_checkable
class Source(Protocol):
    """Random access to the records of one split; picklable, and usable as grain's data source."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; a record's label is an index into them."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Reads one record. Raises `BadRecord` if it cannot be decoded.

        For classification it is a `Record`. Sets for detection have `image`, `boxes` (n, 4) and
        `classes` (n,), below -1 for crowds (see `data.objects`); those for segmentation `image`
        and `label` (h, w), and `pixel_classes` where the labels count a background that boxes
        have not.
        """
        ...

    def arrays(self) -> dict[str, np.ndarray] | None:
        """All records as `image` (n, h, w, c) uint8 and `label` (n,) int32; None if too large."""
        ...


class ArraySource:
    """A set whose images have one size and fit in memory.

    >>> source = ArraySource(np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1, 1]), ("a", "b"))
    >>> len(source), source[2]["label"], source[2]["image"].shape
    (3, 1, (8, 8, 1))
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]):
        if images.ndim != 4 or images.dtype != np.uint8 or len(images) != len(labels):
            raise UsageError(
                f"images must be uint8 (n, h, w, c) with one label each, not {images.dtype} "
                f"{images.shape} with {len(labels)} labels. Reshape or convert them first."
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise UsageError(
                f"labels run from {labels.min()} to {labels.max()} but there are {len(classes)} "
                "classes. Number them from 0, or name all the classes."
            )
        self.classes = classes
        self._images = images
        self._labels = labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Record:
        return {"image": self._images[index], "label": int(self._labels[index])}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"image": self._images, "label": self._labels}


@functools.cache
def _load_embedded(name: str) -> dict[str, np.ndarray]:
    with np.load(EMBEDDED / f"{name}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    for array in arrays.values():
        array.setflags(write=False)  # shared by every caller in the process
    return arrays


def _embedded(name: str, classes: tuple[str, ...], split: str, root: str | None) -> Source:
    if root is not None:
        raise UsageError(f"{name} is part of the package and takes no root, given {root!r}.")
    arrays = _load_embedded(name)
    return ArraySource(arrays[f"{split}_image"], arrays[f"{split}_label"], classes)


def _open_digits(split: str, root: str | None) -> Source:
    return _embedded("digits", DIGIT_CLASSES, split, root)


def _open_fashion_small(split: str, root: str | None) -> Source:
    return _embedded("fashion_mnist_small", FASHION_CLASSES, split, root)


def _open_idx(name: str, classes: tuple[str, ...], split: str, where: Path, get: str) -> Source:
    prefix = "train" if split == "train" else "t10k"
    arrays = []
    for part, dimensions in (("images-idx3", 3), ("labels-idx1", 1)):
        stem = f"{prefix}-{part}-ubyte"
        path = next((p for p in (where / f"{stem}.gz", where / stem) if p.is_file()), None)
        if path is None:
            raise UsageError(f"{name}: {stem}.gz is not in {where}. Get it with: {get}")
        arrays.append(archives.read_idx(path, dimensions))
    return ArraySource(arrays[0][..., None], arrays[1], classes)


def _open_fashion_mnist(split: str, root: str | None) -> Source:
    where = Path(root) if root is not None else DEBIAN_FASHION_MNIST
    get = (
        "apt-get install dataset-fashion-mnist, or download the four files named at "
        "https://github.com/zalandoresearch/fashion-mnist and give their folder as the root"
    )
    return _open_idx("fashion_mnist", FASHION_CLASSES, split, where, get)


def _open_mnist(split: str, root: str | None) -> Source:
    where = _needed_root("mnist", root, "the four *-ubyte.gz files")
    get = f"wget -nc -P {where} {MNIST_URL}{{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte.gz"
    return _open_idx("mnist", DIGIT_CLASSES, split, where, get)


def _open_cifar(name: str, split: str, root: str | None) -> Source:
    where = _needed_root(name, root, f"{name.replace('cifar', 'cifar-')}-binary.tar.gz")
    return ArraySource(*archives.read_cifar(name, split, where))


def _open_scenes(split: str, root: str | None) -> Source:
    """Scenes of 96×96 with one or two embedded items: 20,000 to train on, 1,000 held out.

    Shirts, t-shirts, pullovers and coats are one class, for even people confuse them, and a quarter
    of them is used, so that all classes are as frequent. At least 0.7 of every item is seen. Scenes
    held out show items that no training scene has.
    """
    from mnv2_jax.lab.data.scenes import Scenes

    if root is not None:
        raise UsageError(f"scenes are part of the package and take no root, given {root!r}.")
    arrays = _load_embedded("fashion_mnist_small")
    labels = np.array(SCENE_CLASS_OF)[arrays[f"{split}_label"]]
    kept = (labels != 0) | (np.cumsum(labels == 0) % 4 == 0)
    items = ArraySource(arrays[f"{split}_image"][kept], labels[kept], SCENE_CLASSES)
    length, seed = (20_000, 0) if split == "train" else (1_000, 1)
    return Scenes(items, length, (96, 96), 2, (0.45, 0.75), seed, least_visible=0.7)


def _needed_root(name: str, root: str | None, content: str) -> Path:
    if root is None:
        raise UsageError(f"{name} needs a root: the folder with {content}.")
    return Path(root)


OPENERS: Mapping[str, Callable[[str, str | None], Source]] = {
    "digits": _open_digits,
    "fashion_mnist_small": _open_fashion_small,
    "fashion_mnist": _open_fashion_mnist,
    "mnist": _open_mnist,
    "cifar10": functools.partial(_open_cifar, "cifar10"),
    "cifar100": functools.partial(_open_cifar, "cifar100"),
    "imagenet2012": imagenet.open_imagenet,
    "folder": folder.open_folder,
    "scenes": _open_scenes,
    "coco": detection.open_coco,
    "voc": detection.open_voc,
    "voc_segmentation": segmentation.open_voc_segmentation,
    "cityscapes": segmentation.open_cityscapes,
}
PREPARED, MASKS = "tfds:", "tfds_masks:"
TWO_SPLITS = {"train": "train", "test": "test", "validation": "test", "val": "test"}
# Sets whose opener resolves the names of their splits itself.
OWN_SPLITS = ("folder", "coco", "voc", "voc_segmentation", "cityscapes")


def open_source(name: str, split: str, root: str | None = None) -> Source:
    """Opens one split of a data set by name.

    >>> len(open_source("digits", "train")), len(open_source("digits", "test"))
    (1437, 360)

    Args:
        name: one of `OPENERS`, or `tfds:NAME` for a set prepared by TensorFlow Datasets;
            `tfds_masks:NAME` takes the label maps of a set whose images have labels too.
        split: "train" or "test"; "validation" and "val" mean the test split of a set that has only
            one of them. A prepared set also takes its own split names, and slices of them.
        root: the folder of the data; the embedded sets take none, and `fashion_mnist` and `tfds:`
            have a default.

    Raises:
        UsageError: no such name or split, or the data is missing, damaged or empty.
    """
    if name.startswith(PREPARED):
        return prepared.open_prepared(name.removeprefix(PREPARED), split, root)
    if name.startswith(MASKS):
        return prepared.open_prepared(name.removeprefix(MASKS), split, root, masks=True)
    if name not in OPENERS:
        if Path(name).is_dir():
            raise UsageError(
                f"data set {name!r} is a folder: name the set folder, with {name} as its root."
            )
        raise unknown("data set", name, [*OPENERS, f"{PREPARED}NAME", f"{MASKS}NAME"])
    if name in OWN_SPLITS:
        return OPENERS[name](split, root)
    if split not in TWO_SPLITS:
        raise unknown("split", split, TWO_SPLITS)
    return OPENERS[name](TWO_SPLITS[split], root)
