"""The detection task against numpy: SSD's loss, average precision, masks, a first training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnv2_jax import MobileNetV2
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.data.pipeline import train_batches
from mnv2_jax.lab.data.scenes import Scenes
from mnv2_jax.lab.tasks import detect as det
from mnv2_jax.lab.train.step import make_step, new_state
from mnv2_jax.models.boxes import Detections, match
from mnv2_jax.models.dialect import SLIM
from mnv2_jax.models.spec import Row, Spec
from mnv2_jax.models.ssdlite import SSDLite
from tests.models.test_boxes import BAD, overlap, random_boxes

SPEC = Spec(stem=8, stem_stride=2, rows=(Row(2, 8, 1, 2),), last=16)
SHAPE, CLASSES = (24, 16, 3), 3


image_losses = jax.jit(det.image_losses)
histograms = jax.jit(det.score_histograms, static_argnums=4)


def network():
    backbone = MobileNetV2(num_classes=None, spec=SPEC, dialect=SLIM._replace(bn_decay=0.9))
    return SSDLite(CLASSES, backbone, extras=())  # two maps, so that it compiles in seconds


def rows(n=4, seed=0):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, (n, 5)).astype(np.int32)
    classes[:, 3:] = -1
    boxes = random_boxes(rng, n, 5).clip(0, 1)
    boxes[:, 3:] = 0
    return {
        "image": rng.integers(0, 256, (n, *SHAPE), np.uint8),
        "boxes": boxes,
        "classes": classes,
        "mask": np.ones(n, np.float32),
        "row": np.arange(n, dtype=np.int32),
    }


@pytest.fixture(scope="module")
def variables(randomize):
    return randomize(network(), (1, *SHAPE))


@pytest.fixture(scope="module")
def task():
    task = det.detect(network(), SHAPE)
    return task._replace(loss=jax.jit(task.loss), metrics=jax.jit(task.metrics))


def losses_by_loops(codes, logits, boxes, classes, anchors):
    """One image, from the authors' configuration: every term written out."""
    box_loss, positives, negatives = 0.0, [], []
    matches = match(np.float32(boxes), np.float32(anchors))  # has its own test; ties are common
    for code, logit, anchor, g in zip(codes, logits, anchors, matches, strict=True):
        target = np.zeros(len(logit))
        target[0 if g < 0 else 1 + classes[g]] = 1
        p = 1 / (1 + np.exp(-logit))
        term = -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum()
        (negatives if g < 0 else positives).append(term)
        if g < 0:
            continue
        size = anchor[2:] - anchor[:2]
        shift = ((boxes[g, :2] + boxes[g, 2:]) - (anchor[:2] + anchor[2:])) / 2 / size * 10
        growth = np.log((boxes[g, 2:] - boxes[g, :2]) / size) * 5
        for error in np.abs(code - np.concatenate([shift, growth])):
            box_loss += 0.5 * error**2 if error < 1 else error - 0.5
    hardest = sorted(negatives)[::-1][: max(3, 3 * len(positives))]
    return box_loss, sum(positives) + sum(hardest), len(positives)


@pytest.mark.slow
@pytest.mark.parametrize("objects", [4, 1, 0])
def test_the_loss_of_an_image_against_loops(objects):
    rng = np.random.default_rng(objects)
    anchors = np.float64(network().anchors(SHAPE[:2]))
    for _ in range(4):
        boxes = random_boxes(rng, 4).clip(0, 1)
        boxes[objects:] = 0
        classes = rng.integers(0, CLASSES, 4).astype(np.int32)
        codes = rng.normal(0, 2, (len(anchors), 4)).astype(np.float32)
        logits = rng.normal(0, 2, (len(anchors), CLASSES + 1)).astype(np.float32)
        found = image_losses(codes, logits, boxes, classes, np.float32(anchors))
        expected = losses_by_loops(
            np.float64(codes), np.float64(logits), np.float64(boxes), classes, anchors
        )
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)
        assert (expected[2] > 0) == (objects > 0)


def test_hard_negatives_are_the_largest_three_for_each_positive():
    rng = np.random.default_rng(0)
    run = jax.jit(det.hard_negatives)
    for positives in (0, 1, 4, 30, 40):
        losses = rng.exponential(size=40).astype(np.float32)
        positive = np.zeros(40, bool)
        positive[rng.permutation(40)[:positives]] = True
        order = [i for i in np.argsort(-losses) if not positive[i]]
        expected = np.zeros(40, bool)
        expected[order[: max(3, 3 * positives)]] = True
        np.testing.assert_array_equal(run(losses, positive), expected)


@pytest.mark.slow
def test_the_batch_is_normalised_by_its_matches(task, variables):
    batch = rows()
    sums, _ = task.loss(variables, batch, jax.random.key(0))
    total, count = (float(v) for v in sums["loss"])
    assert total == pytest.approx(float(sums["box_loss"][0] + sums["class_loss"][0]), rel=1e-5)
    model = network()
    images = batch["image"].astype(np.float32) / 127.5 - 1
    (codes, logits), _ = jax.jit(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])
    )(variables, images)
    anchors = model.anchors(SHAPE[:2])
    each = np.sum(
        [image_losses(codes[i], logits[i], batch["boxes"][i], batch["classes"][i], anchors)
         for i in range(4)], axis=0,
    )  # fmt: skip
    np.testing.assert_allclose(total, each[0] + each[1], rtol=1e-4)
    assert count == each[2] >= 8  # three objects in each of four images


