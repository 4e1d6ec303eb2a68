"""Boxes against loops in numpy on random cases."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax.models import boxes as bx
from mnv2_jax.models.anchors import ssd_anchors
from tests.weights.peers import torchvision_module

iou, match = jax.jit(bx.iou), jax.jit(bx.match)
BAD = [  # no box at all: zero area, crossed corners, NaN
    [0.2, 0.2, 0.2, 0.9], [0.0, 0.0, 0.0, 0.0], [0.6, 0.1, 0.3, 0.5], [0.6, 0.6, 0.3, 0.3],
    [np.nan] * 4, [0.1, 0.1, np.nan, 0.5],
]  # fmt: skip


def random_boxes(rng, *n):
    """Boxes of all sizes; a fifth of them reach over the border of the image."""
    center, size = rng.uniform(0, 1, (*n, 2)), rng.uniform(0.02, 0.7, (*n, 2))
    found = np.concatenate([center - size / 2, center + size / 2], axis=-1)
    inside = rng.random(n) < 0.8
    return np.where(inside[..., None], found.clip(0, 1), found).astype(np.float32)


def overlap(a, b):
    """IoU of two boxes, from the definition."""
    if not (a[2] > a[0] and a[3] > a[1] and b[2] > b[0] and b[3] > b[1]):
        return 0.0
    h, w = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if h <= 0 or w <= 0:
        return 0.0
    covered = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - h * w
    return h * w / covered


def test_iou_of_thousands_of_random_pairs():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 70), random_boxes(rng, 60)
    expected = [[overlap(np.float64(p), np.float64(q)) for q in b] for p in a]
    found = np.asarray(iou(a, b))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert 0.1 < (found > 0).mean() < 0.9
    np.testing.assert_allclose(jnp.diagonal(iou(a, a)), 1, rtol=1e-5)
    np.testing.assert_array_equal(found, np.asarray(iou(b, a)).T)


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_box_overlaps_nothing(bad):
    others = jnp.array([[0.0, 0.0, 1.0, 1.0], [0.1, 0.1, 0.7, 0.7], bad])
    np.testing.assert_array_equal(iou(jnp.array([bad]), others), [[0, 0, 0]])
    assert not bx.area(jnp.array(bad)) > 0


def matched_by_loops(objects, anchors, threshold):
    found = []
    for anchor in anchors:
        best, value = -1, -1.0
        for g, box in enumerate(objects):
            if overlap(box, anchor) > value:
                best, value = g, overlap(box, anchor)
        found.append(best if value >= threshold else -1)
    for g in reversed(range(len(objects))):  # the first object comes last, and wins
        values = [overlap(objects[g], anchor) for anchor in anchors]
        if max(values) > 0:
            found[int(np.argmax(values))] = g
    return found


def test_matching_against_loops():
    rng = np.random.default_rng(2)
    anchors = ssd_anchors([(4, 4), (2, 2), (1, 1)])
    several = 0
    for _ in range(80):
        objects = random_boxes(rng, 6)
        objects[rng.integers(1, 7) :] = 0
        if rng.random() < 0.3:
            objects[rng.integers(6)] = BAD[rng.integers(len(BAD))]
        expected = matched_by_loops(objects, anchors, 0.5)
        np.testing.assert_array_equal(match(objects, anchors), expected)
        several += len(set(expected)) > 3
    assert several > 15


@pytest.mark.slow
def test_every_object_has_an_anchor_and_the_first_of_two_wins():
    anchors = jnp.array([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    tiny = [0.1, 0.1, 0.12, 0.12]  # IoU far below the threshold
    np.testing.assert_array_equal(match(jnp.array([tiny]), anchors), [0, -1])
    twice = jnp.array([[0.1, 0.1, 0.2, 0.2], [0.0, 0.0, 0.3, 0.3]])
    np.testing.assert_array_equal(bx.match(twice, anchors), [0, -1])


def test_an_image_without_objects_is_all_background():
    anchors = ssd_anchors([(3, 3), (1, 1)])
    for objects in (np.zeros((6, 4)), np.array(BAD)):
        np.testing.assert_array_equal(match(jnp.asarray(objects), anchors), -1)


def suppressed_by_loops(boxes, scores, threshold, floor, per_class, total):
    """Class by class, as the authors do it, then the best of all."""
    boxes = np.clip(boxes, 0, 1)
    kept = []
    for c in range(scores.shape[1]):
        chosen = []
        for i in np.argsort(-scores[:, c], kind="stable"):
            box = boxes[i]
            real = (box[2] - box[0]) * (box[3] - box[1]) > 0
            if not (scores[i, c] > floor and real) or len(chosen) == per_class:
                continue
            if all(overlap(box, boxes[j]) <= threshold for j in chosen):
                chosen.append(i)
        kept += [(-scores[i, c], c, i) for i in chosen]
    return [(i, c) for _, c, i in sorted(kept)][:total]


@pytest.mark.slow
@pytest.mark.parametrize(("per_class", "total"), [(100, 100), (100, 10), (3, 20)])
def test_suppression_against_loops(per_class, total):
    rng = np.random.default_rng(3)
    run = jax.jit(
        lambda b, s: bx.non_maximum_suppression(b, s, 0.5, 0.1, per_class=per_class, total=total)
    )
    lengths = []
    for _ in range(12):
        boxes = random_boxes(rng, 30)
        boxes[15:] = boxes[:15] + rng.normal(0, 0.03, (15, 4))  # near copies
        boxes[rng.integers(30)] = [1.2, 0.0, 1.5, 0.3]  # outside
        scores = rng.uniform(0, 1, (30, 3)).astype(np.float32)
        expected = suppressed_by_loops(boxes, scores, 0.5, 0.1, per_class, total)
        found = run(boxes, scores)
        n = int(found.valid.sum())
        assert n == len(expected) and found.valid[:n].all()
        rows, classes = np.array(expected).T
        np.testing.assert_array_equal(found.classes[:n], classes)
        np.testing.assert_array_equal(found.scores[:n], scores[rows, classes])
        np.testing.assert_allclose(found.boxes[:n], boxes[rows].clip(0, 1))
        for field, empty in ((found.classes, -1), (found.scores, 0), (found.boxes, 0)):
            np.testing.assert_array_equal(field[n:], empty)
        lengths.append(n)
    assert min(lengths) >= 9 and (total < 100 or max(lengths) > 30)


def test_the_threshold_itself_is_not_suppressed():
    boxes = jnp.array([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]])  # IoU exactly 0.5
    scores = jnp.array([[0.9], [0.8]])
    run = jax.jit(lambda threshold: bx.non_maximum_suppression(boxes, scores, threshold, total=4))
    for threshold, kept in ((0.5, 2), (0.49, 1)):
        found = run(threshold)
        assert int(found.valid.sum()) == kept


@pytest.mark.slow
def test_nan_is_never_detected():
    boxes = jnp.array([*BAD, [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    scores = jnp.full((len(boxes), 2), 0.9).at[-1].set(jnp.nan)
    found = jax.jit(partial(bx.non_maximum_suppression, total=8))(boxes, scores)
    assert int(found.valid.sum()) == 2  # one good box in each of two classes
    assert all(np.isfinite(field).all() for field in found)


@pytest.mark.slow
def test_detections_of_a_batch():
    rng = np.random.default_rng(4)
    anchors = ssd_anchors([(3, 3), (2, 2)])
    codes = rng.normal(0, 1, (2, len(anchors), 4)).astype(np.float32)
    logits = rng.normal(0, 3, (2, len(anchors), 4)).astype(np.float32)
    logits[:, :, 0] = 50  # the background slot is never a detection
    found = jax.jit(bx.detections)(codes, logits, anchors)
    assert found.boxes.shape == (2, 100, 4) and set(np.unique(found.classes)) <= {-1, 0, 1, 2}
    best = 1 / (1 + np.exp(-logits[..., 1:].max((1, 2))))
    np.testing.assert_allclose(found.scores[:, 0], best, rtol=1e-5)
    assert (np.diff(found.scores, axis=1) <= 0).all()


# ---- other implementations


def as_torch(boxes):
    """Corners as torchvision has them: left, top, right, bottom."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(boxes[..., [1, 0, 3, 2]]))


