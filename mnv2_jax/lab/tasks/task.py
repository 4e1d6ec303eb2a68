"""What a task is: all that the lab needs to train, evaluate and use a network for it."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import Source, Transform
from mnv2_jax.models.dialect import normalize

Shape = tuple[int, int, int]  # (h, w, c) of images
Variables = dict[str, Any]
Batch = dict[str, Array]
Sums = dict[str, tuple[Array, Array]]
"""Metrics as (sum, count) pairs: they add up over batches, devices and hosts without bias."""
Forward = Callable[[Any, Any], Any]
"""(weights, images in the network's range) -> outputs."""


def means(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """Divides every sum by its count; a count of 0 gives 0.

    >>> means({"loss": (3.0, 2), "accuracy": (0.0, 0)})
    {'loss': 1.5, 'accuracy': 0.0}
    """
    return {name: float(value) / max(float(count), 1.0) for name, (value, count) in sums.items()}


class Task(NamedTuple):
    """What one network learns, as pure functions; `make_step` and `evaluate` need no more.

    Rows of a batch whose `mask` is 0 count nowhere.
    """

    init: Callable[[Array], Variables]  # key -> `params`, and `batch_stats` if there are any
    # In training mode, (variables, batch, key) -> (sums, batch_stats). `sums["loss"]` is minimized
    # as sum / count; the other pairs are reported.
    loss: Callable[[Variables, Batch, Array], tuple[Sums, Any]]
    metrics: Callable[[Variables, Batch], Sums]  # in evaluation mode
    # The sums of a whole set -> {metric: number}. Not every metric is a mean: average precision and
    # mean IoU are computed from sums that are arrays.
    summarize: Callable[[Mapping[str, tuple[Any, Any]]], dict[str, float]] = means
    monitor: str = "accuracy"  # the metric, higher is better, that chooses the best checkpoint


class TestTimeAugmentation(NamedTuple):
    """Several looks at each image, whose answers are averaged (Table 7's MF, for segmenters)."""

    scales: tuple[float, ...] = (1.0,)  # of the input's sides, above 0
    flip: bool = False  # adds every input's mirror image


ONCE = TestTimeAugmentation()


class Prediction(NamedTuple):
    """What a model says of one image."""

    values: dict[str, Any]  # as they are written to JSON
    picture: np.ndarray | None = None  # (h, w, 3) uint8: the answer over the image, if of places
    text: str = ""  # the answer in lines for a terminal, where there is no picture


class TaskSpec(NamedTuple):
    """Everything that a task adds to the lab; `mnv2_jax.lab.tasks.TASKS` has one for each task."""

    name: str  # in configurations and model folders
    noun: str  # what its networks are called in messages
    title: str  # of its networks in a model card
    pipeline: str  # the word of model hubs for the task
    # (height, width) -> what the record of such an image holds besides the image, where nothing is
    # annotated. Records of a data set need fields of the same names and axes.
    unlabeled: Callable[[int, int], dict[str, Any]]
    # Plain options -> network; `num_classes` and `in_channels` are among them.
    build: Callable[..., Any]
    # (config, channels) and (size, channels, options) -> what is done to a record.
    train_transform: Callable[[Any, int], Transform]
    eval_transform: Callable[[int, int, Mapping[str, Any]], Transform]
    # (config, network, (h, w, c), augmentations on the device, teacher or None) -> the task.
    task: Callable[[Any, Any, Shape, tuple[Any, ...], Any], Task]
    scores: Callable[[Any, Any, Batch], Sums]  # of (network, outputs, batch), as `Task.metrics`
    # (network, outputs, (h, w) of the inputs) -> answers, on the device; rows are images.
    decode: Callable[[Any, Any, tuple[int, int]], Any]
    # (trained model, answer for one image, its pixels, **settings) -> the prediction.
    show: Callable[..., Prediction]
    metrics: dict[str, str]  # {metric: title}; the first one is compared, plotted and monitored
    summarize: Callable[[Mapping[str, tuple[Any, Any]]], dict[str, float]] = means
    # Of answers that are places: sums of (network, outputs, batch) that only an evaluation by class
    # needs, and what all sums of a set say of each class, {column: (classes,) numbers}.
    counts: Callable[[Any, Any, Batch], dict[str, Any]] = lambda *_: {}
    by_class: Callable[[Mapping[str, Any]], dict[str, np.ndarray]] = lambda sums: {}
    # (source) -> the names of the network's classes.
    classes: Callable[[Source], tuple[str, ...]] = lambda source: source.classes
    # From the configuration: options of `build` in a group of the task's own, and those of
    # `eval_transform`.
    options: Callable[[Any], dict[str, Any]] = lambda config: {}
    eval_options: Callable[[Any], dict[str, Any]] = lambda config: config.data.eval.to_dict()
    # Whether `data.train.policy` and `.erasing`, `loss`, `teacher` and `low_precision` of a
    # configuration have an effect; elsewhere they are rejected.
    full_recipe: bool = False
    # Of answers that are places the field of a record that has their classes, what they are called,
    # and how many classes need any for a set to be one to learn from.
    seen: tuple[str, str, int] | None = None
    settings: Mapping[str, Any] = MappingProxyType({})  # of `show`, with their defaults
    # (trained model, record) -> a picture of what is annotated, where it can be drawn.
    truth: "Callable[[TrainedModel, Any], np.ndarray] | None" = None
    # How several looks become one, where answers can be averaged.
    average: Callable[[Forward, TestTimeAugmentation], Forward] | None = None

    @property
    def fields(self) -> dict[str, int]:
        """What a batch holds of a record besides the image, and how many axes it has there."""
        return {name: np.ndim(value) for name, value in self.unlabeled(1, 1).items()}

    @property
    def monitor(self) -> str:
        """The metric that ranks networks, higher is better."""
        return next(iter(self.metrics))

    def learn(self, model: Any, image_shape: Shape, loss: Any) -> Task:
        """Returns what a network learns by this loss; (h, w, c) is for initialisation."""
        metrics = metrics_with(model, self.scores)
        return Task(init_with(model, image_shape), loss, metrics, self.summarize, self.monitor)

    def check_record(self, record: Mapping[str, Any], data: str) -> None:
        """Rejects a data set that lacks what the task learns from, with a `UsageError`."""
        for field, axes in self.fields.items():
            if field not in record or np.ndim(record[field]) != axes:
                held = ", ".join(f"{key} {np.shape(value)}" for key, value in record.items())
                raise UsageError(
                    f"task {self.name} needs {field!r} with {axes} axes, and records of {data} "
                    f"hold {held}: choose another data set, or another task."
                )


class TrainedModel(NamedTuple):
    """A network with its variables and what is needed to use it on images."""

    task: TaskSpec
    model: Any  # a `MobileNetV2`, or a network with one as its `backbone`
    variables: dict[str, Any]  # `params` and `batch_stats`
    classes: tuple[str, ...]  # names, or none; a classifier's background is not among them
    resolution: int  # height and width of the images
    description: dict[str, Any]  # the content of the model folder's `config.json`

    @property
    def backbone(self) -> Any:
        """The `MobileNetV2` in the network, whose dialect and channels hold for the images."""
        return backbone_of(self.model)

    def count_classes(self) -> int:
        """Returns how many classes it tells apart; a classifier's background is not among them.

        A network without a classifier is a UsageError.
        """
        if self.model.num_classes is None:
            raise UsageError(
                "this model gives features only, no classes: import it without --drop-head, or "
                "fine-tune it with experiments/finetune.py."
            )
        return self.model.num_classes - getattr(self.model, "class_offset", 0)

    def class_name(self, index: int) -> str:
        """The name of a class, or its number where the classes have no names."""
        return self.classes[index] if index < len(self.classes) else f"class {index}"


def evaluate(
    compute: Callable[[Any], Any], batches: Iterable[Any],
    summarize: Callable[[Any], Any] = means, stopped: Callable[[], bool] = lambda: False,
) -> Any:  # fmt: skip
    """Evaluates over a whole set, each example once: the one loop that all evaluations share.

    The sums that `compute` makes of each batch are added up in 64 bits on the host; padded rows,
    whose mask is 0, count nowhere. `summarize` makes the result of them; it is None once `stopped`,
    which is asked before each batch, is true.
    """
    total: Any = None
    for batch in batches:
        if stopped():
            return None
        sums = jax.tree.map(_wide, jax.device_get(compute(batch)))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    return summarize(total)


def _wide(value: Any) -> np.ndarray:
    value = np.asarray(value)
    return value.astype(np.int64 if value.dtype.kind in "iub" else np.float64)


def backbone_of(model: Any) -> Any:
    """Returns the `MobileNetV2` in a network, whose dialect and channels hold for the images."""
    return getattr(model, "backbone", model)


def init_with(model: Any, image_shape: Shape) -> Callable[[Array], Variables]:
    """Returns key -> fresh variables of a network for images of (h, w, c)."""
    return lambda key: dict(model.init(key, jnp.zeros((1, *image_shape), jnp.float32)))


def inputs(model: Any, batch: Batch) -> Float[Array, "b h w c"]:
    """Brings a batch's pixels 0..255 to a network's range; masked rows become zeros.

    What a masked row holds must not reach the gradient, where NaN times 0 is NaN.
    """
    images = normalize(batch["image"], backbone_of(model).dialect)
    return jnp.where(batch["mask"].reshape(-1, 1, 1, 1) > 0, images, 0.0)


def train_outputs(
    model: Any, variables: Variables, images: Array, mask: Array, key: Array
) -> tuple[Any, Variables]:
    """Applies a network in training mode; returns its outputs and the new batch statistics."""
    settings = {"train": True, "mask": mask, "rngs": {"dropout": key}}
    outputs, updates = model.apply(variables, images, mutable=["batch_stats"], **settings)
    return outputs, updates["batch_stats"]


def eval_outputs(model: Any, variables: Variables, batch: Batch) -> Any:
    """Applies a network in evaluation mode to a batch's pixels 0..255."""
    return model.apply(variables, normalize(batch["image"], backbone_of(model).dialect))


def metrics_with(model: Any, scores: Callable[[Any, Any, Batch], Sums]) -> Callable[..., Sums]:
    """Returns (variables, batch) -> the scores of a network's outputs in evaluation mode."""
    return lambda variables, batch: scores(model, eval_outputs(model, variables, batch), batch)
