"""COCO's annotations: one JSON file for each split, with the images beside it.

What is not as it should be is refused when a set is opened, with the record and the key named.
"""

import os
from pathlib import Path
from typing import Any

from mnv2_jax.errors import UsageError, shown
from mnv2_jax.files import read_json
from mnv2_jax.lab.data.readers.annotated import AnnotatedImages, Object
from mnv2_jax.lab.data.readers.files import MAX_JSON_BYTES, unwrapped
from mnv2_jax.lab.data.source import LazySource, class_name, find_part, share

YEARS = ("", "2017", "2014")  # that COCO's own splits are named after
# Where COCO, Roboflow, CVAT, FiftyOne and others keep the annotations of a split, or of all images.
SPLIT_FILES = (
    "annotations/instances_{}.json", "{}/annotations.json", "{}/_annotations.coco.json",
    "annotations/{}.json", "{}/labels.json", "{}.json",
)  # fmt: skip
WHOLE_FILES = (
    "annotations/instances_default.json", "annotations/instances.json", "annotations.json",
    "_annotations.coco.json", "labels.json", "result.json",
)  # fmt: skip
FOLDERS = ("{}/images", "{}/data", "images/{}", "images/default", "images", "data", "{}", "")
TRIED = 8  # images whose place tells where the others are
LAYOUT = "The layout is ROOT/annotations/instances_val2017.json with ROOT/val2017/*.jpg, "
LAYOUT += "ROOT/val/annotations.json with ROOT/val/images/*, or that of Roboflow or CVAT"


def open_coco(split: str, root: str) -> LazySource:
    """Opens one split of a set in COCO's format.

    Classes are numbered in the order of their category ids. Of a set without a split to evaluate
    on, a fifth of the images is held out (see `source.share`).
    """
    file, top, stem, shared = _find(split, Path(root))
    content = read_json(file, MAX_JSON_BYTES)
    for key in ("images", "annotations", "categories"):
        _field(content, key, list, f"{file}: the file")
    categories = _categories(content, file)
    order = {number: i for i, number in enumerate(sorted(categories))}
    images = _unique(content["images"], "id", int, "file_name", f"{file}: image")
    names = list(_unique(content["images"], "file_name", str, "id", f"{file}: image"))
    known = [a for a in content["annotations"] if type(a) is dict and type(a.get("id")) is int]
    _unique(known, "id", int, "image_id", f"{file}: annotation")
    objects: dict[int, list[Object]] = {number: [] for number in images}
    for annotation in content["annotations"]:
        _add_object(objects, annotation, order, file)
    folder = _image_folder(top, stem, names)
    collected, entries = AnnotatedImages(tuple(categories[n] for n in order)), list(images.items())
    for number, entry in (entries[i] for i in share(names, split)) if shared else entries:
        where = f"{file}: image {number}"
        size = _field(entry, "height", int, where), _field(entry, "width", int, where)
        collected.add(_inside(folder, entry["file_name"], where), size, objects[number], where)
    return collected.source(str(file))


def _find(split: str, root: Path) -> tuple[Path, Path, str, bool]:
    """Returns the annotations of a split, the root, how it calls the split, and if it is shared."""

    def files(top: Path, name: str | None) -> list[tuple[Path, Path, str]]:
        stems = [f"{name}{year}" for year in YEARS] if name else [""]
        places = SPLIT_FILES if name else WHOLE_FILES
        found = [(top / place.format(stem), top, stem) for stem in stems for place in places]
        return [row for row in found if os.path.isfile(row[0])]

    def name_of(top: Path) -> tuple[str | None, bool]:
        return find_part(split, lambda name: bool(files(top, name)))

    top = unwrapped(root, lambda top: bool(files(top, name_of(top)[0])))
    name, shared = name_of(top)
    found = files(top, name) if name or shared else []
    if not found:
        raise UsageError(f"{root} has no annotations for the split {split!r}. {LAYOUT}.")
    return *found[0], shared


