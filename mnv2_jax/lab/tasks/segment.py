"""Semantic segmentation (Sec. 6.3): softmax cross-entropy per pixel, mean IoU, multi-scale inputs.

Mean IoU needs the whole set's confusion matrix, but of it only two sums for each class: the pixels
that are of the class in both prediction and label, and those that are in either. They are integers
and add up over batches and devices, so the result is exact whatever the batches were.

Batches hold `image` (b, h, w, c) uint8, `label` (b, h, w) integers, `mask` (b,) float32 and `row`
(b,). A label that is no class of the model (255 marks what nobody could tell) counts nowhere.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int, UInt8

from mnv2_jax.lab.data import Transform, segmentation_eval, segmentation_train
from mnv2_jax.lab.data.image import fitted, resize
from mnv2_jax.lab.tasks import task as contract
from mnv2_jax.lab.tasks import views
from mnv2_jax.lab.tasks.draw import SHOWN_SIDE, draw_labels, enlarge
from mnv2_jax.lab.tasks.task import Batch, Prediction, Sums, Task, TaskSpec, TrainedModel, Variables
from mnv2_jax.models.build import build_deeplab
from mnv2_jax.models.deeplab import DeepLabV3, resize_aligned

# What Table 7 calls multi-scale, as in DeepLabv3 (arXiv 1706.05587), which the paper follows.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def segment(model: DeepLabV3, image_shape: contract.Shape) -> Task:
    """Builds the segmentation task; (h, w, c) of the images is for initialisation.

    The loss is the mean cross-entropy over all labelled pixels of the batch. `metrics` are made
    readable by `summarize`.
    """

    def loss(variables: Variables, batch: Batch, key: Array) -> tuple[Sums, Variables]:
        # Rows of one device draw together, so devices differ by their first row.
        key = jax.random.fold_in(key, batch["row"][0])
        images = contract.inputs(model, batch)
        logits, stats = contract.train_outputs(model, variables, images, batch["mask"], key)
        return _sums(logits, batch), stats

    return SEGMENT.learn(model, image_shape, loss)


def scores(model: DeepLabV3, logits: Array, batch: Batch) -> Sums:
    """Returns loss, accuracy and what the mean IoU is computed from, as sums."""
    labels, counted = _labels(batch, model.num_classes)
    pair = intersection_and_union(logits.argmax(axis=-1), labels, counted, model.num_classes)
    return _sums(logits, batch) | {"iou": pair}


def confusion(model: DeepLabV3, logits: Array, batch: Batch) -> dict[str, Array]:
    """Counts the pixels of each class (rows) by the class that is predicted (columns)."""
    n, (labels, counted) = model.num_classes, _labels(batch, model.num_classes)
    pairs = jnp.where(counted, labels * n + logits.argmax(axis=-1), n * n).ravel()
    found = jnp.bincount(pairs, length=n * n + 1)[:-1].reshape(n, n)
    return {"confusion": found.astype(jnp.int32)}


def by_class(sums: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns of each class its share of the labelled pixels, and its IoU: NaN where it is not.

    >>> by_class({"confusion": np.array([[2, 1, 0], [0, 1, 0], [0, 0, 0]])})
    {'share': array([0.75, 0.25, 0.  ]), 'iou': array([0.667, 0.5  ,   nan])}
    """
    pixels = np.asarray(sums["confusion"], np.float64)
    both, true = pixels.diagonal(), pixels.sum(axis=1)
    either = true + pixels.sum(axis=0) - both
    iou = np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)
    return {"share": true / max(true.sum(), 1), "iou": iou}


