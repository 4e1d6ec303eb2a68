"""Test sets for ImageNet's classifiers by other authors, who ask what its accuracy is worth.

They are read as their archives unpack, in a folder for each class, or from the plain tar file. None
is turned by EXIF tags, as in the pipelines that published accuracies come from.
"""

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.files import read_json
from mnv2_jax.lab.data import image
from mnv2_jax.lab.data.readers.files import SUFFIXES, read_record
from mnv2_jax.lab.data.readers.folder import walk_images
from mnv2_jax.lab.data.readers.imagenet import cached_index, open_imagenet, read_tar_image
from mnv2_jax.lab.data.source import LazySource
from mnv2_jax.models.classes import imagenet

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression",
)  # fmt: skip
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # of which no score is made
SEVERITIES = (1, 2, 3, 4, 5)
REAL = "real.json"
CORRUPTED = "imagenet_c"
TAR = ("name", "offset", "size")  # what an image in a tar file is read by


class Kind(NamedTuple):
    """What a whole set holds, and how its authors hand it out."""

    images: int
    classes: int
    archives: tuple[str, ...]  # tar files that are read as they are
    layout: str


SETS = {
    "imagenet_v2": Kind(10_000, 1_000, (), "ROOT/0/*.jpeg to ROOT/999/*.jpeg, one of its versions"),
    "imagenet_a": Kind(7_500, 200, ("imagenet-a.tar",), "ROOT/n01498041/*.jpg, or imagenet-a.tar"),
    "imagenet_r": Kind(30_000, 200, ("imagenet-r.tar",), "ROOT/n01443537/*.jpg, or imagenet-r.tar"),
    "imagenet_sketch": Kind(50_889, 1_000, (), "ROOT/n01440764/*.JPEG"),
    CORRUPTED: Kind(
        50_000, 1_000, ("noise.tar", "blur.tar", "weather.tar", "digital.tar", "extra.tar"),
        "ROOT/gaussian_noise/1/n01440764/*.JPEG, or noise.tar, blur.tar and the others in ROOT",
    ),
}  # fmt: skip


class RobustSource(LazySource):
    """A test set that is scored in a way of its own."""

    asked: tuple[int, ...] = ()  # the classes that are choices, where they are not all
    whole = False  # whether images are seen without a crop, for they have been cropped before


def open_robust(name: str, split: str, root: str) -> RobustSource:
    """Opens one of `SETS`; the split of `imagenet_c` is a corruption and a severity, "fog/3".

    Folders of classes are called by WordNet id, or by number in the order of those ids. Of sets
    with fewer classes than ImageNet, only those are `asked` for. `UsageError` if an image is of no
    class, or there are more than the set has; fewer are told as left out.
    """
    kind, part = SETS[name], split if name == CORRUPTED else ""
    if not Path(root).exists():
        raise UsageError(f"{root} is not there. The layout is {kind.layout}.")
    choices = [f"{corruption}/{s}" for corruption in CORRUPTIONS + EXTRA for s in SEVERITIES]
    if part and part not in choices:
        raise unknown(f"split of {name}", part, choices)
    paths, read, files = _listed(Path(root), kind, part)
    ids = tuple(imagenet())
    numbers = {word: i for i, word in enumerate(ids)}
    numbers |= {str(i): i for i in range(len(numbers))}
    labels = [numbers.get(PurePosixPath(path).parent.name, -1) for path in paths]
    if not paths or -1 in labels:
        what = (
            f"{paths[labels.index(-1)]}, which is in no folder of a class" if paths else "no images"
        )
        raise UsageError(f"{name}: {root} has {what}. The layout is {kind.layout}.")
    if len(paths) > kind.images:
        more = f"{len(paths):,} images, and {name} {kind.images:,}"
        raise UsageError(f"{root} has {more}: give the folder of one set. It is {kind.layout}.")
    left_out = Counter({"images that are missing": kind.images - len(paths)})
    counts = np.bincount(labels, minlength=len(ids)).tolist()
    record = functools.partial(_record, read, labels)
    source = RobustSource(len(paths), record, ids, None, counts, +left_out, files)  # + drops zeros
    source.asked = tuple(np.unique(labels).tolist()) if kind.classes < len(counts) else ()
    source.whole = name == CORRUPTED
    return source


def open_real(split: str, root: str) -> LazySource:
    """Opens ImageNet's validation images with labels "reassessed" (arXiv 2006.07159, Sec. 3).

    `also` (k,) holds all classes that are right, padded with -1, and `label` the first of them.
    Images without any are left out. `real.json` lies beside the archives of imagenet2012.
    """
    source, place = open_imagenet(split, root), Path(root) / REAL
    if not place.is_file():
        page = "https://github.com/google-research/reassessed-imagenet"
        raise UsageError(f"imagenet_real: {REAL} is not in {root}. It is at {page}.")
    table = read_json(place)
    classes = range(len(source.classes))
    right = isinstance(table, list) and all(
        isinstance(row, list) and all(type(i) is int and i in classes for i in row) for row in table
    )
    if not right or len(table) != len(source):
        wanted = f"a list with the classes of each of the {len(source):,} images"
        raise UsageError(f"{place} is not {wanted}. Download it again.")
    ids = [i for i, row in enumerate(table) if row]
    also = np.full((len(ids), max(map(len, table), default=1)), -1, np.int32)
    for number, i in enumerate(ids):
        also[number, : len(table[i])] = table[i]
    record = functools.partial(_reassessed, source, ids, also)
    left_out = Counter({"images without a label": len(source) - len(ids)})
    names = (source.files[0], [*source.files[1], REAL])
    return LazySource(len(ids), record, source.classes, None, None, +left_out, names)


def _reassessed(source: LazySource, ids: list[int], also: np.ndarray, index: int) -> dict[str, Any]:
    return {**source[ids[index]], "label": int(also[index, 0]), "also": also[index]}


def _listed(
    root: Path, kind: Kind, part: str
) -> tuple[list[str], Callable[[int], np.ndarray], tuple[str | Path, list[str]]]:
    """Returns the paths of a set's images, how one is read, and the files that hold them."""
    given = [root] if root.is_file() else [root / name for name in kind.archives]
    for archive in filter(Path.is_file, given):
        if archive.suffix != ".tar":
            raise UsageError(f"{archive} is not a plain tar file: unpack it, and give the folder.")
        index = cached_index(archive, nested=False)
        names = [name.decode() for name in index["name"].tolist()]
        own = [i for i, n in enumerate(names) if f"/{part}/" in f"/{n}" or not part]
        own = [i for i in own if names[i].lower().endswith(SUFFIXES)]
        if own:
            read = functools.partial(read_tar_image, archive, {k: index[k][own] for k in TAR})
            return [names[i] for i in own], read, (archive.parent, [archive.name])
    places = (place for place in (root / part, *sorted(root.glob(f"*/{part}"))) if place.is_dir())
    folder = next(places, None) if part else root
    if folder is None:
        raise UsageError(f"{root} has no {part}. The layout is {kind.layout}.")
    paths = sorted(walk_images(folder, Counter()))
    return paths, functools.partial(_read_file, folder, paths), (folder, paths)


def _read_file(folder: Path, paths: list[str], index: int) -> np.ndarray:
    path = folder / paths[index]
    return image.decode(read_record(path), str(path), orient=False)


def _record(read: Callable[[int], np.ndarray], labels: list[int], index: int) -> dict[str, Any]:
    return {"image": read(index), "label": labels[index]}
