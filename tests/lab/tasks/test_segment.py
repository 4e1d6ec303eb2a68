"""The segmentation task against numpy: loss, mean IoU, masks, multi-scale, a first training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnv2_jax import MobileNetV2
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.data.annotations import IGNORED
from mnv2_jax.lab.data.pipeline import train_batches
from mnv2_jax.lab.data.scenes import Scenes
from mnv2_jax.lab.tasks import segment as seg
from mnv2_jax.lab.tasks import task as contract
from mnv2_jax.lab.train.step import make_step, new_state
from mnv2_jax.models.deeplab import HEAD, DeepLabV3
from mnv2_jax.models.dialect import SLIM
from mnv2_jax.models.spec import Row, Spec

SPEC = Spec(stem=8, stem_stride=2, rows=(Row(2, 8, 1, 2),), last=None)
SHAPE, CLASSES = (16, 12, 3), 4


def network(num_classes=CLASSES, dropout=0.0):
    backbone = MobileNetV2(num_classes=None, spec=SPEC, dialect=SLIM._replace(bn_decay=0.9))
    return DeepLabV3(
        num_classes, backbone, channels=16, dropout=dropout, dialect=HEAD._replace(bn_decay=0.9)
    )


def rows(n=4, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, (n, *SHAPE[:2])).astype(np.int32)
    label[rng.random(label.shape) < 0.2] = 255
    return {
        "image": rng.integers(0, 256, (n, *SHAPE), np.uint8),
        "label": label,
        "mask": np.ones(n, np.float32),
        "row": np.arange(n, dtype=np.int32),
    }


@pytest.fixture(scope="module")
def variables(randomize):
    return randomize(network(), (1, *SHAPE))


@pytest.fixture(scope="module")
def task():
    task = seg.segment(network(), SHAPE)
    return task._replace(loss=jax.jit(task.loss), metrics=jax.jit(task.metrics))


def confusion(predicted, label, num_classes):
    found = np.zeros((num_classes, num_classes), np.int64)
    for p, t in zip(predicted.ravel(), label.ravel(), strict=True):
        if 0 <= t < num_classes:
            found[t, p] += 1
    return found


def miou(matrix):
    each = []
    for c in range(len(matrix)):
        union = matrix[c].sum() + matrix[:, c].sum() - matrix[c, c]
        if union:
            each.append(matrix[c, c] / union)
    return np.mean(each)


def evaluate(model, variables, images):
    pixels = images.astype(np.float32) / 127.5 - 1
    return np.asarray(jax.jit(model.apply)(variables, pixels))


@pytest.mark.slow
def test_metrics_against_a_confusion_matrix_in_numpy(task, variables):
    """Summed over batches of which the last is padded."""
    data = rows(7)
    total = None
    for start in (0, 4):
        index = (start + np.arange(4)) % 7
        batch = {name: v[index] for name, v in data.items()}
        batch["mask"] = (start + np.arange(4) < 7).astype(np.float32)
        sums = task.metrics(variables, batch)
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    logits = np.float64(evaluate(network(), variables, data["image"]))
    matrix = confusion(logits.argmax(-1), data["label"], CLASSES)
    np.testing.assert_array_equal(total["iou"][0], matrix.diagonal())
    np.testing.assert_array_equal(
        total["iou"][1], matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    )
    assert total["iou"][0].dtype == np.int32
    counted = data["label"] != 255
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    label = np.where(counted, data["label"], 0)
    losses = -np.log(np.take_along_axis(chances, label[..., None], -1)[..., 0])
    found = seg.summarize(total)
    assert found["miou"] == pytest.approx(miou(matrix))
    assert found["accuracy"] == pytest.approx(matrix.trace() / matrix.sum())
    assert found["loss"] == pytest.approx(losses[counted].mean(), rel=1e-4)


@pytest.mark.slow
def test_mean_iou_of_random_maps_against_numpy():
    rng = np.random.default_rng(0)
    count = jax.jit(seg.intersection_and_union, static_argnums=3)
    for classes in (2, 7):
        pairs = jax.jit(partial(seg.confusion, network(classes)))
        for _ in range(20):
            predicted = rng.integers(0, classes, (6, 7))
            label = rng.integers(0, classes + 2, (6, 7))
            label[rng.random((6, 7)) < 0.7] = 0
            pair = count(predicted, label, label < classes, classes)
            found = seg.summarize({"iou": pair})["miou"]
            matrix = confusion(predicted, label, classes)
            assert found == pytest.approx(miou(matrix))
            batch = {"label": label[None], "mask": np.ones(1)}
            sums = pairs(np.eye(classes)[predicted][None], batch)
            np.testing.assert_array_equal(sums["confusion"], matrix)
            each = seg.by_class(sums)
            assert np.nanmean(each["iou"]) == pytest.approx(found)
            np.testing.assert_allclose(each["share"], matrix.sum(1) / matrix.sum())


@pytest.mark.slow
@pytest.mark.oracle
def test_mean_iou_against_scikit_learns_confusion_matrix():
    """Over batches of several sizes, with ignored pixels, and a class that is nowhere."""
    confusion_matrix = pytest.importorskip("sklearn.metrics").confusion_matrix
    rng, classes = np.random.default_rng(5), 6
    label = rng.integers(0, classes - 1, (7, 9, 11))
    predicted = np.where(rng.random(label.shape) < 0.7, label, (label + 1) % (classes - 1))
    label[rng.random(label.shape) < 0.1] = IGNORED
    counted = label != IGNORED
    matrix = confusion_matrix(label[counted], predicted[counted], labels=range(classes))
    both, either = matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    expected = (both[either > 0] / either[either > 0]).mean()
    for cuts in ([], [1, 6], [3, 5]):
        total = 0
        for part in np.split(np.arange(7), cuts):
            kept = counted[part]
            pair = seg.intersection_and_union(
                jnp.asarray(predicted[part]),
                jnp.asarray(np.where(kept, label[part], 0)),
                jnp.asarray(kept),
                classes,
            )
            total = total + np.array(pair)
        np.testing.assert_allclose(seg.summarize({"iou": tuple(total)})["miou"], expected)


def test_classes_in_neither_take_no_part_and_nothing_at_all_is_nan():
    assert seg.summarize({"iou": (np.array([3, 0, 0]), np.array([4, 2, 0]))})["miou"] == 0.375
    assert np.isnan(seg.summarize({"iou": (np.zeros(2), np.zeros(2))})["miou"])


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [255, CLASSES, -1, 1000])
def test_labels_that_are_no_class_count_nowhere(task, variables, wrong):
    batch = rows()
    batch["label"] = np.where(batch["label"] == 255, wrong, batch["label"])
    expected = task.metrics(variables, rows())
    jax.tree.map(np.testing.assert_array_equal, task.metrics(variables, batch), expected)
    ours, theirs = (task.loss(variables, b, jax.random.key(0))[0] for b in (batch, rows()))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert float(ours["loss"][1]) == (rows()["label"] != 255).sum()


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_what_a_masked_row_holds_changes_nothing(task, variables):
    batch = rows(6)
    batch["mask"][[1, 4]] = 0
    other = {name: np.array(v) for name, v in batch.items()}
    other["image"] = other["image"].astype(np.float32)
    other["image"][1], other["image"][4] = np.nan, 1e30
    other["label"][[1, 4]] = 2

    @jax.jit
    def found(batch):
        def loss(params):
            sums, stats = task.loss({**variables, "params": params}, batch, jax.random.key(0))
            return sums["loss"][0], (sums, stats)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    batch["image"] = batch["image"].astype(np.float32)
    ours, theirs = found(batch), found(other)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    jax.tree.map(
        np.testing.assert_array_equal, task.metrics(variables, batch),
        task.metrics(variables, other),
    )  # fmt: skip


@pytest.mark.slow
def test_multi_scale_averages_probabilities(variables):
    model, images = network(), rows(2)["image"]

    def one(pixels):
        logits = np.asarray(jax.jit(model.apply)(variables, pixels))
        return np.asarray(jax.nn.softmax(seg.resize_aligned(jnp.asarray(logits), SHAPE[:2])))

    pixels = jnp.asarray(images.astype(np.float32) / 127.5 - 1)
    smaller = seg.resize_aligned(pixels, (8, 6))
    expected = (
        one(pixels) + one(pixels[:, :, ::-1])[:, :, ::-1]
        + one(smaller) + one(smaller[:, :, ::-1])[:, :, ::-1]
    ) / 4  # fmt: skip
    twice = contract.TestTimeAugmentation((1.0, 0.5), flip=True)
    found = np.exp(jax.jit(seg.average(model.apply, twice))(variables, pixels))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    plain = jax.jit(lambda v, x: seg.predict(model, v, x))(variables, images)
    np.testing.assert_array_equal(plain, evaluate(model, variables, images).argmax(-1))


@pytest.mark.slow
@pytest.mark.nightly
def test_training_on_scenes_lowers_the_loss(randomize):
    """Through the one step that every task is trained with."""
    items = open_source("fashion_mnist_small", "train")
    (batch,) = train_batches(
        Scenes(items, 8, (32, 32), max_objects=3), batch_size=8, seed=0, steps=1, threads=1
    )
    batch = {name: batch[name] for name in ("image", "label", "mask")}
    batch["row"] = np.arange(8, dtype=np.int32)
    task = seg.segment(network(len(items.classes) + 1, dropout=0.1), (32, 32, 3))
    optimizer = optax.adam(0.01)
    variables = randomize(network(len(items.classes) + 1), (1, 32, 32, 3))
    state = new_state(jax.tree.map(jnp.asarray, variables), optimizer, False)
    step = jax.jit(make_step(task, optimizer))
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch, jax.random.key(0))
        total, count = metrics["sums"]["loss"]
        losses.append(float(total / count))
    assert losses[-1] < 0.6 * losses[0] and int(state.skipped) == 0


def test_the_task_starts_from_the_networks_variables(task, variables):
    fresh = jax.eval_shape(task.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, variables)
    assert task.monitor == "miou"
