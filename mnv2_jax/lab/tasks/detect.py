"""Object detection (Sec. 6.2): SSD's loss as the authors configured it, and average precision.

Average precision needs every detection of the whole set in the order of its score. What adds up
over batches and devices is a histogram of scores: of the detections in each of 1,000 bins, how many
there are and how many hit. From these, `summarize` computes COCO's figure to within the width of a
bin, exactly whatever the batches were.

Batches hold `image` (b, h, w, c) uint8, `boxes` (b, g, 4) as in `mnv2_jax.models.boxes`, `classes`
(b, g) int32 and `mask` (b,) float32. An object whose class is not among the model's (padding has
-1) or whose box has no area inside the image counts nowhere. Classes below -1 are of crowds
(`mnv2_jax.lab.data.annotations`): nothing is learned from them, and detections in them do not
count.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from mnv2_jax.lab.data import Transform, detection_eval, detection_train
from mnv2_jax.lab.data.annotations import FIRST_CROWD
from mnv2_jax.lab.tasks import task as contract
from mnv2_jax.lab.tasks.draw import SHOWN_SIDE, draw_boxes, enlarge
from mnv2_jax.lab.tasks.task import Batch, Prediction, Sums, Task, TaskSpec, TrainedModel, Variables
from mnv2_jax.models.anchors import encode
from mnv2_jax.models.boxes import Detections, area, clip, covered, detections, iou, match
from mnv2_jax.models.build import build_ssdlite
from mnv2_jax.models.ssdlite import SSDLite

NEGATIVES_PER_POSITIVE = MIN_NEGATIVES = 3  # in an image, as in the authors' hard example miner
THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))  # IoU of a hit: COCO's ten
MOST_OBJECTS = 100  # in an image of an evaluation; of more, the largest count
SCORE_BINS, LARGEST_LOGIT = 1000, 10.0
RECALLS = np.linspace(0, 1, 101)


def detect(model: SSDLite, image_shape: contract.Shape) -> Task:
    """Builds the detection task for images of (h, w, c), which set the anchors.

    The loss is the sum over the batch of smooth L1 of the codes of matched anchors and sigmoid
    cross-entropy over all slots of the matched ones and the hardest others, 1:1, divided by the
    number of matches. `metrics` are made readable by `summarize`.
    """

    def loss(variables: Variables, batch: Batch, key: Array) -> tuple[Sums, Variables]:
        if model.backbone.stochastic_depth:  # which devices draw by their first row
            key = jax.random.fold_in(key, batch["row"][0])
        images = contract.inputs(model, batch)
        outputs, stats = contract.train_outputs(model, variables, images, batch["mask"], key)
        return _losses(model, outputs, batch), stats

    return DETECT.learn(model, image_shape, loss)


def _losses(model: SSDLite, outputs: tuple[Array, Array], batch: Batch) -> Sums:
    boxes, classes = usable(batch, model.num_classes)
    boxes = jnp.where((classes >= 0)[..., None], boxes, 0)
    each = partial(image_losses, anchors=model.anchors(_size(batch)))
    found = jax.vmap(each)(*outputs, boxes, classes)
    box, label, matches = (jnp.where(batch["mask"] > 0, v, 0).sum() for v in found)
    count = matches.astype(jnp.float32)
    return {"loss": (box + label, count), "box_loss": (box, count), "class_loss": (label, count)}


def scores(model: SSDLite, outputs: tuple[Array, Array], batch: Batch) -> Sums:
    """Returns the losses of a batch and what its average precision is computed from, as sums."""
    best = decode(model, outputs, _size(batch))
    boxes, classes = usable(batch, model.num_classes)
    counts = score_histograms(best, boxes, classes, batch["mask"], model.num_classes)
    return _losses(model, outputs, batch) | counts


def predict(model: SSDLite, variables: Variables, images: UInt8[Array, "b h w c"]) -> Detections:
    """Detects objects in images of pixels 0..255; every field has the batch as its first axis."""
    outputs = contract.eval_outputs(model, variables, {"image": images})
    return decode(model, outputs, _size({"image": images}))


def decode(model: SSDLite, outputs: tuple[Array, Array], image_size: tuple[int, int]) -> Detections:
    """Turns the outputs for images of (height, width) into detections."""
    return detections(*outputs, model.anchors(image_size))


def _show(
    trained: TrainedModel, answer: Detections, pixels: np.ndarray, threshold: float
) -> Prediction:
    """Draws and lists the boxes whose score is at least the threshold, best first."""
    kept = answer.valid & (answer.scores >= threshold)
    fields = (answer.boxes, answer.classes, answer.scores)
    boxes, classes, scores = (np.asarray(field)[kept] for field in fields)
    height, width = pixels.shape[:2]
    corners = boxes[:, [1, 0, 3, 2]] * [width, height, width, height]
    objects, labels = [], []
    for kind, score, box in zip(classes.tolist(), scores, corners, strict=True):
        name = trained.class_name(kind)
        labels.append(f"{name} {score:.2f}")
        # Pixels from the left and the top: left, top, right, bottom.
        box = box.round(1).tolist()
        objects.append({"class": name, "score": round(float(score), 4), "box": box})
    picture = draw_boxes(enlarge(pixels, SHOWN_SIDE), boxes, classes.tolist(), labels)
    return Prediction({"objects": objects}, picture)


def _truth(trained: TrainedModel, record: Any) -> np.ndarray:
    real = record["classes"] >= 0
    classes = record["classes"][real].tolist()
    names = [trained.class_name(c) for c in classes]
    return draw_boxes(enlarge(record["image"], SHOWN_SIDE), record["boxes"][real], classes, names)


def _size(batch: Batch) -> tuple[int, int]:
    return batch["image"].shape[1], batch["image"].shape[2]


def usable(batch: Batch, num_classes: int) -> tuple[Array, Array]:
    """Clips the boxes of objects and crowds; those that count nowhere get zeros and class -1."""
    boxes, classes = clip(batch["boxes"]), batch["classes"]
    usable = (area(boxes) > 0) & (classes < num_classes)
    return jnp.where(usable[..., None], boxes, 0), jnp.where(usable, classes, -1)


def image_losses(
    codes: Float[Array, "a 4"], logits: Float[Array, "a slots"],
    boxes: Float[Array, "g 4"], classes: Int[Array, " g"], anchors: Float[Array, "a 4"],
) -> tuple[Float[Array, ""], Float[Array, ""], Int[Array, ""]]:  # fmt: skip
    """Returns one image's loss of boxes, loss of classes, and number of matched anchors.

    `codes` and `logits` are what the network says of every anchor; slot 0 is the background. The
    objects are padded with boxes without area.
    """
    assigned = match(boxes, anchors)
    positive = assigned >= 0
    slots = jnp.where(positive, classes[assigned] + 1, 0)
    targets = jax.nn.one_hot(slots, logits.shape[1])
    class_losses = optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=1)
    box_losses = optax.huber_loss(codes, encode(boxes[assigned], anchors), delta=1.0).sum(axis=1)
    kept = positive | hard_negatives(class_losses, positive)
    box_loss = jnp.where(positive, box_losses, 0).sum()
    return box_loss, jnp.where(kept, class_losses, 0).sum(), positive.sum()


def hard_negatives(losses: Float[Array, " a"], positive: Bool[Array, " a"]) -> Bool[Array, " a"]:
    """Chooses the background anchors of the largest loss: three for each positive, at least three.

    >>> losses = jnp.array([9.0, 0.1, 5.0, 0.3, 0.2])
    >>> hard_negatives(losses, jnp.array([True, False, False, False, False]))
    Array([False, False,  True,  True,  True], dtype=bool)
    """
    order = jnp.argsort(jnp.where(positive, jnp.inf, -losses))
    rank = jnp.argsort(order)
    limit = jnp.maximum(NEGATIVES_PER_POSITIVE * positive.sum(), MIN_NEGATIVES)
    return ~positive & (rank < limit)


def hits(
    found: Detections, boxes: Float[Array, "g 4"], classes: Int[Array, " g"]
) -> tuple[Bool[Array, "k t"], Bool[Array, "k t"]]:
    """Says which detections of one image hit an object, and which count, for each of `THRESHOLDS`.

    Best first, a detection takes the object of its class that it overlaps most among those that no
    better one has taken, if their IoU is at least the threshold. One that takes none does not count
    if at least that share of it lies in a crowd of its class. (COCO's rules.)
    """
    overlap = iou(found.boxes, boxes)
    overlap = jnp.where(found.classes[:, None] == classes[None, :], overlap, 0)
    needed = jnp.asarray(THRESHOLDS)[:, None]

    def take(free: Array, row: Array) -> tuple[Array, Array]:
        candidates = jnp.where(free & (row[None, :] >= needed), row[None, :], 0)  # (t, g)
        hit = candidates.max(axis=1) > 0
        chosen = jnp.arange(len(boxes))[None, :] == candidates.argmax(axis=1)[:, None]
        return free & ~(chosen & hit[:, None]), hit

    free = jnp.ones((len(THRESHOLDS), len(boxes)), bool)
    hit = jax.lax.scan(take, free, overlap)[1] & found.valid[:, None]
    of_crowd = found.classes[:, None] == FIRST_CROWD - classes[None, :]
    share = jnp.where(of_crowd, covered(found.boxes, boxes), 0).max(axis=1, initial=0)
    counts = found.valid[:, None] & (hit | (share[:, None] < needed.T))
    return hit, counts


def score_histograms(
    found: Detections, boxes: Float[Array, "b g 4"], classes: Int[Array, "b g"],
    mask: Float[Array, " b"], num_classes: int,
) -> Sums:  # fmt: skip
    """Counts detections and hits by class, score and threshold, as int32.

    `precision` is (hits, detections), each (classes, bins, thresholds), and `recall` is (hits,
    objects), each (classes, thresholds).
    """
    kept = mask[:, None] > 0
    hit, valid = (v & kept[..., None] for v in jax.vmap(hits)(found, boxes, classes))  # (b, k, t)
    logit = jnp.log(found.scores) - jnp.log1p(-found.scores)
    place = (logit / LARGEST_LOGIT + 1) / 2 * SCORE_BINS
    bins = jnp.clip(jnp.nan_to_num(place), 0, SCORE_BINS - 1).astype(jnp.int32)
    empty = jnp.zeros((num_classes, SCORE_BINS, len(THRESHOLDS)), jnp.int32)
    hit, valid = (empty.at[found.classes, bins].add(v.astype(jnp.int32)) for v in (hit, valid))
    counted = jnp.where(kept, classes, -1)
    objects = jax.nn.one_hot(counted, num_classes, dtype=jnp.int32).sum(axis=(0, 1))
    objects = jnp.broadcast_to(objects[:, None], (num_classes, len(THRESHOLDS)))
    return {"precision": (hit, valid), "recall": (hit.sum(axis=1), objects)}


def summarize(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """Turns summed metrics into numbers: the losses, `map` (COCO's) and `map50` (at IoU 0.5).

    Classes without objects take no part, so `classes_scored` do; without any both are NaN.
    """
    arrays = ("precision", "recall")
    found = contract.means({name: pair for name, pair in sums.items() if name not in arrays})
    if "precision" not in sums:
        return found
    each = precisions(sums).mean(axis=1)
    present = each[~np.isnan(each[:, 0])]
    whole = (present.mean(), present[:, 0].mean()) if len(present) else (np.nan, np.nan)
    scored = {"map": float(whole[0]), "map50": float(whole[1])}
    return found | scored | {"classes_scored": len(present)}


def by_class(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, np.ndarray]:
    """Returns of each class the objects, and COCO's AP and that at IoU 0.5: NaN without objects."""
    each = precisions(sums).mean(axis=1)
    objects = np.asarray(sums["recall"][1], np.int64)[:, 0]
    return {"objects": objects, "ap": each.mean(axis=1), "ap50": each[:, 0]}


def precisions(sums: Mapping[str, tuple[Any, Any]]) -> Float[np.ndarray, "c recalls t"]:
    """Returns the best precision at no less than each of 101 recalls, whose mean is COCO's AP.

    Of `score_histograms`, by class and threshold; where there are no objects, it is NaN.
    """
    hit, valid = (np.asarray(v, np.int64) for v in sums["precision"])
    objects = np.asarray(sums["recall"][1], np.int64)
    hit, valid = (np.cumsum(v[:, ::-1], axis=1) for v in (hit, valid))
    precision = hit / np.maximum(valid, 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    found = np.full((len(objects), len(RECALLS), len(THRESHOLDS)), np.nan)
    for c, t in np.argwhere(objects > 0):
        first = np.searchsorted(hit[c, :, t] / objects[c, t], RECALLS)
        found[c, :, t] = np.append(precision[c, :, t], 0)[first]
    return found


def _train_transform(config: Any, channels: int) -> Transform:
    size, train, most = config.data.resolution, config.data.train, config.detect.max_objects
    area = tuple(train.area)
    return detection_train(size, most, train.crop, area, train.flip, train.color, channels)


def _eval_transform(size: int, channels: int, options: Mapping[str, Any]) -> Transform:
    most = options.get("max_objects", MOST_OBJECTS)
    return detection_eval(size, most, options.get("crop", "none"), channels)


DETECT = TaskSpec(
    name="detect", noun="detector", title="MobileNetV2 + SSDLite", pipeline="object-detection",
    unlabeled=lambda *_: {"boxes": np.zeros((0, 4), np.float32), "classes": np.zeros(0, np.int32)},
    build=build_ssdlite, options=lambda config: {"heads": config.detect.heads},
    train_transform=_train_transform, eval_transform=_eval_transform,
    eval_options=lambda config: {
        "crop": config.data.eval.crop, "max_objects": config.detect.max_objects,
    },
    task=lambda config, model, image_shape, *_: detect(model, image_shape),
    scores=scores, decode=decode, show=_show, summarize=summarize, by_class=by_class, truth=_truth,
    seen=("classes", "boxes", 1), settings={"threshold": 0.3},
    metrics={"map": "mean AP over IoU 0.5 to 0.95", "map50": "mean AP at IoU 0.5"},
)  # fmt: skip
