"""What annotations of objects and pixels must look like, and what becomes of those that do not.

Boxes that are none are dropped and counted, as the field's readers do; a class that the set does
not have means that its list of classes is wrong. Nothing is learned from COCO's crowds, boxes
around many objects of a class, and detections in one count neither as hits nor as mistakes: a crowd
of class c stands as `crowd_of(c)`, so that what looks for objects (0 or more) passes it over.
"""

from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.lab.data.source import BadRecord

IGNORED = 255
PADDING_CLASS = -1
FIRST_CROWD = -2


class Objects(NamedTuple):
    """The objects of one image, in fixed shapes."""

    boxes: np.ndarray  # (n, 4) float32: top, left, bottom, right in fractions; padded with zeros
    classes: np.ndarray  # (n,) int32, padded with -1; a crowd of class c is `crowd_of(c)`
    dropped: dict[str, int]  # how many were left out, by reason


def crowd_of(classes: Any) -> Any:
    """Returns the marks of crowds of these classes, or the classes of such marks.

    >>> crowd_of(np.array([0, 5])), crowd_of(crowd_of(5))
    (array([-2, -7]), 5)
    """
    return FIRST_CROWD - classes


def clean_objects(
    boxes: np.ndarray, classes: np.ndarray, num_classes: int, max_objects: int | None, name: str,
    crowd: np.ndarray | None = None,
) -> Objects:  # fmt: skip
    """Clips boxes (n, 4) to the image, drops those that are none, and pads to `max_objects`.

    Dropped and counted are those that are not finite, that have no area or crossed corners, that
    lie outside of the image, and, where there are too many, the smallest, crowds first. A class
    that is not in 0..num_classes - 1 makes a `BadRecord` of this name.

    >>> boxes = np.array([[0.5, 0.5, 1.5, 1.0], [0.3, 0.3, 0.3, 0.9]])
    >>> clean_objects(boxes, np.array([4, 2]), 10, 2, "image 7")
    Objects(boxes=array([[0.5, 0.5, 1. , 1. ], [0. , 0. , 0. , 0. ]], dtype=float32),
            classes=array([ 4, -1], dtype=int32), dropped={'no area': 1})
    """
    boxes, classes = np.asarray(boxes, np.float64), np.asarray(classes)
    boxes = boxes if boxes.size else boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or classes.shape != boxes.shape[:1]:
        shapes = f"boxes of shape {boxes.shape} with classes of shape {classes.shape}"
        raise BadRecord(name, f"{shapes}, not (n, 4)")
    for wrong in classes[(classes < 0) | (classes >= num_classes)]:
        raise BadRecord(name, f"class {wrong} where the classes are 0 to {num_classes - 1}")
    finite = np.isfinite(boxes).all(axis=1)
    boxes = np.where(finite[:, None], boxes, 0)
    clipped = boxes.clip(0, 1)
    area, visible = area_of(boxes), area_of(clipped)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool)
    kept = np.flatnonzero(visible > 0)
    largest = np.sort(kept[np.lexsort((-visible[kept], crowd[kept]))][:max_objects])
    counts = {
        "not finite": int((~finite).sum()),
        "no area": int((finite & (area <= 0)).sum()),
        "outside": int(((area > 0) & (visible <= 0)).sum()),
        "too many": len(kept) - len(largest),
    }
    dropped = {why: n for why, n in counts.items() if n}
    classes = np.where(crowd, crowd_of(classes), classes)[largest]
    return Objects(*padded_objects(clipped[largest], classes, max_objects), dropped)


def padded_objects(
    boxes: np.ndarray, classes: np.ndarray, rows: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Brings boxes to float32 (rows, 4) and classes to int32 (rows,); None adds no rows."""
    missing = (0, (rows or len(boxes)) - len(boxes))
    padded = np.pad(classes.astype(np.int32), missing, constant_values=PADDING_CLASS)
    return np.pad(boxes.astype(np.float32), (missing, (0, 0))), padded


def check_labels(labels: np.ndarray, num_classes: int, name: str) -> None:
    """Raises `BadRecord` for a label map with values that are neither a class nor 255 (ignored).

    >>> check_labels(np.array([[0, 20, 255]]), 21, "image 7")
    """
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise BadRecord(name, f"labels are {labels.dtype} {labels.shape}, not integers (h, w)")
    wrong = [int(v) for v in np.unique(labels) if v != IGNORED and not 0 <= v < num_classes]
    if wrong:
        classes = f"the classes are 0 to {num_classes - 1}, and {IGNORED} is ignored"
        raise BadRecord(name, f"label {wrong[0]} where {classes}")


def area_of(boxes: np.ndarray) -> np.ndarray:
    """Returns the areas of boxes (n, 4); 0 where corners are crossed."""
    top, left, bottom, right = boxes.T
    return np.maximum(bottom - top, 0) * np.maximum(right - left, 0)