def _image_folder(top: Path, stem: str, names: list[str]) -> Path:
    """Returns the folder where the images are; one that is likely, where there are none."""
    places = [top / place.format(stem or ".") for place in FOLDERS]
    some = (p for p in places if any(os.path.isfile(p / name) for name in names[:TRIED]))
    return next(some, None) or next(filter(os.path.isdir, places), top)


def _plain(name: str) -> str:
    """The one way to write a path that may be written in several, also as Windows does."""
    return os.path.normpath(name.replace("\\", "/"))


def _inside(folder: Path, name: str, where: str) -> Path:
    """Returns the path of an image that lies in the folder, also where Windows wrote the name."""
    path = folder / name
    if not os.path.isfile(path):
        path = folder / _plain(name)
    try:
        possible = b"\0" not in os.fsencode(name)
    except ValueError:  # half of a character
        possible = False
    if not possible or not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
        raise UsageError(f"{where} is not in {folder}: {str(path)!r}. It is refused.")
    return path


def _categories(content: dict[str, Any], file: Path) -> dict[int, str]:
    """Returns names by id, without the group that Roboflow lists as a class of its own."""
    where = f"{file}: category"
    by_id = _unique(content["categories"], "id", int, "name", where)
    used = [a.get("category_id") for a in content["annotations"] if isinstance(a, dict)]
    for number, entry in list(by_id.items()):
        name = _field(entry, "name", str, f"{where} {number}")
        others = (c.get("supercategory") for n, c in by_id.items() if n != number)
        if entry.get("supercategory") == "none" and name in others and number not in used:
            del by_id[number]
    if not by_id:
        raise UsageError(f"{file} has no categories: add the classes of its objects.")
    _unique(list(by_id.values()), "name", str, "id", where)
    return {number: class_name(entry["name"]) for number, entry in by_id.items()}


def _unique(entries: list, key: str, kind: type, other: str, where: str) -> dict[Any, Any]:
    """Returns entries by the value of a key, which no two may share; `other` tells them apart."""
    found: dict[Any, Any] = {}
    for entry in entries:
        value = _field(entry, key, kind, where)
        if kind is str:
            value = class_name(value) if key == "name" else _plain(value)
        first = found.setdefault(value, entry)
        if first is not entry:
            both = " and ".join(shown(e.get(other)) for e in (first, entry))
            twice = f"{where} {key} {shown(value)} is given twice, with {other} {both}"
            raise UsageError(f"{twice}: give each one of its own, or remove one.")
    return found


def _add_object(objects: dict, annotation: Any, order: dict[int, int], file: Path) -> None:
    """Adds one annotation to the objects of its image."""
    own = shown(annotation.get("id", "?")) if isinstance(annotation, dict) else ""
    where = f"{file}: annotation {own}".strip()
    fields = {"image_id": int, "category_id": int, "bbox": list}
    number, category, box = (_field(annotation, key, kind, where) for key, kind in fields.items())
    if number not in objects:
        raise UsageError(f"{where} is for image {shown(number)}, which is not listed. List it.")
    if category not in order:
        ids = f"which is not listed: the ids are {shown(list(order))}"
        raise UsageError(f"{where} has category_id {shown(category)}, {ids}.")
    # An integer of the file may have any number of digits.
    if len(box) != 4 or not all(type(v) in (int, float) and not abs(v) > 1e9 for v in box):
        raise UsageError(f"{where} has bbox {shown(box)}: it must be [left, top, width, height].")
    left, top, width, height = box
    corners = (top, left, top + height, left + width)
    objects[number].append(Object(corners, order[category], bool(annotation.get("iscrowd"))))


def _field(entry: Any, key: str, kind: type, where: str) -> Any:
    """Looks up a key, and checks that its value is of a type."""
    if not isinstance(entry, dict) or key not in entry:
        raise UsageError(f"{where} has no {key!r}. It is needed as in COCO's own files.")
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"{where} has {key} {shown(value)}: it must be of type {kind.__name__}.")
    return value
