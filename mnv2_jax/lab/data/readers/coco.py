"""COCO's annotations: one JSON file for each split, with the images beside it.

The file is checked when a set is opened: what is not as it should be is refused, with the record
and the key named. Boxes that are none are dropped and counted, as the field's readers do; crowds
stay, marked as `annotations` describes.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data.readers.boxes import MAX_SIDE, AnnotatedImages
from mnv2_jax.lab.data.readers.files import read_json
from mnv2_jax.lab.data.source import LazySource, find_split

YEARS = ("", "2017", "2014")  # that its own splits are named after
LAYOUT = (
    "The layout is ROOT/annotations/instances_val2017.json with ROOT/val2017/*.jpg, or "
    "ROOT/val/annotations.json with ROOT/val/images/*"
)


def open_coco(split: str, root: str | None) -> LazySource:
    """Opens one split of a set in COCO's format.

    Classes are numbered in the order of their category ids.

    Raises:
      UsageError: files are missing, or the JSON is not what it should be; record and key are named.
    """
    if root is None:
        raise UsageError(f"coco needs its root. {LAYOUT}.")
    file, folder = _find(split, Path(root))
    content = _read(file)
    categories = {_field(c, "id", int, file, "category"): c for c in content["categories"]}
    order = {number: i for i, number in enumerate(sorted(categories))}
    images = {_field(i, "id", int, file, "image"): i for i in content["images"]}
    objects: dict[int, list] = defaultdict(list)  # (corners, class, crowd) of each image
    for annotation in content["annotations"]:
        number, corners, category = _object(annotation, order, images, file)
        objects[number].append((corners, order[category], bool(annotation.get("iscrowd"))))
    collected = AnnotatedImages(
        tuple(_field(categories[n], "name", str, file, f"category {n}") for n in order)
    )
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
        corners, classes, crowds = (
            zip(*objects[number], strict=True) if objects[number] else 3 * [()]
        )
        collected.add(path, size, corners, classes, f"{file} {name}", crowds)
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


def _object(
    annotation: Any, order: dict[int, int], images: dict[int, Any], file: Path
) -> tuple[int, list[float], int]:
    """Gives one annotation's image, its corners and its category id."""
    name = "annotation"
    if isinstance(annotation, dict):
        name += f" {annotation.get('id', '?')}"
    number = _field(annotation, "image_id", int, file, name)
    category = _field(annotation, "category_id", int, file, name)
    box = _field(annotation, "bbox", list, file, name)
    if number not in images:
        raise UsageError(
            f"{file}: {name} is for image {number}, which is not listed: list it, or drop this."
        )
    if category not in order:
        raise UsageError(
            f"{file}: {name} has category_id {category}, which is not listed: the ids are "
            f"{', '.join(map(str, list(order)[:8]))}{', …' if len(order) > 8 else ''}."
        )
    if len(box) != 4 or not all(isinstance(v, float) or _is_small(v) for v in box):
        given = repr(box)[:80]
        raise UsageError(f"{file}: {name} has bbox {given}: it must be [left, top, width, height].")
    left, top, width, height = box
    return number, [top, left, top + height, left + width], category


def _is_small(value: Any) -> bool:
    """Whether an integer of the file, which may have any number of digits, is a count of pixels."""
    return isinstance(value, int) and abs(value) <= MAX_SIDE


def _read(file: Path) -> dict[str, list]:
    content = read_json(file)
    for key in ("images", "annotations", "categories"):
        _field(content, key, list, file, "the file")
    if not content["categories"]:
        raise UsageError(f"{file} has no categories: add the classes of its objects.")
    return content


def _field(entry: Any, key: str, kind: type, file: Path, name: str) -> Any:
    """Looks up a key, and checks that its value is of a type."""
    if not isinstance(entry, dict) or key not in entry:
        raise UsageError(f"{file}: {name} has no {key!r}. It is needed as in COCO's own files.")
    if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
        given = repr(entry[key])[:80]
        raise UsageError(f"{file}: {name} has {key} {given}: it must be of type {kind.__name__}.")
    return entry[key]
