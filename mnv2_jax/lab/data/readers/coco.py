"""COCO's annotations: one JSON file for each split, with the images beside it.

The file is checked when a set is opened: what is not as it should be is refused, with the record
and the key named. Boxes that are none are dropped and counted, as the field's readers do; crowds
stay, marked as `annotations` describes.
"""

from pathlib import Path
from typing import Any

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data.readers.boxes import MAX_SIDE, AnnotatedImages, Object
from mnv2_jax.lab.data.readers.files import read_json
from mnv2_jax.lab.data.source import LazySource, find_split

YEARS = ("", "2017", "2014")  # that its own splits are named after
LAYOUT = (
    "The layout is ROOT/annotations/instances_val2017.json with ROOT/val2017/*.jpg, or "
    "ROOT/val/annotations.json with ROOT/val/images/*"
)


def open_coco(split: str, root: str) -> LazySource:
    """Opens one split of a set in COCO's format.

    Classes are numbered in the order of their category ids.

    Raises:
      UsageError: files are missing, or the JSON is not what it should be; record and key are named.
    """
    file, folder = _find(split, Path(root))
    content = read_json(file)
    for key in ("images", "annotations", "categories"):
        _field(content, key, list, f"{file}: the file")
    categories = {_field(c, "id", int, f"{file}: category"): c for c in content["categories"]}
    if not categories:
        raise UsageError(f"{file} has no categories: add the classes of its objects.")
    order = {number: i for i, number in enumerate(sorted(categories))}
    images = {_field(i, "id", int, f"{file}: image"): i for i in content["images"]}
    objects: dict[int, list[Object]] = {number: [] for number in images}
    for annotation in content["annotations"]:
        _add_object(objects, annotation, order, file)
    collected = AnnotatedImages(
        tuple(_field(categories[n], "name", str, f"{file}: category {n}") for n in order)
    )
    for number, entry in images.items():
        where = f"{file}: image {number}"
        size = _field(entry, "height", int, where), _field(entry, "width", int, where)
        if not 1 <= min(size) <= max(size) <= MAX_SIDE:
            shown = "{1}x{0}".format(*(str(n)[:12] for n in size))
            raise UsageError(f"{where} is {shown} pixels. Correct it.")
        path = folder / _field(entry, "file_name", str, where)
        try:
            inside = path.resolve().is_relative_to(folder.resolve())
        except ValueError:  # a NUL, or half of a character
            inside = False
        if not inside:
            raise UsageError(f"{where} is not in {folder}: {str(path)!r}. It is refused.")
        collected.add(path, size, objects[number], where)
    return collected.source(str(file))


def _find(split: str, top: Path) -> tuple[Path, Path]:
    """Returns the annotations of a split and the folder of its images."""

    def places(name: str) -> list[tuple[Path, Path]]:
        return [
            place
            for n in (name + year for year in YEARS)
            for place in (
                (top / "annotations" / f"instances_{n}.json", top / n),
                (top / n / "annotations.json", top / n / "images"),
            )
            if place[0].is_file()
        ]

    name = find_split(split, lambda name: bool(places(name)))
    if name is None:
        raise UsageError(f"{top} has no annotations for the split {split!r}. {LAYOUT}.")
    return places(name)[0]


def _add_object(
    objects: dict[int, list[Object]], annotation: Any, order: dict[int, int], file: Path
) -> None:
    """Adds one annotation to the objects of its image."""
    where = f"{file}: annotation"
    if isinstance(annotation, dict):
        where += f" {annotation.get('id', '?')}"
    number = _field(annotation, "image_id", int, where)
    category = _field(annotation, "category_id", int, where)
    box = _field(annotation, "bbox", list, where)
    if number not in objects:
        raise UsageError(
            f"{where} is for image {number}, which is not listed. List it, or drop it."
        )
    if category not in order:
        raise UsageError(
            f"{where} has category_id {category}, which is not listed: the ids are "
            f"{', '.join(map(str, list(order)[:8]))}{', …' if len(order) > 8 else ''}."
        )
    if len(box) != 4 or not all(isinstance(v, float) or _is_small(v) for v in box):
        given = repr(box)[:80]
        raise UsageError(f"{where} has bbox {given}: it must be [left, top, width, height].")
    left, top, width, height = box
    corners = (top, left, top + height, left + width)
    objects[number].append(Object(corners, order[category], bool(annotation.get("iscrowd"))))


def _is_small(value: Any) -> bool:
    """Whether an integer of the file, which may have any number of digits, is a count of pixels."""
    return isinstance(value, int) and abs(value) <= MAX_SIDE


def _field(entry: Any, key: str, kind: type, where: str) -> Any:
    """Looks up a key, and checks that its value is of a type."""
    if not isinstance(entry, dict) or key not in entry:
        raise UsageError(f"{where} has no {key!r}. It is needed as in COCO's own files.")
    if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
        given = repr(entry[key])[:80]
        raise UsageError(f"{where} has {key} {given}: it must be of type {kind.__name__}.")
    return entry[key]
