"""A trained model at work, whatever its task: answers for images, and scores over a data set."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.files import UnreadableFile, read_file, user_path, write_json
from mnv2_jax.inference.run import fold, folded_apply
from mnv2_jax.lab.data import BadRecord, Source, Transform, eval_batches, first_record
from mnv2_jax.lab.data.image import decode, fitted, padded, resize, with_channels
from mnv2_jax.lab.data.readers.files import SUFFIXES
from mnv2_jax.lab.data.readers.folder import walk_images
from mnv2_jax.lab.data.video import VIDEOS
from mnv2_jax.lab.devices.process import prediction_options
from mnv2_jax.lab.devices.sharding import over_rows
from mnv2_jax.lab.model_folder import TrainedModel
from mnv2_jax.lab.tasks import TASKS
from mnv2_jax.lab.tasks.classes import by_name, check_seen
from mnv2_jax.lab.tasks.draw import SHOWN_SIDE, grid
from mnv2_jax.lab.tasks.task import ONCE, Prediction, TestTimeAugmentation
from mnv2_jax.lab.tasks.task import evaluate as evaluate_batches
from mnv2_jax.models.classes import find_classes, have_names
from mnv2_jax.models.dialect import normalize

MAX_FILE_BYTES = 1 << 28
EVALUATION = "evaluation.json"
OTHER = (
    "Evaluate on data of the classes that it was trained for, or fine-tune it with "
    "experiments/finetune.py."
)
LARGEST_SCALE = 4
MOST_PIXELS = 1 << 23  # of a batch: 167 images of 224×224, or 31 of 513×513
MOST_IMAGES = 256

Image = str | os.PathLike[str] | np.ndarray


class Evaluation(NamedTuple):
    """What a model is worth on a data set."""

    scores: dict[str, float]  # the loss and the metrics of the task
    classes: list[dict[str, Any]]  # of a detector or segmenter, a row for each: name and numbers
    sums: Mapping[str, Any]  # which both are made of


def predict(
    model: TrainedModel,
    images: Image | Iterable[Image],
    augmentation: TestTimeAugmentation = ONCE,
    memory: float | None = None,
    **settings: Any,
) -> Iterator[Prediction]:
    """Yields what a model says of each image, brought to the model's size as in its evaluation.

    Args:
      model: a classifier, a detector or a segmenter.
      images: paths of files, or arrays of uint8 pixels (h, w, 3), (h, w, 1) or (h, w); one or many,
        such as the pixels of the frames of `open_video`.
      augmentation: of a segmenter, the scales and mirror images that are averaged.
      memory: bytes that the network's temporaries may take, as in `folded_apply`; None for speed.
      **settings: of a classifier `top`, how many classes; of a detector `threshold`, the smallest
        score of a box.

    Raises:
      UsageError: an image cannot be used, a setting is of another task, or the memory is too
        little; nothing is predicted from a guess.
    """
    answer = predictor(model, augmentation, memory, **settings)
    one = isinstance(images, str | os.PathLike) or _is_image(images)
    several: Any = [images] if one else images
    for number, image in enumerate(several):
        yield answer(read_pixels(image, model.backbone.in_channels, number))


def predictor(
    model: TrainedModel, augmentation: TestTimeAugmentation = ONCE, memory: float | None = None,
    **settings: Any,
) -> Callable[[np.ndarray], Prediction]:  # fmt: skip
    """Compiles a model into a function of one image of any size; the rest is as for `predict`."""
    task = model.task
    settings = {**task.settings, **_checked_settings(model, settings)}
    forward, weights = _forward(model, augmentation, memory)
    prepare = image_transform(model)

    def compute(weights: Any, pixels: Any) -> Any:
        return task.decode(model.model, forward(weights, pixels), pixels.shape[1:3])

    compiled = jax.jit(compute, compiler_options=prediction_options())

    def answer(pixels: np.ndarray) -> Prediction:
        prepared = prepare({"image": pixels}, np.random.default_rng(0))["image"]
        answers = jax.device_get(compiled(weights, prepared[None]))
        return task.show(model, jax.tree.map(lambda v: v[0], answers), pixels, **settings)

    return answer


def evaluate(
    model: TrainedModel,
    source: Source,
    batch_size: int | None = None,
    augmentation: TestTimeAugmentation = ONCE,
) -> dict[str, float]:
    """Returns a model's loss and the metrics of its task over a data set, each image once.

    Args:
      model: a classifier, a detector or a segmenter.
      source: the data. Where it asks for some classes only, no other is an answer.
      batch_size: images at a time; by default as many as a few gigabytes hold.
      augmentation: of a classifier or segmenter, the scales and mirror images whose answers are
        averaged (Table 7).

    Raises:
      UsageError: the data is not what the model has learned from, or an image is damaged.
    """
    return evaluator(model, batch_size, augmentation)(source).scores


def evaluator(
    model: TrainedModel, batch_size: int | None = None, augmentation: TestTimeAugmentation = ONCE,
    watch: Callable[[Mapping[str, Any], Any], None] | None = None,
) -> Callable[[Source], Evaluation]:  # fmt: skip
    """Returns `evaluate`, by class too, as a function of the data, compiled once for many sets.

    `watch` is given each batch, padding included, and the model's answers for its rows.
    """
    task, (forward, weights) = model.task, _forward(model, augmentation)
    shared = over_rows(forward)

    def sums(weights: Any, batch: Any, choice: Any) -> Any:
        outputs = shared(weights, batch["image"])
        if choice is not None:
            outputs = jnp.where(choice, outputs, -jnp.inf)
        found = task.scores(model.model, outputs, batch) | task.counts(model.model, outputs, batch)
        size = batch["image"].shape[1:3]
        return found, task.decode(model.model, outputs, size) if watch else None

    compiled = jax.jit(sums, compiler_options=prediction_options())

    def summarize(sums: Any) -> Evaluation:
        columns = {name: values.tolist() for name, values in task.by_class(sums).items()}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        named = [{"class": model.class_name(i), **row} for i, row in enumerate(rows)]
        return Evaluation(task.summarize(sums), named, sums)

    def compute(source: Source) -> Evaluation:
        choice, whole = _choice(model, source), getattr(source, "whole", False)
        source = check_data(model, source)
        size = batch_size or max(
            1, min(MOST_IMAGES, len(source), MOST_PIXELS // model.resolution**2)
        )
        size += -size % jax.local_device_count()
        transform = transform_of(model, instead={"crop": "none"} if whole else {})
        batches = eval_batches(source, batch_size=size, transform=transform)
        fields = ("image", *task.fields, "also", "mask")

        def of_batch(rows: Any) -> Any:
            own = {key: rows[key] for key in fields if key in rows}
            found, answers = compiled(weights, own, choice)
            if watch:
                watch(rows, answers)
            return found

        return evaluate_batches(of_batch, batches, summarize)

    return compute


def _choice(model: TrainedModel, source: Source) -> np.ndarray | None:
    """Which of a classifier's outputs are answers, where the data asks for some classes only."""
    if not (asked := getattr(source, "asked", ())):
        return None
    names, known = [source.classes[i] for i in asked], model.classes
    places = find_classes(names, known) if have_names(known) else asked
    offset = getattr(model.model, "class_offset", 0)
    return np.isin(
        np.arange(offset + model.count_classes()) - offset, [i for i in places if i is not None]
    )