@pytest.mark.slow
def test_what_a_masked_row_holds_changes_nothing(task, variables):
    """Neither loss, gradient nor statistics, nor any metric."""
    batch = rows(6)
    batch["mask"][[1, 4]] = 0
    other = {name: np.array(v) for name, v in batch.items()}
    other["boxes"][1], other["classes"][4] = np.nan, 1
    other["image"][[1, 4]] = 255 - other["image"][[1, 4]]

    @jax.jit
    def found(batch):
        def loss(params):
            sums, stats = task.loss({**variables, "params": params}, batch, jax.random.key(0))
            return sums["loss"][0], (sums, stats)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    ours, theirs = found(batch), found(other)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    whole, changed = task.metrics(variables, batch), task.metrics(variables, other)
    jax.tree.map(np.testing.assert_array_equal, whole, changed)
    kept = {name: v[[0, 2, 3, 5, 0, 0]] for name, v in batch.items()}
    kept["mask"] = np.array([1, 1, 1, 1, 0, 0], np.float32)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole,
        task.metrics(variables, kept),
    )  # fmt: skip


@pytest.mark.slow
def test_bad_objects_count_nowhere(task, variables):
    batch = rows()
    sums = task.metrics(variables, batch)
    for box in BAD:
        batch["boxes"][:, 3], batch["classes"][:, 3] = box, 1
        batch["boxes"][:, 4], batch["classes"][:, 4] = [1.2, 0, 1.5, 1], 0  # outside
        jax.tree.map(np.testing.assert_array_equal, task.metrics(variables, batch), sums)
    batch["boxes"][:, 3:], batch["classes"][:, 3:] = [0, 0, 1, 1], [CLASSES, -1]
    jax.tree.map(np.testing.assert_array_equal, task.metrics(variables, batch), sums)
    assert sums["recall"][1][:, 0].sum() == 12


def random_detections(rng, boxes, classes, k):
    """Jittered copies of the objects and some noise, scores distinct by far more than a bin."""
    n = len(boxes)
    near = boxes[rng.integers(0, n, k)] + rng.normal(0, 0.04, (k, 4))
    found = np.where(rng.random((k, 1)) < 0.7, near, random_boxes(rng, k)).clip(0, 1)
    logits = np.sort(rng.permutation(np.linspace(-6, 6, 500))[:k])[::-1]
    return Detections(
        boxes=found.astype(np.float32),
        scores=(1 / (1 + np.exp(-logits))).astype(np.float32),
        classes=rng.integers(0, CLASSES, k).astype(np.int32),
        valid=np.arange(k) < k - 3,
    )


def hits_by_loops(found, boxes, classes, threshold):
    taken, result = set(), []
    for box, c, valid in zip(found.boxes, found.classes, found.valid, strict=True):
        best, value = None, 0.0
        for g, other in enumerate(boxes):
            match = overlap(box, other)
            if g not in taken and classes[g] == c and match >= threshold and match > value:
                best, value = g, match
        taken.add(best) if valid and best is not None else None
        result.append(bool(valid and best is not None))
    return result


def precision_by_loops(scored, objects):
    """COCO's average precision of one class, from (score, hit) pairs."""
    scored = sorted(scored, reverse=True)
    points, right = [], 0
    for i, (_, hit) in enumerate(scored, 1):
        right += hit
        points.append((right / objects, right / i))
    return np.mean(
        [max([p for r, p in points if r >= level], default=0) for level in np.linspace(0, 1, 101)]
    )


@pytest.mark.slow
def test_average_precision_against_loops():
    """Over batches that are cut differently, the last one padded: the same number."""
    rng = np.random.default_rng(0)
    images, k = 10, 12
    boxes = np.stack([random_boxes(rng, 4).clip(0, 1) for _ in range(images)])
    classes = rng.integers(0, 2, (images, 4)).astype(np.int32)  # none of the third class
    found = [random_detections(rng, b, c, k) for b, c in zip(boxes, classes, strict=True)]
    # Scores must differ between images too.
    found = [
        f._replace(scores=(f.scores * (1 - 0.001 * i)).astype(np.float32))
        for i, f in enumerate(found)
    ]

    def summed(size):
        total = None
        for start in range(0, images, size):
            index = (start + np.arange(size)) % images
            mask = (start + np.arange(size) < images).astype(np.float32)
            batch = jax.tree.map(lambda *v: np.stack(v), *[found[i] for i in index])
            sums = histograms(batch, boxes[index], classes[index], mask, CLASSES)
            total = sums if total is None else jax.tree.map(np.add, total, sums)
        return total

    sums = summed(4)
    jax.tree.map(np.testing.assert_array_equal, sums, summed(10))
    each = det.precisions(sums).mean(axis=1)
    for t, threshold in enumerate(det.THRESHOLDS):
        hit = [hits_by_loops(*args, threshold) for args in zip(found, boxes, classes, strict=True)]
        for c in range(2):
            scored = [
                (f.scores[i], h[i])
                for f, h in zip(found, hit, strict=True)
                for i in range(k)
                if f.valid[i] and f.classes[i] == c
            ]
            expected = precision_by_loops(scored, (classes == c).sum())
            np.testing.assert_allclose(each[c, t], expected, atol=0.01)
            assert sums["recall"][0][c, t] == sum(h for _, h in scored)
    assert np.isnan(each[2]).all() and 0.05 < each[0, 0] < 0.95
    summary = det.summarize(sums)
    assert summary["map"] == pytest.approx(each[:2].mean())
    assert summary["map50"] == pytest.approx(each[:2, 0].mean())


