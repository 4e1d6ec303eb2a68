"""A saved model at work: classes of single images, and scores over a data set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.files import UnreadableFile, read_file, write_json
from mnv2_jax.inference.run import fold, folded_apply
from mnv2_jax.lab.data import BadRecord, Source, eval_batches, eval_transform
from mnv2_jax.lab.data.image import MEAN_PIXEL, decode, fitted, padded, resize, with_channels
from mnv2_jax.lab.devices.process import prediction_options
from mnv2_jax.lab.devices.sharding import over_rows
from mnv2_jax.lab.model_folder import TrainedModel
from mnv2_jax.lab.tasks.classify import scores
from mnv2_jax.models.dialect import normalize

MAX_FILE_BYTES = 1 << 28
EVALUATION = "evaluation.json"


class Guess(NamedTuple):
    """One class that an image may show, and the probability the model gives it."""

    name: str
    probability: float


def predict(
    saved: TrainedModel, paths: Sequence[str], top: int = 5
) -> Iterator[tuple[str, list[Guess]]]:
    """Yields (path, the `top` likeliest classes, likeliest first) for image files.

    Every image is brought to the model's size as in its evaluation.

    Raises:
      UsageError: the model is no classifier, or a file cannot be read or decoded; nothing is
        predicted from a guess.
    """
    saved = without_background(saved)
    channels = saved.model.in_channels
    transform = transform_of(saved)

    logits, folded = folded_logits(saved)
    probabilities = jax.jit(
        lambda *arguments: jax.nn.softmax(logits(*arguments)),
        compiler_options=prediction_options(),
    )
    for path in paths:
        image = transform({"image": read_image(path, channels)}, np.random.default_rng(0))["image"]
        values = np.asarray(probabilities(folded, image[None]))[0]
        order = np.argsort(-values, kind="stable")[:top]
        yield path, [Guess(_class_name(saved, int(i)), float(values[i])) for i in order]


def evaluate(saved: TrainedModel, source: Source, batch_size: int = 256) -> dict[str, float]:
    """Returns a classifier's loss, accuracy and top-5 accuracy over a data set, each image once.

    Raises:
      UsageError: the model is no classifier, the data has classes that it does not know, or an
        image is damaged.
    """
    saved = without_background(saved)
    known, found = saved.model.num_classes, tuple(source.classes)
    if len(found) > known or (len(found) < known and found != saved.classes[: len(found)]):
        raise UsageError(
            f"the data has {len(found)} classes and the model knows {known}: evaluate on the data "
            "it was trained for, or fine-tune it with experiments/finetune.py."
        )
    logits, folded = folded_logits(saved)
    shared = over_rows(logits)
    metrics = jax.jit(
        lambda folded, batch: scores(shared(folded, batch["image"]), batch),
        compiler_options=prediction_options(),
    )
    batch_size += -batch_size % jax.local_device_count()
    total: dict[str, Any] = {}
    for rows in eval_batches(source, batch_size=batch_size, transform=transform_of(saved)):
        batch = {name: rows[name] for name in ("image", "label", "mask")}
        sums = jax.device_get(metrics(folded, batch))
        total = {
            name: np.add(total.get(name, 0.0), np.asarray(pair, np.float64))
            for name, pair in sums.items()
        }
    return {name: float(value / count) for name, (value, count) in total.items()}


def write_evaluation(folder: Path, saved: TrainedModel, facts: Mapping[str, Any]) -> Path:
    """Keeps what an evaluation found, and of which model, where `mnv2 paper` finds it.

    Args:
      folder: made if needed.
      saved: the model; its options and the source of its weights are written.
      facts: `data`, `split`, `images`, `scores`, `views`, the `folder` of the model, `command`.

    Raises:
      UsageError: the folder cannot be written.
    """
    described = {
        name: value for name, value in saved.description.items() if name not in ("classes", "eval")
    }
    path = folder / EVALUATION
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {**facts, "model": described})
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}. Choose another --out.") from error
    return path


def folded_logits(saved: TrainedModel) -> tuple[Callable[[Any, Any], jax.Array], Any]:
    """Returns (folded variables, pixels) -> logits, and the folded variables of a classifier."""
    model = saved.model

    def logits(folded: Any, pixels: Any) -> jax.Array:
        return folded_apply(model, folded, normalize(pixels, model.dialect))

    return logits, fold(model, saved.variables)


def without_background(saved: TrainedModel) -> TrainedModel:
    """Drops the class "background" that some published classifiers have before all others.

    What is left answers with the classes of the data, counted from 0.

    Raises:
      UsageError: the model is no classifier.
    """
    if saved.task.name != "classify" or saved.model.num_classes is None:
        what = (
            "features only"
            if saved.task.name == "classify"
            else f"answers of the task {saved.task.name}"
        )
        raise UsageError(
            f"this model gives {what}: classes need a classifier; import it without --drop-head, "
            "or fine-tune it with experiments/finetune.py."
        )
    model, offset = saved.model, saved.model.class_offset
    if not offset:
        return saved
    params = saved.variables["params"]
    head = {name: leaf[..., offset:] for name, leaf in params["classifier"].items()}
    return saved._replace(
        model=model.clone(num_classes=model.num_classes - offset, class_offset=0),
        variables=saved.variables | {"params": params | {"classifier": head}},
    )


def transform_of(saved: TrainedModel, size: int | None = None) -> Any:
    """Returns how images are prepared for a model, at its own resolution or at `size`.

    A classifier's keeps the rest of a record; a detector's or segmenter's takes the image alone.

    Raises:
      UsageError: the description of the model asks for a preparation that there is not.
    """
    options, size = saved.description.get("eval", {}), size or saved.resolution
    channels = saved.backbone.in_channels
    try:
        if saved.task.name == "classify":
            return eval_transform(size, channels=channels, **options)
        return partial(_image_alone, size, channels, options.get("crop") == "pad")
    except (TypeError, AttributeError) as error:
        raise UsageError(
            f'"eval" in the model\'s description is {options}, which no image can be prepared by: '
            f"{error}. Import or train the model again."
        ) from error


def _image_alone(size: int, channels: int, whole: bool, record: Any, rng: Any) -> dict[str, Any]:
    """Pads an image that is kept whole, as segmenters may have it, or stretches it."""
    del rng
    pixels = record["image"]
    height, width = fitted(pixels.shape, size) if whole else (size, size)
    pixels = padded(resize(pixels, height, width, antialias=whole), size, MEAN_PIXEL)
    return {"image": with_channels(pixels, channels)}


def read_image(path: str, channels: int) -> np.ndarray:
    """Reads an image file as uint8 (h, w, channels).

    Raises:
      UsageError: it cannot be read or decoded.
    """
    try:
        return decode(_read(path), path, channels)
    except BadRecord as bad:
        raise UsageError(f"image {bad}: give an image that opens elsewhere.") from bad


def _read(path: str) -> bytes:
    try:
        return read_file(path, MAX_FILE_BYTES)
    except UnreadableFile as error:
        raise UsageError(f"image {error} Give the path of a JPEG, PNG or the like.") from error


def _class_name(saved: TrainedModel, index: int) -> str:
    return saved.classes[index] if index < len(saved.classes) else f"class {index}"