def examples(
    model: TrainedModel,
    source: Source,
    count: int,
    columns: int = 4,
    augmentation: TestTimeAugmentation = ONCE,
) -> np.ndarray:
    """Draws the first images of a set: above each row of predictions the row of annotations.

    Raises:
      UsageError: the model's answers are not of places, or the data has other classes.
    """
    if model.task.truth is None:
        raise _needs(model, "--examples", lambda task: task.truth is not None)
    source = check_data(model, source)
    answer, rows = predictor(model, augmentation), []
    records = [source[i] for i in range(min(count, len(source)))]
    for start in range(0, len(records), columns):
        part = records[start : start + columns]
        rows.append([_square(model.task.truth(model, record)) for record in part])
        pixels = (with_channels(record["image"], model.backbone.in_channels) for record in part)
        rows.append([_square(answer(image).picture) for image in pixels])
    return grid(rows)


def check_data(model: TrainedModel, source: Source) -> Source:
    """Returns a data set in the numbers of the model's classes, of which it may have fewer.

    Raises:
      UsageError: it lacks annotations, has no object at all, or classes that the model does not
        know by name; or it is of another number of classes, where either side has no names.
    """
    model.task.check_record(first_record(source), "the data")
    check_seen(model.task, source, "the data", quiet=True)
    known = model.count_classes()
    return by_name(model.task, source, model.classes, known, "the data", OTHER)


def write_evaluation(folder: Path, model: TrainedModel, facts: Mapping[str, Any]) -> Path:
    """Writes the result of an evaluation, and of which model, where `mnv2 paper` finds it.

    Args:
      folder: made if needed.
      model: its options and the source of its weights are written.
      facts: `data`, `split`, `images`, `scores`, `views`, the `folder` of the model, `command`.

    Raises:
      OSError: the folder cannot be written.
    """
    described = {
        name: value for name, value in model.description.items() if name not in ("classes", "eval")
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / EVALUATION, {**facts, "model": described})
    return folder / EVALUATION


def transform_of(
    model: TrainedModel, size: int | None = None, instead: Mapping[str, Any] = {}
) -> Transform:
    """Returns how records are prepared for a model's evaluation, at its own resolution or `size`.

    Options can be given `instead` of the model's own.

    Raises:
      UsageError: the description of the model asks for an unknown preparation.
    """
    given, channels = model.description.get("eval", {}), model.backbone.in_channels
    try:
        options = {**given, **instead}
        return model.task.eval_transform(size or model.resolution, channels, options)
    except (TypeError, AttributeError) as error:
        raise UsageError(
            f'"eval" in the model\'s description is {given}, which no image can be prepared by: '
            f"{error}. Import or train the model again."
        ) from error