def test_detections_in_a_crowd_of_their_class_do_not_count():
    """Half of the first, all of the second and of the third lie in a crowd of class 1."""
    boxes = np.array([[[0, 0, 0.5, 0.5], [0.5, 0, 1, 1]]], np.float32)
    classes = np.array([[0, -2 - 1]], np.int32)
    guesses = [[0.4, 0, 0.6, 1], [0.6, 0.1, 0.7, 0.2], [0.6, 0.1, 0.7, 0.2], [0, 0, 0.5, 0.5]]
    found = Detections(
        np.float32([guesses]),
        np.float32([[0.9, 0.8, 0.7, 0.6]]),
        np.int32([[1, 1, 2, 0]]),
        np.ones((1, 4), bool),
    )
    sums = histograms(found, boxes, classes, np.ones(1, np.float32), CLASSES)
    hit, valid = (np.asarray(v).sum(axis=1) for v in sums["precision"])  # (c, t)
    for t, threshold in enumerate(det.THRESHOLDS):
        assert hit[:, t].tolist() == [1, 0, 0]
        assert valid[:, t].tolist() == [1, int(threshold > 0.5), 1]
    np.testing.assert_array_equal(sums["recall"][1][:, 0], [1, 0, 0])


def test_nothing_is_learned_from_a_crowd(task, variables):
    batch = rows()
    without, _ = task.loss(variables, batch, jax.random.key(0))
    batch["boxes"][:, 3], batch["classes"][:, 3] = [0.1, 0.1, 0.9, 0.9], -2 - 1
    within, _ = task.loss(variables, batch, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, within, without)


def test_perfect_detections_have_precision_one_and_none_have_zero():
    boxes = np.array([[[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]], np.float32)
    classes = np.array([[0, 2]], np.int32)
    perfect = Detections(boxes, np.array([[1.0, 0.9]], np.float32), classes, np.ones((1, 2), bool))
    for found, expected in (
        (perfect, 1.0),
        (perfect._replace(valid=np.zeros((1, 2), bool)), 0.0),
        (perfect._replace(classes=classes[:, ::-1]), 0.0),
    ):
        sums = histograms(found, boxes, classes, np.ones(1, np.float32), CLASSES)
        summary = det.summarize(sums)
        wanted = {"map": expected, "map50": expected, "classes_scored": 2}
        assert summary == pytest.approx(wanted)


def test_without_any_object_precision_is_nan():
    nothing = np.zeros((CLASSES, 9, 10), int)
    sums = {"precision": (nothing, nothing), "recall": (nothing[:, 0], nothing[:, 0])}
    found = det.summarize(sums)
    assert found.pop("classes_scored") == 0 and np.isnan(list(found.values())).all()


@pytest.mark.nightly
@pytest.mark.slow
def test_training_on_scenes_lowers_the_loss(variables):
    """Through the one step that every task is trained with."""
    items = open_source("fashion_mnist_small", "train")
    (batch,) = train_batches(
        Scenes(items, 8, SHAPE[:2], max_objects=3), batch_size=8, seed=0, steps=1, threads=1
    )
    batch["classes"] = np.where(batch["classes"] >= 0, batch["classes"] % CLASSES, -1)
    batch["row"] = batch.pop("id").astype(np.int32)
    task, optimizer = det.detect(network(), SHAPE), optax.adam(0.01)
    state = new_state(jax.tree.map(jnp.asarray, variables), optimizer, False)
    step = jax.jit(make_step(task, optimizer))
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch, jax.random.key(0))
        total, count = metrics["sums"]["loss"]
        losses.append(float(total / count))
    assert losses[-1] < 0.5 * losses[0] and int(state.skipped) == 0


@pytest.mark.slow
def test_predictions_of_pixels(variables):
    found = jax.jit(lambda v, x: det.predict(network(), v, x))(variables, rows(2)["image"])
    assert found.boxes.shape == (2, 100, 4) and found.valid.any()
    assert jnp.where(found.valid, found.classes, 0).max() < CLASSES


def test_the_task_starts_from_the_networks_variables(task, variables):
    fresh = jax.eval_shape(task.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, variables)
    assert task.monitor == "map"
