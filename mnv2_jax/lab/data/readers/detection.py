"""Folders of images with boxes: COCO's annotation JSON, and Pascal VOC's XML files.

Annotations are read once, when a set is opened: a file that is not what it should be is refused
there, with the record named. Boxes that are none are dropped and counted, as the field's readers
do, and so are VOC's difficult objects. COCO's crowds stay, marked as what `objects` says.
"""

import json
import logging
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.files import UnreadableFile, read_file
from mnv2_jax.lab.data import image
from mnv2_jax.lab.data.annotations import PADDING_CLASS, clean_objects
from mnv2_jax.lab.data.record import BadRecord

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 28
MAX_SIDE = 1 << 20
SPLITS = {
    "train": ("train", "train2017", "train2014"),
    "test": ("test", "val", "val2017", "val2014"),
    "val": ("val", "val2017", "val2014", "test"),
    "validation": ("val", "val2017", "val2014", "test"),
}
COCO_LAYOUT = (
    "The layout is ROOT/annotations/instances_val2017.json with ROOT/val2017/*.jpg, or "
    "ROOT/val/annotations.json with ROOT/val/images/*"
)
VOC_LAYOUT = (
    "The layout is that of VOC2012: ROOT/JPEGImages, ROOT/Annotations, "
    "ROOT/ImageSets/Main/SPLIT.txt"
)
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


class DetectionSource:
    """Images with boxes; the images are decoded when read.

    Records have `image` (h, w, 3) uint8, `boxes` (n, 4) float32 and `classes` (n,) int32, below -1
    for crowds (`objects.crowd_of`).
    """

    def __init__(self, classes: tuple[str, ...]):
        self.classes = classes
        self.dropped: Counter[str] = Counter()
        self._files: list[tuple[Path, tuple[int, int], np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, size, boxes, classes = self._files[index]
        # Boxes are those of the stored pixels, whatever their EXIF tag says.
        pixels = image.decode(read_bytes(path), str(path), orient=False)
        if pixels.shape[:2] != size:
            found = "{1}x{0}".format(*pixels.shape)
            raise BadRecord(str(path), f"{found} pixels, annotated as {size[1]}x{size[0]}")
        return {"image": pixels, "boxes": boxes, "classes": classes}

    def arrays(self) -> None:
        return None

    def add(
        self,
        path: Path,
        size: tuple[int, int],
        corners: list[Sequence[float]],
        classes: list[int],
        name: str,
        crowd: list[bool] | None = None,
    ) -> None:
        """Adds an image of (height, width) with boxes in pixels: top, left, bottom, right."""
        boxes = np.array(corners, np.float64).reshape(-1, 4) / np.tile(size, 2)
        crowds = None if crowd is None else np.array(crowd, bool)
        found = clean_objects(
            boxes, np.array(classes, int), len(self.classes), len(boxes), name, crowds
        )
        self.dropped.update(found.dropped)
        kept = found.classes != PADDING_CLASS
        self._files.append((path, size, found.boxes[kept], found.classes[kept]))

    def finish(self, name: str) -> "DetectionSource":
        """Says what was dropped, and refuses an empty set."""
        if not self._files:
            raise UsageError(f"{name} lists no images: give a set with at least one.")
        if self.dropped:
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(self.dropped.items()))
            log.warning("%s: objects left out: %s", name, reasons)
        return self


def read_bytes(path: Path) -> bytes:
    """Reads a file of a record.

    Raises:
      BadRecord: it is missing, unreadable or too large.
    """
    try:
        return read_file(path, MAX_FILE_BYTES)
    except UnreadableFile as error:
        raise BadRecord(str(path), error.reason) from error


def read_lines(path: Path) -> list[str]:
    """Reads a list of names.

    Raises:
      UsageError: it cannot be read, or is not text.
    """
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}. It has to be text in UTF-8.") from error