def image_transform(model: TrainedModel, size: int | None = None) -> Transform:
    """Returns the same for images alone: what a record has besides its image is left out."""
    transform = transform_of(model, size)

    def alone(record: Any, rng: Any) -> dict[str, Any]:
        image = record["image"]
        nothing = model.task.unlabeled(*image.shape[:2])
        return {"image": transform({"image": image, **nothing}, rng)["image"]}

    return alone


def find_images(
    paths: Iterable[str | os.PathLike[str]], but: Path | None = None
) -> list[tuple[str, str]]:
    """Returns the paths of images and videos, and what each is called below the folder it is in.

    Of `paths`, files are taken as they are, and folders are searched to any depth for both by
    their endings, but not a folder `but` in them. `UsageError` if a folder has none.
    """
    found: list[tuple[str, str]] = []
    for path in map(str, paths):
        if not os.path.isdir(folder := os.path.expanduser(path)):
            found.append((path, Path(path).name))
            continue
        skip = (os.path.join(os.path.relpath(but, folder), ""),) if but else ()
        both = walk_images(Path(folder), Counter(), endings=SUFFIXES + VIDEOS)
        inside = [name for name in both if not name.startswith(skip)]
        if not inside:
            endings = ", ".join(SUFFIXES + VIDEOS)
            raise UsageError(f"the folder {path!r} has no images: give one with {endings} files.")
        found += [(os.path.join(path, name), name) for name in sorted(inside)]
    return found


def read_image(path: str | os.PathLike[str], channels: int) -> np.ndarray:
    """Reads an image file as uint8 (h, w, channels).

    Raises:
      UsageError: it cannot be read or decoded.
    """
    try:
        place = user_path(path, "path of the image")
        return decode(read_file(place, MAX_FILE_BYTES), str(path), channels)
    except UnreadableFile as error:
        raise UsageError(f"image {error} Give the path of a JPEG, PNG or the like.") from error
    except BadRecord as bad:
        remedy = ": give an image that opens elsewhere" if "decoded" in bad.reason else ""
        raise UsageError(f"image {bad}{remedy}.") from bad


def _is_image(image: Any) -> bool:
    shape = np.shape(image) if isinstance(image, np.ndarray) else ()
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))


def read_pixels(image: Any, channels: int, number: int = 0) -> np.ndarray:
    """Returns an image, the path of a file or an array, as uint8 (h, w, channels).

    Raises:
      UsageError: it cannot be used; `number` is what an array is called then.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image, channels)
    if not _is_image(image) or image.dtype != np.uint8 or not image.size:
        given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else repr(image)
        raise UsageError(
            f"image {number} is {given}: give the path of a file, or an array of uint8 pixels "
            "(height, width, 3), (height, width, 1) or (height, width)."
        )
    return with_channels(image if image.ndim == 3 else image[..., None], channels)


def _forward(
    model: TrainedModel, augmentation: TestTimeAugmentation, memory: float | None = None
) -> tuple[Any, Any]:
    """Returns (weights, pixels 0..255) -> outputs, and the weights: batch norm is folded away."""
    model.count_classes()  # features alone answer nothing
    dialect, size = model.backbone.dialect, (model.resolution, model.resolution)

    def forward(weights: Any, images: Any) -> Any:
        return folded_apply(model.model, weights, images, memory=memory)

    if augmentation != ONCE:
        forward = _averaged(model, forward, augmentation)
    weights = fold(model.model, model.variables, size)
    return lambda weights, pixels: forward(weights, normalize(pixels, dialect)), weights


def _averaged(model: TrainedModel, forward: Any, augmentation: TestTimeAugmentation) -> Any:
    average = model.task.average
    if average is None:
        raise _needs(model, "--scales and --flip", lambda task: task.average is not None)
    wrong = [scale for scale in augmentation.scales if not 0 < scale <= LARGEST_SCALE]
    if wrong or not augmentation.scales:
        raise UsageError(
            f"--scales has {wrong[0] if wrong else 'none'}: give numbers above 0 and at most "
            f"{LARGEST_SCALE}; the paper's are 0.5 0.75 1 1.25 1.5 1.75."
        )
    return average(forward, augmentation)


def _checked_settings(model: TrainedModel, settings: dict[str, Any]) -> dict[str, Any]:
    for name in settings:
        if name not in model.task.settings:
            raise _needs(model, f"--{name}", lambda task, name=name: name in task.settings)
    return settings


def _needs(model: TrainedModel, what: str, has: Callable[[Any], bool]) -> UsageError:
    """Builds the error for what only models of other tasks can do."""
    able = " or ".join(f"a {task.noun}" for task in TASKS.values() if has(task))
    verb = "need" if " and " in what else "needs"
    return UsageError(f"this is a {model.task.noun}; {what} {verb} {able or 'another task'}.")


def _square(picture: Any) -> np.ndarray:
    """Shrinks a picture to fit a square of the sheet, and fills it up with white."""
    height, width = fitted(picture.shape, SHOWN_SIDE)
    return padded(resize(picture, height, width), SHOWN_SIDE, 255)