@pytest.mark.oracle
def test_iou_against_torchvision():
    torchvision_module()
    from torchvision.ops import box_iou

    rng = np.random.default_rng(5)
    a, b = random_boxes(rng, 500), random_boxes(rng, 3000)
    expected = box_iou(as_torch(a), as_torch(b)).numpy()
    np.testing.assert_allclose(iou(a, b), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.oracle
def test_matching_against_torchvision():
    """Where two objects have one best anchor, torchvision gives it to the last: left out here."""
    torchvision_module()
    from torchvision.models.detection._utils import SSDMatcher
    from torchvision.ops import box_iou

    rng, compared = np.random.default_rng(6), 0
    anchors = ssd_anchors([(10, 10), (5, 5), (3, 3), (1, 1)])
    for _ in range(300):
        objects = random_boxes(rng, 6)
        overlaps = box_iou(as_torch(objects), as_torch(anchors))
        if len(set(overlaps.argmax(dim=1).tolist())) < len(objects):
            continue
        expected = SSDMatcher(0.5)(overlaps).numpy()
        np.testing.assert_array_equal(match(objects, anchors), np.maximum(expected, -1))
        compared += 1
    assert compared > 100


@pytest.mark.slow
@pytest.mark.oracle
def test_suppression_against_onnx_runtime():
    """Its operator is greedy class by class; the best of all classes are compared."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    inputs = {"boxes": ["n", "a", 4], "scores": ["n", "c", "a"]}
    node = onnx.helper.make_node(
        "NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["kept"]
    )
    constants = {"most": np.array([100]), "overlap": np.float32([0.5]), "least": np.float32([0.0])}
    graph = onnx.helper.make_graph(
        [node],
        "suppression",
        [onnx.helper.make_tensor_value_info(n, 1, shape) for n, shape in inputs.items()],
        [onnx.helper.make_tensor_value_info("kept", 7, ["k", 3])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 11)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())

    rng = np.random.default_rng(7)
    run = jax.jit(lambda b, s: bx.non_maximum_suppression(b, s, 0.5, 0.0, total=60))
    for _ in range(100):
        boxes = random_boxes(rng, 100).clip(0, 1)
        boxes[50:] = (boxes[:50] + rng.normal(0, 0.03, (50, 4)).astype(np.float32)).clip(0, 1)
        boxes = boxes[np.asarray(bx.area(boxes)) > 1e-4]
        scores = rng.uniform(0.01, 1, (len(boxes), 4)).astype(np.float32)
        (kept,) = session.run(None, {"boxes": boxes[None], "scores": scores.T[None]})
        classes, anchors = kept[:, 1], kept[:, 2]
        best = np.argsort(-scores[anchors, classes], kind="stable")[:60]
        found = run(boxes, scores)
        np.testing.assert_array_equal(found.scores[: len(best)], scores[anchors, classes][best])
        np.testing.assert_array_equal(found.classes[: len(best)], classes[best])
        np.testing.assert_array_equal(found.boxes[: len(best)], boxes[anchors[best]])
        assert int(found.valid.sum()) == len(best) == 60