def open_coco(split: str, root: str | None) -> DetectionSource:
    """Opens one split of a set in COCO's format.

    Classes are numbered in the order of their category ids.

    Raises:
      UsageError: files are missing, or the JSON is not what it should be; record and key are named.
    """
    if root is None:
        raise UsageError(f"coco needs its root. {COCO_LAYOUT}.")
    top, names = Path(root), SPLITS.get(split, (split,))
    places = [
        place
        for name in names
        for place in (
            (top / "annotations" / f"instances_{name}.json", top / name),
            (top / name / "annotations.json", top / name / "images"),
        )
    ]
    place = next((place for place in places if place[0].is_file()), None)
    if place is None:
        raise UsageError(f"{root} has no annotations of the split {split!r}. {COCO_LAYOUT}.")
    file, folder = place
    content = _read_json(file)
    categories = {_field(c, "id", int, file, "category"): c for c in content["categories"]}
    order = {number: i for i, number in enumerate(sorted(categories))}
    source = DetectionSource(
        tuple(_field(categories[n], "name", str, file, f"category {n}") for n in sorted(categories))
    )
    images = {_field(i, "id", int, file, "image"): i for i in content["images"]}
    corners: dict[int, list] = {number: [] for number in images}
    classes: dict[int, list] = {number: [] for number in images}
    crowds: dict[int, list] = {number: [] for number in images}
    for annotation in content["annotations"]:
        number = _field(annotation, "image_id", int, file, _named("annotation", annotation))
        box, category = _coco_object(annotation, order, images, number, file)
        crowds[number].append(bool(annotation.get("iscrowd")))
        corners[number].append(box)
        classes[number].append(order[category])
    for number, entry in images.items():
        name = f"image {number}"
        size = (_field(entry, "height", int, file, name), _field(entry, "width", int, file, name))
        if not 1 <= min(size) <= max(size) <= MAX_SIDE:
            shown = "{1}x{0}".format(*(str(n)[:12] for n in size))
            raise UsageError(f"{file}: {name} is {shown} pixels. Correct it.")
        path = folder / _field(entry, "file_name", str, file, name)
        try:
            inside = path.resolve().is_relative_to(folder.resolve())
        except ValueError:  # a NUL, or half of a character
            inside = False
        if not inside:
            raise UsageError(f"{file}: {name} is not in {folder}: {str(path)!r}. It is refused.")
        source.add(path, size, corners[number], classes[number], f"{file} {name}", crowds[number])
    return source.finish(str(file))


def _coco_object(
    annotation: Any, order: dict[int, int], images: dict[int, Any], number: int, file: Path
) -> tuple[list[float], int]:
    """Gives one annotation's corners and category id."""
    name = _named("annotation", annotation)
    category = _field(annotation, "category_id", int, file, name)
    box = _field(annotation, "bbox", list, file, name)
    if number not in images:
        raise UsageError(f"{file}: {name} is of image {number}, which is not listed. Add or drop.")
    if category not in order:
        raise UsageError(
            f"{file}: {name} has category_id {category}, which is not listed: the ids are "
            f"{', '.join(map(str, list(order)[:8]))}{', …' if len(order) > 8 else ''}."
        )
    if len(box) != 4 or not all(isinstance(v, float) or _is_small(v) for v in box):
        given = repr(box)[:80]
        raise UsageError(f"{file}: {name} has bbox {given}: it must be [left, top, width, height].")
    left, top, width, height = box
    return [top, left, top + height, left + width], category


def _is_small(value: Any) -> bool:
    """Whether an integer of the file, which may have any number of digits, is a count of pixels."""
    return isinstance(value, int) and abs(value) <= MAX_SIDE


def _named(kind: str, entry: Any) -> str:
    return f"{kind} {entry.get('id', '?')}" if isinstance(entry, dict) else kind


def _read_json(file: Path) -> dict[str, list]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read as JSON: {error}.") from error
    for key in ("images", "annotations", "categories"):
        _field(content, key, list, file, "the file")
    if not content["categories"]:
        raise UsageError(f"{file} has no categories: add the classes of its objects.")
    return content


def _field(entry: Any, key: str, kind: type, file: Path, name: str) -> Any:
    """Looks a key up."""
    if not isinstance(entry, dict) or key not in entry:
        raise UsageError(f"{file}: {name} has no {key!r}. It is needed as in COCO's own files.")
    if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
        given = repr(entry[key])[:80]
        raise UsageError(f"{file}: {name} has {key} {given}: it must be of type {kind.__name__}.")
    return entry[key]


