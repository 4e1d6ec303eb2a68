"""Saved detectors and segmenters at work: boxes or label maps of images, and scores over a set."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import Source, detection_eval, eval_batches, segmentation_eval
from mnv2_jax.lab.data.image import MEAN_PIXEL, fitted, padded, resize, with_channels
from mnv2_jax.lab.devices.process import prediction_options
from mnv2_jax.lab.model_folder import TrainedModel
from mnv2_jax.lab.predict import read_image
from mnv2_jax.lab.tasks import detect, segment
from mnv2_jax.lab.tasks.draw import draw_boxes, draw_labels, enlarge, grid
from mnv2_jax.models.boxes import Detections

SHOWN_SIDE = 192  # pixels that small pictures are enlarged to, so that names can be read
LARGEST_SCALE = 4
MOST_OBJECTS = 100  # in an image of an evaluation; of more, the largest


class Seen(NamedTuple):
    """What a model sees in one image: a picture of it, and the same as plain values."""

    picture: np.ndarray
    values: dict[str, Any]


Look = Callable[[np.ndarray, float], Seen]


def look(
    saved: TrainedModel, paths: Sequence[str], threshold: float = 0.3
) -> Iterator[tuple[str, Seen]]:
    """Yields (path, what the model sees) for image files.

    Args:
      saved: a detector or segmenter.
      paths: of the images.
      threshold: smallest score of a box; label maps have none.

    Raises:
      UsageError: the model gives neither boxes nor labels, or a file cannot be read.
    """
    see = looking(saved)
    for path in paths:
        yield path, see(read_image(path, saved.backbone.in_channels), threshold)


def looking(saved: TrainedModel, views: segment.Views = segment.ONCE) -> Look:
    """Compiles a model into a function of one image of any size."""
    if saved.task.name not in LOOKS:
        raise UsageError(
            f"task {saved.task.name} gives no regions: they need a detector or segmenter."
        )
    _check_views(saved, views)
    return LOOKS[saved.task.name](saved, views)


def _check_views(saved: TrainedModel, views: segment.Views) -> None:
    """Refuses several looks at an image where they cannot be averaged."""
    if views != segment.ONCE and saved.task.name != "segment":
        raise UsageError(
            f"this is a {saved.task.noun}: only a segmenter averages over scales and mirror "
            "images; leave out --scales and --flip."
        )
    wrong = [scale for scale in views.scales if not 0 < scale <= LARGEST_SCALE]
    if wrong or not views.scales:
        raise UsageError(
            f"--scales has {wrong[0] if wrong else 'none'}: give numbers above 0 and at most "
            f"{LARGEST_SCALE}; the paper's are {' '.join(map(str, segment.SCALES))}."
        )


def _detector(saved: TrainedModel, views: segment.Views) -> Look:
    del views
    find = jax.jit(
        lambda variables, images: detect.predict(saved.model, variables, images),
        compiler_options=prediction_options(),
    )
    size = saved.resolution

    def see(pixels: np.ndarray, threshold: float) -> Seen:
        found: Detections = jax.device_get(
            find(saved.variables, resize(pixels, size, size, antialias=False)[None])
        )
        kept = found.valid[0] & (found.scores[0] >= threshold)
        boxes, classes, scores = (
            np.asarray(v[0])[kept] for v in (found.boxes, found.classes, found.scores)
        )
        names = [saved.classes[c] for c in classes]
        labels = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
        picture = draw_boxes(enlarge(pixels, SHOWN_SIDE), boxes, classes.tolist(), labels)
        height, width = pixels.shape[:2]
        corners = boxes[:, [1, 0, 3, 2]] * [width, height, width, height]
        objects = [
            {"class": name, "score": round(float(score), 4), "box": box.round(1).tolist()}
            for name, score, box in zip(names, scores, corners, strict=True)
        ]
        # Pixels from the left and the top: left, top, right, bottom.
        return Seen(picture, {"objects": objects})

    return see


def _segmenter(saved: TrainedModel, views: segment.Views) -> Look:
    label = jax.jit(
        lambda variables, images: segment.predict(saved.model, variables, images, views),
        compiler_options=prediction_options(),
    )
    size, whole = saved.resolution, saved.description.get("eval", {}).get("crop") == "pad"

    def see(pixels: np.ndarray, threshold: float) -> Seen:
        del threshold
        height, width = fitted(pixels.shape, size) if whole else (size, size)
        inputs = padded(resize(pixels, height, width, antialias=whole), size, MEAN_PIXEL)
        labels = np.asarray(label(saved.variables, inputs[None]))[0, :height, :width]
        rows, columns = pixels.shape[:2]
        labels = resize(labels.astype(np.uint8)[..., None], rows, columns, "nearest")[..., 0]
        shares = np.bincount(labels.ravel(), minlength=len(saved.classes)) / labels.size
        named = {name: round(float(s), 4) for name, s in zip(saved.classes, shares, strict=True)}
        picture = draw_labels(pixels, labels, _background(saved.classes))
        return Seen(enlarge(picture, SHOWN_SIDE), {"shares": {k: v for k, v in named.items() if v}})

    return see


LOOKS: dict[str, Callable[[TrainedModel, segment.Views], Look]] = {
    "detect": _detector,
    "segment": _segmenter,
}


def _background(classes: Sequence[str]) -> int | None:
    """The class that stands for no object, where there is one."""
    return 0 if classes[0] == "background" else None


def evaluate(
    saved: TrainedModel, source: Source, batch_size: int = 32, views: segment.Views = segment.ONCE
) -> dict[str, float]:
    """Returns mean average precision or mean IoU, and the losses, each image once.

    Args:
      saved: a detector or segmenter.
      source: the data.
      batch_size: images at a time.
      views: of a segmenter, the scales and mirror images that are averaged (Table 7).

    Raises:
      UsageError: the data has other classes than the model, an image is damaged, or the model
        cannot look so.
    """
    _check_views(saved, views)
    _check_classes(saved, source)
    size, channels = saved.resolution, saved.backbone.in_channels
    crop = saved.description.get("eval", {}).get("crop", "none")
    if saved.task.name == "detect":
        metrics = detect.detect(saved.model, (size, size, channels)).metrics
        transform = detection_eval(size, MOST_OBJECTS, crop, channels)
        fields = ("image", "boxes", "classes", "mask")
    else:
        metrics = segment.evaluation(saved.model, views)
        transform = segmentation_eval(size, crop, channels)
        fields = ("image", "label", "mask")
    metrics, total = jax.jit(metrics, compiler_options=prediction_options()), None
    for rows in eval_batches(source, batch_size=batch_size, transform=transform):
        sums = jax.device_get(metrics(saved.variables, {name: rows[name] for name in fields}))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    assert total is not None
    return {"detect": detect, "segment": segment}[saved.task.name].summarize(total)


def examples(
    saved: TrainedModel,
    source: Source,
    count: int,
    columns: int = 4,
    threshold: float = 0.3,
    views: segment.Views = segment.ONCE,
) -> np.ndarray:
    """Draws the first images of a set: above each row of predictions the row of what is true.

    Raises:
      UsageError: the data has other classes than the model.
    """
    _check_classes(saved, source)
    see, rows = looking(saved, views), []
    records = [source[i] for i in range(min(count, len(source)))]
    for start in range(0, len(records), columns):
        part = records[start : start + columns]
        rows.append([_square(_truth(saved, record)) for record in part])
        found = (
            see(with_channels(r["image"], saved.backbone.in_channels), threshold) for r in part
        )
        rows.append([_square(seen.picture) for seen in found])
    return grid(rows)


def _truth(saved: TrainedModel, record: Any) -> np.ndarray:
    if saved.task.name == "segment":
        labels = draw_labels(record["image"], record["label"], _background(saved.classes))
        return enlarge(labels, SHOWN_SIDE)
    real = record["classes"] >= 0
    classes = record["classes"][real].tolist()
    image = enlarge(record["image"], SHOWN_SIDE)
    return draw_boxes(image, record["boxes"][real], classes, [saved.classes[c] for c in classes])


def _square(picture: np.ndarray) -> np.ndarray:
    """Shrinks a picture to fit a square of the sheet, and fills it up with white."""
    height, width = fitted(picture.shape, SHOWN_SIDE)
    return padded(resize(picture, height, width), SHOWN_SIDE, 255)


def _check_classes(saved: TrainedModel, source: Source) -> None:
    needed = {"detect": "boxes", "segment": "label"}[saved.task.name]
    names = source.classes
    if saved.task.name == "segment":
        names = getattr(source, "pixel_classes", names)
    record = source[0]
    if needed not in record or np.ndim(record[needed]) != 2:
        raise UsageError(
            f"this is a {saved.task.noun}, and the data has no {needed}: its records hold "
            f"{', '.join(record)}. Give a data set with {needed}."
        )
    if len(names) != len(saved.classes):
        raise UsageError(
            f"the data has {len(names)} classes and the model knows {len(saved.classes)}: evaluate "
            "on the data it was trained for."
        )
