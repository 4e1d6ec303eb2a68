"""The classification task against numpy: targets, losses, accuracy, masks and distillation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import DIALECTS, MobileNetV2, UsageError, normalize
from mnv2_jax.lab.tasks.classify import Teacher, classify
from tests.lab.train.setting import SPEC, batch


def network(**options):
    options = {"num_classes": 3, "spec": SPEC, "in_channels": 1, "dropout": 0.0} | options
    return MobileNetV2(**options)


SHAPE = (6, 6, 1)


@pytest.fixture(scope="module")
def variables(randomize):
    return randomize(network(), (1, *SHAPE))


def softmax(logits):
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def cross_entropy(logits, targets):
    return -(targets * np.log(softmax(np.float64(logits)))).sum(1)


def training_logits(model, variables, rows):
    images = normalize(jnp.asarray(rows["image"]), model.dialect)
    logits, _ = model.apply(
        variables, images, train=True, mask=rows["mask"], mutable=["batch_stats"]
    )
    return np.asarray(logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("smoothing", "weights"),
    [pytest.param(0.0, (), marks=pytest.mark.nightly), (0.1, (0.5, 1.0, 3.0))],
)
def test_the_loss_is_cross_entropy_with_smoothed_targets(variables, smoothing, weights):
    """Weights of classes are factors of their terms, as `torch.nn.CrossEntropyLoss` has them."""
    model, rows = network(), batch(16, masked=(3, 8))
    task = classify(model, SHAPE, label_smoothing=smoothing, class_weights=weights)
    sums, _ = jax.jit(task.loss)(variables, rows, jax.random.key(0))
    logits, kept = training_logits(model, variables, rows), rows["mask"] > 0
    targets = np.full((16, 3), smoothing / 3)
    targets[np.arange(16), rows["label"]] += 1 - smoothing
    np.testing.assert_allclose(targets.sum(1), 1)
    expected = cross_entropy(logits, targets * np.array(weights or 1))[kept].sum()
    np.testing.assert_allclose(sums["loss"], (expected, 14), rtol=1e-5)
    hits = (logits.argmax(1) == rows["label"])[kept].sum()
    np.testing.assert_allclose(sums["accuracy"], (hits, 14))


def test_every_class_has_a_weight_or_none():
    with pytest.raises(UsageError, match=r"class_weights has 2 numbers and the data 3 classes"):
        classify(network(), SHAPE, class_weights=(1.0, 2.0))


def constant_logits(logits):
    """A task whose network answers with given logits, whatever it sees."""

    class Constant(MobileNetV2):
        def apply(self, *_, mutable=(), **__):
            return (jnp.asarray(logits), {"batch_stats": {}}) if mutable else jnp.asarray(logits)

    return classify(Constant(num_classes=len(logits[0]), spec=SPEC, in_channels=1), SHAPE)


def rows_labelled(labels, mask=None):
    n = len(labels)
    return {
        "image": np.zeros((n, *SHAPE), np.uint8),
        "label": np.array(labels, np.int32),
        "mask": np.ones(n, np.float32) if mask is None else np.array(mask, np.float32),
        "row": np.arange(n, dtype=np.int32),
    }


@pytest.mark.slow
def test_accuracy_counts_ties_against_the_label():
    logits = np.zeros((4, 7), np.float32)
    logits[0, 2] = 1  # alone at the top
    logits[1, [2, 3]] = 1  # tied at the top
    logits[2, [0, 1, 3, 4]] = 1  # 2 is tied for the fifth place with two others
    logits[3, [0, 1, 3, 4]], logits[3, 2] = 1, 0.5  # fifth
    sums = constant_logits(logits).metrics({}, rows_labelled([2, 2, 2, 2]))
    assert (float(sums["accuracy"][0]), float(sums["accuracy"][1])) == (1, 4)
    assert float(sums["top5"][0]) == 3


@pytest.mark.slow
def test_random_logits_rank_as_sorting_does():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 9)).astype(np.float32), rng.integers(0, 9, 200)
    sums = constant_logits(logits).metrics({}, rows_labelled(labels))
    order = np.argsort(-logits, axis=1)
    for name, k in (("accuracy", 1), ("top5", 5)):
        expected = (order[:, :k] == labels[:, None]).any(1).sum()
        assert float(sums[name][0]) == expected
    np.testing.assert_allclose(
        sums["loss"][0], cross_entropy(logits, np.eye(9)[labels]).sum(), rtol=1e-5
    )


@pytest.mark.slow
def test_a_network_that_answers_nan_is_never_right():
    logits = np.full((3, 7), np.nan, np.float32)
    logits[1, 2] = 1.0  # even where the label's own logit is finite
    sums = constant_logits(logits).metrics({}, rows_labelled([2, 2, 2]))
    assert float(sums["accuracy"][0]) == float(sums["top5"][0]) == 0


@pytest.mark.slow
def test_five_classes_have_no_top_5():
    assert set(constant_logits(np.zeros((2, 5))).metrics({}, rows_labelled([0, 1]))) == {
        "loss", "accuracy"
    }  # fmt: skip


@pytest.mark.slow
def test_masked_rows_of_evaluation_count_nowhere(variables):
    task = classify(network(), SHAPE)
    rows = batch(8)
    padded = {name: np.concatenate([v, v[:3]]) for name, v in rows.items()}
    padded["mask"][8:] = 0
    metrics = jax.jit(task.metrics)
    for name, pair in metrics(variables, padded).items():
        np.testing.assert_allclose(pair, metrics(variables, rows)[name], rtol=1e-6)
        assert float(pair[1]) == 8


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"mixup": 0.5}, marks=pytest.mark.nightly),
        pytest.param({"cutmix": 1.0}, marks=pytest.mark.nightly),
        pytest.param({"mixup": 0.5, "cutmix": 1.0}, marks=pytest.mark.nightly),
    ],
)
def test_what_a_masked_row_holds_changes_nothing(variables, options):
    """Not the loss, the gradient nor the statistics: also not if it holds NaN."""
    task = classify(network(), SHAPE, **options)
    rows = batch(8, masked=(1, 6))
    other = {name: np.array(v) for name, v in rows.items()}
    other["image"] = other["image"].astype(np.float32)
    other["image"][1], other["image"][6] = np.nan, 1e30
    other["label"][[1, 6]] = 2

    @jax.jit
    def found(rows):
        def loss(params):
            sums, stats = task.loss({**variables, "params": params}, rows, jax.random.key(1))
            return sums["loss"][0], (sums, stats)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    rows["image"] = rows["image"].astype(np.float32)
    ours, expected = found(other), found(rows)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.slow
def test_distillation_against_numpy(variables, randomize):
    """Hinton et al. (2015), Sec. 2: the term of the soft targets is scaled by T squared."""
    model, weight, t = network(), 0.3, 2.5
    older = randomize(network(), (1, *SHAPE), seed=7)
    teacher = Teacher(lambda images: model.apply(older, images), weight, t)
    rows = batch(16, masked=(2,))
    sums, _ = jax.jit(classify(model, SHAPE, teacher=teacher).loss)(
        variables, rows, jax.random.key(0)
    )
    logits = training_logits(model, variables, rows)
    theirs = model.apply(older, normalize(jnp.asarray(rows["image"]), model.dialect))
    hard = cross_entropy(logits, np.eye(3)[rows["label"]])
    soft = cross_entropy(logits / t, softmax(np.asarray(theirs) / t)) * t**2
    expected = ((1 - weight) * hard + weight * soft)[rows["mask"] > 0].sum()
    np.testing.assert_allclose(sums["loss"][0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("dialect", "level"), [("slim", 200 / 127.5 - 1), ("torchvision", (200 / 255 - 0.449) / 0.226)]
)
def test_images_are_scaled_as_the_dialect_says(monkeypatch, dialect, level):
    seen = []

    def apply(self, variables, images, **options):
        seen.append(np.asarray(images))
        return jnp.zeros((len(images), 3))

    task = classify(network(dialect=DIALECTS[dialect]), SHAPE)
    monkeypatch.setattr(MobileNetV2, "apply", apply)
    task.metrics({}, rows_labelled([0, 1]) | {"image": np.full((2, *SHAPE), 200, np.uint8)})
    np.testing.assert_allclose(seen[0], level, rtol=1e-5)


@pytest.mark.slow
def test_dropout_draws_anew_for_every_step_and_every_device(variables):
    task = classify(network(dropout=0.5), SHAPE)
    rows, loss = batch(8), jax.jit(task.loss)
    first = loss(variables, rows, jax.random.key(0))[0]["loss"][0]
    assert float(loss(variables, rows, jax.random.key(0))[0]["loss"][0]) == float(first)
    assert float(loss(variables, rows, jax.random.key(1))[0]["loss"][0]) != float(first)
    elsewhere = rows | {"row": rows["row"] + 8}
    assert float(loss(variables, elsewhere, jax.random.key(0))[0]["loss"][0]) != float(first)