def _sums(logits: Array, batch: Batch) -> Sums:
    labels, counted = _labels(batch, logits.shape[-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right, count = (logits.argmax(axis=-1) == labels) & counted, counted.sum()
    loss = jnp.where(counted, losses, 0).sum()
    return {"loss": (loss, count.astype(jnp.float32)), "accuracy": (right.sum(), count)}


def _labels(batch: Batch, num_classes: int) -> tuple[Array, Array]:
    """Gives labels that are classes, and which pixels count."""
    labels = batch["label"].astype(jnp.int32)
    counted = (labels >= 0) & (labels < num_classes) & (batch["mask"].reshape(-1, 1, 1) > 0)
    return jnp.where(counted, labels, 0), counted


def intersection_and_union(
    predicted: Int[Array, "*n"], labels: Int[Array, "*n"], counted: Bool[Array, "*n"],
    num_classes: int,
) -> tuple[Int[Array, " classes"], Int[Array, " classes"]]:  # fmt: skip
    """Counts the pixels of each class in both, and in either, of prediction and label.

    As int32, sums hold up to 2,147 million pixels: twice the validation set of Cityscapes.

    >>> both, either = intersection_and_union(
    ...     jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 1, 1]), jnp.ones(4, bool), 3)
    >>> both, either
    (Array([1, 2, 0], dtype=int32), Array([2, 3, 0], dtype=int32))
    """

    def count(classes: Array, where: Array) -> Array:
        chosen = jnp.where(where, classes, num_classes).ravel()
        return jnp.bincount(chosen, length=num_classes + 1)[:num_classes].astype(jnp.int32)

    both = count(labels, counted & (predicted == labels))
    return both, count(labels, counted) + count(predicted, counted) - both


def summarize(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """Turns summed metrics into numbers: `loss`, pixel `accuracy` and `miou`.

    Classes in neither prediction nor label take no part in the mean; without any it is NaN. How
    many do, `classes_scored` says.

    >>> summarize({"iou": (np.array([1, 2, 0]), np.array([2, 4, 0]))})
    {'miou': 0.5, 'classes_scored': 2}
    """
    arrays = ("iou", "confusion")
    found = contract.means({name: pair for name, pair in sums.items() if name not in arrays})
    if "iou" not in sums:
        return found
    both, either = (np.asarray(v, np.float64) for v in sums["iou"])
    each = both[either > 0] / either[either > 0]
    miou = float(each.mean()) if len(each) else float("nan")
    return found | {"miou": miou, "classes_scored": len(each)}


def predict(
    model: DeepLabV3, variables: Variables, images: UInt8[Array, "b h w c"]
) -> Int[Array, "b h w"]:
    """Returns the class of every pixel of images of pixels 0..255."""
    return contract.eval_outputs(model, variables, {"image": images}).argmax(axis=-1)


def _show(trained: TrainedModel, answer: np.ndarray, pixels: np.ndarray) -> Prediction:
    """Tints every pixel by its class, and lists the share of the image that each class has."""
    size, (rows, columns) = trained.resolution, pixels.shape[:2]
    whole = trained.description.get("eval", {}).get("crop") == "pad"
    height, width = fitted(pixels.shape, size) if whole else (size, size)
    labels = answer[:height, :width].astype(np.uint8)[..., None]
    labels = resize(labels, rows, columns, "nearest")[..., 0]
    shares = np.bincount(labels.ravel()) / labels.size
    named = {trained.class_name(i): round(float(s), 4) for i, s in enumerate(shares)}
    picture = enlarge(draw_labels(pixels, labels, background(trained)), SHOWN_SIDE)
    return Prediction({"shares": {name: share for name, share in named.items() if share}}, picture)


def truth(trained: TrainedModel, record: Any) -> np.ndarray:
    """Tints every pixel of a record's image by the class of its label."""
    labels = draw_labels(record["image"], record["label"], background(trained))
    return enlarge(labels, SHOWN_SIDE)


def background(trained: TrainedModel) -> int | None:
    """Returns the class that stands for no object, where there is one."""
    return None if trained.classes and trained.classes[0] != "background" else 0


def _in_place(logits: Array, turn: int, size: tuple[int, ...]) -> Array:
    """Brings the logits of a resized and perhaps mirrored input to the pixels of the original."""
    return resize_aligned(logits[:, :, ::turn], size)


average = partial(views.average, in_place=_in_place)


def _train_transform(config: Any, channels: int) -> Transform:
    size, train, scale = config.data.resolution, config.data.train, tuple(config.segment.scale)
    return segmentation_train(size, train.crop, scale, train.flip, train.color, channels)


# Options of `build_deeplab` that the configuration has in a group of their own.
OPTIONS = ("aspp", "rates", "decoder", "atrous", "channels")

SEGMENT = TaskSpec(
    name="segment", noun="segmenter", title="MobileNetV2 + DeepLabv3",
    pipeline="image-segmentation",
    unlabeled=lambda height, width: {"label": np.zeros((height, width), np.uint8)},
    # Label maps may begin with a background that boxes have not.
    classes=lambda source: getattr(source, "pixel_classes", source.classes),
    build=build_deeplab, options=lambda config: {key: config.segment[key] for key in OPTIONS},
    train_transform=_train_transform,
    eval_transform=lambda size, channels, options: segmentation_eval(
        size, options.get("crop", "none"), channels
    ),
    task=lambda config, model, image_shape, *_: segment(model, image_shape),
    scores=scores, decode=lambda model, logits, _: logits.argmax(axis=-1), show=_show,
    summarize=summarize, counts=confusion, by_class=by_class, seen=("label", "pixels", 2),
    truth=truth, average=average,
    metrics={"miou": "mean IoU", "accuracy": "accuracy of pixels"},
)  # fmt: skip
