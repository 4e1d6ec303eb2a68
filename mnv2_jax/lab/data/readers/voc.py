"""Pascal VOC's layout: boxes in XML files, label maps in PNG files.

Difficult objects are left out and counted, as in VOC's own evaluation.
"""

import os
import re
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import read_file
from mnv2_jax.lab.data.readers import files
from mnv2_jax.lab.data.readers.annotated import AnnotatedImages, Object, paired_source
from mnv2_jax.lab.data.source import LazySource, class_name, find_part, share

MAX_XML_BYTES = 1 << 24
LAYOUTS = {
    kind: f"The layout is VOC2012's: ROOT/JPEGImages, ROOT/{part}, ROOT/ImageSets/{kind}/SPLIT.txt"
    for kind, part in (("Main", "Annotations"), ("Segmentation", "SegmentationClass"))
}
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def open_voc(split: str, root: str) -> LazySource:
    """Opens one split with its boxes.

    Classes are VOC's twenty, or the lines of `classes.txt`. Of a set without a list to evaluate on,
    a fifth of the images is held out (see `source.share`).
    """
    top, names = _listed(split, root, "Main", "Annotations", ".xml")
    images = AnnotatedImages(_classes(top))
    index = {name: i for i, name in enumerate(images.classes)}
    for name in names:
        file = top / "Annotations" / f"{name}.xml"
        content = read_file(file, MAX_XML_BYTES)
        try:
            tree = xml.fromstring(content)
        except (xml.ParseError, LookupError, ValueError) as error:  # or an unknown encoding
            raise UsageError(f"{file} cannot be read as XML: {first_line(error)}.") from error
        size = [_number(tree, f"size/{side}", f"{file}: the file") for side in ("height", "width")]
        objects = []
        for i, entry in enumerate(tree.iter("object")):
            where = f"{file}: object {i}"
            kind = class_name(_text(entry, "name", where))
            if kind not in index:
                listed = f"not among the classes: list it in {top / 'classes.txt'}"
                raise UsageError(f"{where} is a {kind!r}, which is {listed}, or remove it.")
            sides = [f"bndbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax")]
            left, upper, right, lower = (_number(entry, side, where) for side in sides)
            if (entry.findtext("difficult") or "0").strip() == "1":
                images.dropped["difficult"] += 1
                continue
            # They count from 1, and the last two are inclusive.
            objects.append(Object((upper - 1, left - 1, lower, right), index[kind]))
        images.add(_image(top, name), size, objects, str(file))
    return images.source(f"{top} {split}")


def open_voc_segmentation(split: str, root: str) -> LazySource:
    """Opens one split with its label maps; the rest is as for `open_voc`.

    The split `trainaug` takes its maps from `SegmentationClassAug`, where the field keeps them.
    """
    folder = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
    top, names = _listed(split, root, "Segmentation", folder, ".png")
    pairs = [(_image(top, name), top / folder / f"{name}.png") for name in names]
    return paired_source(pairs, ("background", *_classes(top)), LAYOUTS["Segmentation"])


def _classes(top: Path) -> tuple[str, ...]:
    """Returns the classes of a folder, without background."""
    own = top / "classes.txt"
    return files.read_classes(own) if os.path.lexists(own) else VOC_CLASSES


def _image(top: Path, name: str) -> Path:
    """Returns the file of an image, whatever its ending; that of VOC where there is none."""
    stem = os.path.join(top, "JPEGImages", name)
    endings = (form for suffix in files.SUFFIXES for form in (suffix, suffix.upper()))
    return Path(next((stem + e for e in endings if os.path.isfile(stem + e)), f"{stem}.jpg"))


def _listed(split: str, root: str, kind: str, folder: str, suffix: str) -> tuple[Path, list[str]]:
    """Returns the folder and the names of a split: those in its list, or a share of all files."""
    top = files.unwrapped(Path(root), lambda place: os.path.isdir(place / "JPEGImages"))
    lists = top / "ImageSets" / kind
    name, shared = find_part(split, lambda name: os.path.isfile(lists / f"{name}.txt"))
    if name is not None:
        file = lists / f"{name}.txt"
        names = [_name(line, top / folder, suffix) for line in files.read_lines(file)]
    elif shared and os.path.isdir(top / folder):
        file = top / folder
        listed = sorted(n for n in os.listdir(file) if n.lower().endswith(suffix))
        names = [os.path.splitext(n)[0] for n in listed if not files.is_hidden(n)]
    else:
        raise UsageError(f"{root} has no list ImageSets/{kind}/{split}.txt. {LAYOUTS[kind]}.")
    wrong = next((n for n in names if Path(n).name != n or not n.isprintable()), None)
    if not names or wrong:
        raise UsageError(f"{file} lists {wrong!r}: give the name of one image a line, no path.")
    files.refuse_twice(names, file)
    return top, [names[i] for i in share(names, split)] if shared else names


def _name(line: str, folder: Path, suffix: str) -> str:
    """Returns the image that a line names, also with its ending or VOC's mark of a class."""
    plain = re.sub(r"\s+-?[01]$", "", line)
    names = (line, plain, os.path.splitext(line)[0])
    return next((name for name in names if os.path.isfile(folder / f"{name}{suffix}")), plain)


def _text(entry: Any, tag: str, where: str) -> str:
    found = entry.findall(tag)
    text = (found[0].text or "").strip() if found else ""
    if not text or len(found) > 1:
        fault = f"has {tag} {len(found)} times" if text else f"has no {tag}"
        raise UsageError(f"{where} {fault}. It is needed once, as in VOC's own files.")
    return text


def _number(entry: Any, tag: str, where: str) -> float:
    text = _text(entry, tag, where)
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{where} has {tag} {text[:40]!r}, which is not a number.") from None
