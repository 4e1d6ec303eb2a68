"""Pascal VOC's layout: boxes in XML files, label maps in PNG files.

Difficult objects are left out and counted, as in VOC's own evaluation.
"""

import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import read_file
from mnv2_jax.lab.data.readers.boxes import MAX_SIDE, AnnotatedImages, Object
from mnv2_jax.lab.data.readers.files import MAX_RECORD_BYTES, read_lines
from mnv2_jax.lab.data.readers.label_maps import paired_source
from mnv2_jax.lab.data.source import LazySource, find_split

BOXES_LAYOUT = (
    "The layout is that of VOC2012: ROOT/JPEGImages, ROOT/Annotations, "
    "ROOT/ImageSets/Main/SPLIT.txt"
)
MAPS_LAYOUT = (
    "The layout is that of VOC2012: ROOT/JPEGImages, ROOT/SegmentationClass, "
    "ROOT/ImageSets/Segmentation/SPLIT.txt"
)
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def open_voc(split: str, root: str) -> LazySource:
    """Opens one split with its boxes.

    Classes are VOC's twenty, or the lines of `classes.txt`.

    Raises:
      UsageError: files are missing, or an XML file is not what it should be; both are named.
    """
    top, names = _listed(split, root, "Main", BOXES_LAYOUT)
    images = AnnotatedImages(_classes(top))
    index = {name: i for i, name in enumerate(images.classes)}
    for name in names:
        file = top / "Annotations" / f"{name}.xml"
        try:
            tree = xml.fromstring(read_file(file, MAX_RECORD_BYTES))
        except xml.ParseError as error:
            raise UsageError(f"{file} cannot be read as XML: {first_line(error)}.") from error
        size = (_pixels(tree, "size/height", file), _pixels(tree, "size/width", file))
        objects = []
        for i, entry in enumerate(tree.iter("object")):
            where = f"{file}: object {i}"
            kind = _text(entry, "name", where)
            if kind not in index:
                raise UsageError(
                    f"{where} is a {kind!r}, which is not among the classes: list it in "
                    f"{top / 'classes.txt'}, or remove it."
                )
            left, upper, right, lower = (
                _number(entry, f"bndbox/{tag}", where) for tag in ("xmin", "ymin", "xmax", "ymax")
            )
            if (entry.findtext("difficult") or "0").strip() == "1":
                images.dropped["difficult"] += 1
                continue
            # They count from 1, and the last two are inclusive.
            objects.append(Object((upper - 1, left - 1, lower, right), index[kind]))
        images.add(top / "JPEGImages" / f"{name}.jpg", size, objects, str(file))
    return images.source(f"{top} {split}")


def open_voc_segmentation(split: str, root: str) -> LazySource:
    """Opens one split with its label maps.

    The split `trainaug` takes its maps from `SegmentationClassAug`, where the field keeps them.

    Raises:
      UsageError: files are missing.
    """
    top, names = _listed(split, root, "Segmentation", MAPS_LAYOUT)
    maps = top / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")
    pairs = [(top / "JPEGImages" / f"{name}.jpg", maps / f"{name}.png") for name in names]
    return paired_source(pairs, ("background", *_classes(top)), MAPS_LAYOUT)


def _classes(top: Path) -> tuple[str, ...]:
    """Returns the classes of a folder, without background."""
    own = top / "classes.txt"
    if not own.is_file():
        return VOC_CLASSES
    names = tuple(read_lines(own))
    if not names or len(set(names)) < len(names):
        raise UsageError(
            f"{own} lists {len(names)} classes, {len(set(names))} different: give one a line."
        )
    return names


def _listed(split: str, root: str, kind: str, layout: str) -> tuple[Path, list[str]]:
    """Returns the folder and the names listed for a split."""
    lists = Path(root) / "ImageSets" / kind
    name = find_split(split, lambda name: (lists / f"{name}.txt").is_file())
    if name is None:
        raise UsageError(f"{root} has no list ImageSets/{kind}/{split}.txt. {layout}.")
    file = lists / f"{name}.txt"
    names = [line.split()[0] for line in read_lines(file)]
    wrong = next((n for n in names if Path(n).name != n or not n.isprintable()), None)
    if not names or wrong:
        raise UsageError(f"{file} lists {wrong!r}: give the name of one image a line, no path.")
    return Path(root), names


def _text(entry: Any, tag: str, where: str) -> str:
    text = (entry.findtext(tag) or "").strip()
    if not text:
        raise UsageError(f"{where} has no {tag}. It is needed as in VOC's own files.")
    return text


def _pixels(tree: Any, tag: str, file: Path) -> int:
    where = f"{file}: the file"
    value = _number(tree, tag, where)
    if not 1 <= value <= MAX_SIDE:
        raise UsageError(f"{where} has {tag} {value:g}: it must be at least 1. Correct it.")
    return int(value)


def _number(entry: Any, tag: str, where: str) -> float:
    text = _text(entry, tag, where)
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{where} has {tag} {text[:40]!r}, which is not a number.") from None
