"""Image classification: softmax cross-entropy, top-1 and top-5 accuracy, distillation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import eval_transform, train_transform
from mnv2_jax.lab.tasks import augment, views
from mnv2_jax.lab.tasks import task as contract
from mnv2_jax.lab.tasks.task import Batch, Prediction, Sums, Task, TaskSpec, TrainedModel, Variables
from mnv2_jax.models.build import build
from mnv2_jax.models.mobilenet import MobileNetV2


class Teacher(NamedTuple):
    """A trained network whose softened answers a student learns from (arXiv 1503.02531)."""

    logits: Callable[[Float[Array, "b h w c"]], Float[Array, "b classes"]]  # of normalised images
    weight: float  # share of the distillation term in the loss, 0 to 1
    temperature: float  # softens both distributions; the term is scaled by its square


def classify(
    model: MobileNetV2, image_shape: contract.Shape,
    augmentations: tuple[augment.Augmentation, ...] = (), label_smoothing: float = 0.0,
    mixup: float = 0.0, cutmix: float = 0.0, teacher: Teacher | None = None,
    class_weights: Sequence[float] = (),
) -> Task:  # fmt: skip
    """Builds the classification task.

    Batches hold `image` (b, h, w, c) uint8, `label` (b,) int32, `mask` (b,) float32 and `row` (b,),
    the row in the global batch. The shape (h, w, c) is for initialisation; augmentations are
    applied to every training image on the device. `label_smoothing` is the share of the target
    spread over all classes (slim's recipe has 0.1), `mixup` and `cutmix` are Beta parameters; 0 is
    off, and with both, each batch takes one at random. A teacher adds a distillation term.
    `class_weights` are factors of the classes' terms in the cross-entropy of training; () for 1.
    """
    classes = model.num_classes
    assert classes is not None
    if class_weights and len(class_weights) != classes:
        raise UsageError(
            f"loss.class_weights has {len(class_weights)} numbers and the data {classes} classes: "
            "give one each, in the order of the classes' names, or () for equal ones."
        )

    def mix(key: Array, pair: tuple[Array, Array], mask: Array) -> tuple[Array, Array]:
        choice, key = jax.random.split(key)
        mixed = augment.mixup(key, *pair, mask, mixup) if mixup else pair
        cut = augment.cutmix(key, *pair, mask, cutmix) if cutmix else pair
        if not (mixup and cutmix):
            return mixed if mixup else cut
        first = jax.random.bernoulli(choice)
        return jnp.where(first, mixed[0], cut[0]), jnp.where(first, mixed[1], cut[1])

    def loss(variables: Variables, batch: Batch, key: Array) -> tuple[Sums, Variables]:
        augment_key, key = jax.random.split(key)
        pixels = augment.each(augmentations, augment_key, batch["image"], batch["row"])
        # What is drawn once for all rows at hand differs between devices by their first row.
        mix_key, dropout_key = jax.random.split(jax.random.fold_in(key, batch["row"][0]))
        images = contract.inputs(model, {**batch, "image": pixels})
        targets = jax.nn.one_hot(batch["label"], classes)
        images, targets = mix(mix_key, (images, targets), batch["mask"])
        targets = (1 - label_smoothing) * targets + label_smoothing / classes
        if class_weights:
            targets = targets * jnp.asarray([class_weights])
        logits, stats = contract.train_outputs(model, variables, images, batch["mask"], dropout_key)
        losses = optax.softmax_cross_entropy(logits, targets)
        if teacher is not None:
            soft = jax.nn.softmax(teacher.logits(images) / teacher.temperature)
            term = optax.softmax_cross_entropy(logits / teacher.temperature, soft)
            weight = teacher.weight
            losses = (1 - weight) * losses + (weight * teacher.temperature**2 * term)
        hits = _top(logits, batch["label"], 1)
        return _sums(batch["mask"], loss=losses, accuracy=hits), stats

    return CLASSIFY.learn(model, image_shape, loss)


def without_background(model: Any, logits: Any) -> Float[Array, "b classes"]:
    """Drops the class "background" that some published classifiers have before all others."""
    return jnp.asarray(logits)[:, getattr(model, "class_offset", 0) :]


def _show(trained: TrainedModel, answer: Any, pixels: np.ndarray, top: int) -> Prediction:
    """Names the likeliest classes, likeliest first, with their probabilities."""
    del pixels
    best = np.argsort(-answer, kind="stable")[:top].tolist()
    classes = [{"name": trained.class_name(i), "probability": float(answer[i])} for i in best]
    lines = [f"  {c['probability']:6.1%}  {c['name']}" for c in classes]
    return Prediction({"classes": classes}, text="\n".join(lines))


def scores(logits: Float[Array, "b classes"], batch: Batch) -> Sums:
    """Returns loss, top-1 and, above five classes, top-5 accuracy of a batch as sums."""
    label = _nearest(logits, batch)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    top = {"accuracy": _top(logits, label, 1)}
    if logits.shape[1] > 5:
        top["top5"] = _top(logits, label, 5)
    return _sums(batch["mask"], loss=losses, **top)


def _nearest(logits: Array, batch: Batch) -> Array:
    """The label; where several classes are right, the one among them that is likeliest."""
    if "also" not in batch:
        return batch["label"]
    right = batch["also"]  # padded with -1
    own = jnp.take_along_axis(logits, jnp.maximum(right, 0), axis=1)
    best = jnp.argmax(jnp.where(right >= 0, own, -jnp.inf), axis=1)
    return jnp.take_along_axis(right, best[:, None], axis=1)[:, 0]


def _top(logits: Array, labels: Array, k: int) -> Array:
    """1.0 where the label's logit is among the k largest; ties and NaN count against the label."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    return (jnp.sum(~(logits < own), axis=1) <= k).astype(jnp.float32)


def _sums(mask: Array, **values: Array) -> Sums:
    # A masked row may hold anything, also NaN, which a product with 0 would keep.
    count = mask.sum()
    return {name: (jnp.where(mask > 0, v, 0.0).sum(), count) for name, v in values.items()}


def _teacher(config: Any, trained: TrainedModel, model: MobileNetV2) -> Teacher:
    """Takes a trained classifier as the teacher of a student of the same classes and inputs."""
    given, theirs, ours = config.teacher.model, trained.model.dialect, model.dialect
    if trained.model.num_classes != model.num_classes:
        raise UsageError(
            f"teacher {given} knows {trained.model.num_classes} classes and the data has "
            f"{model.num_classes}: train a teacher on the same classes."
        )
    if (theirs.mean, theirs.std) != (ours.mean, ours.std):
        raise UsageError(
            f"teacher {given} takes images in the range of the dialect {theirs.name}, and the "
            f"student in that of {ours.name}: set model.dialect to the teacher's."
        )
    logits: Any = partial(trained.model.apply, trained.variables)
    return Teacher(logits, config.teacher.weight, config.teacher.temperature)


def _task(config: Any, model: Any, shape: Any, augmentations: Any, trained: Any) -> Task:
    teacher = None if trained is None else _teacher(config, trained, model)
    return classify(model, shape, augmentations, teacher=teacher, **config.loss.to_dict())


CLASSIFY = TaskSpec(
    name="classify", noun="classifier", title="MobileNetV2", pipeline="image-classification",
    unlabeled=lambda height, width: {"label": 0},
    train_transform=lambda config, channels: train_transform(
        config.data.resolution, channels=channels, **config.data.train.to_dict()
    ),
    eval_transform=lambda size, channels, options: eval_transform(
        size, channels=channels, **options
    ),
    build=build, task=_task, show=_show, full_recipe=True, settings={"top": 5},
    scores=lambda model, logits, batch: scores(without_background(model, logits), batch),
    decode=lambda model, logits, _: jax.nn.softmax(without_background(model, logits)),
    metrics={"accuracy": "top-1 accuracy"}, average=views.average,
)  # fmt: skip