def open_voc(split: str, root: str | None) -> DetectionSource:
    """Opens one split of a folder in VOC's layout, with its boxes.

    Classes are VOC's twenty, or the lines of `classes.txt`.

    Raises:
      UsageError: files are missing, or an XML file is not what it should be; both are named.
    """
    top, names = voc_split(split, root, "Main", VOC_LAYOUT)
    source = DetectionSource(voc_classes(top))
    index = {name: i for i, name in enumerate(source.classes)}
    for name in names:
        file = top / "Annotations" / f"{name}.xml"
        try:
            tree = xml.fromstring(file.read_bytes())
        except (OSError, xml.ParseError) as error:
            raise UsageError(f"{file} cannot be read as XML: {error}.") from error
        size = (_pixels(tree, "size/height", file), _pixels(tree, "size/width", file))
        corners, classes = [], []
        for i, entry in enumerate(tree.iter("object")):
            kind = _text(entry, "name", file, i)
            if kind not in index:
                raise UsageError(
                    f"{file}: object {i} is a {kind!r}, which is no class: list it in "
                    f"{top / 'classes.txt'}, or remove it."
                )
            left, upper, right, lower = (
                _number(entry, f"bndbox/{tag}", file, i) for tag in ("xmin", "ymin", "xmax", "ymax")
            )
            if (entry.findtext("difficult") or "0").strip() == "1":
                source.dropped["difficult"] += 1
                continue
            corners.append([upper - 1, left - 1, lower, right])  # they count from 1, inclusive
            classes.append(index[kind])
        source.add(top / "JPEGImages" / f"{name}.jpg", size, corners, classes, str(file))
    return source.finish(f"{top} {split}")


def voc_classes(top: Path) -> tuple[str, ...]:
    """Returns the classes of a folder in VOC's layout, without background."""
    own = top / "classes.txt"
    if not own.is_file():
        return VOC_CLASSES
    names = tuple(line.strip() for line in read_lines(own) if line.strip())
    if not names or len(set(names)) < len(names):
        raise UsageError(
            f"{own} lists {len(names)} classes, {len(set(names))} different: give one a line."
        )
    return names


def voc_split(split: str, root: str | None, kind: str, layout: str) -> tuple[Path, list[str]]:
    """Returns the folder and the names listed for a split.

    Raises:
      UsageError: there is no such list.
    """
    if root is None:
        raise UsageError(f"VOC's layout needs a root. {layout}.")
    top = Path(root)
    files = [top / "ImageSets" / kind / f"{name}.txt" for name in SPLITS.get(split, (split,))]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UsageError(f"{root} has no list {files[0].relative_to(top)}. {layout}.")
    names = [line.split()[0] for line in read_lines(file) if line.split()]
    wrong = next((n for n in names if Path(n).name != n or not n.isprintable()), None)
    if not names or wrong:
        raise UsageError(f"{file} lists {wrong!r}: give one name of an image a line, no path.")
    return top, names


def _text(entry: Any, tag: str, file: Path, i: int | None = None) -> str:
    text = (entry.findtext(tag) or "").strip()
    if not text:
        where = "the file" if i is None else f"object {i}"
        raise UsageError(f"{file}: {where} has no {tag}. It is needed as in VOC's own files.")
    return text


def _pixels(tree: Any, tag: str, file: Path) -> int:
    value = _number(tree, tag, file)
    if not 1 <= value <= MAX_SIDE:
        raise UsageError(
            f"{file}: the file has {tag} {value:g}: it must be at least 1. Correct it."
        )
    return int(value)


def _number(entry: Any, tag: str, file: Path, i: int | None = None) -> float:
    text = _text(entry, tag, file, i)
    try:
        return float(text)
    except ValueError:
        where = "the file" if i is None else f"object {i}"
        raise UsageError(f"{file}: {where} has {tag} {text[:40]!r}, which is no number.") from None
