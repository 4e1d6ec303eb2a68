"""Mean average precision against the evaluation code of COCO itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax.lab.tasks.detect import by_class, precisions, score_histograms, summarize
from mnv2_jax.models.boxes import Detections

pytestmark = pytest.mark.oracle
CLASSES, OBJECTS, FOUND, PIXELS = 4, 6, 20, 200
CROWDS = 2  # at most, in an image


def scene_of_guesses(rng):
    """Objects, and detections most of which are near one of them, some of the right class."""
    corner, size = rng.uniform(0, 0.6, (OBJECTS, 2)), rng.uniform(0.1, 0.4, (OBJECTS, 2))
    boxes = np.concatenate([corner, corner + size], 1).clip(0, 1)
    classes = rng.integers(0, CLASSES, OBJECTS)
    of = rng.integers(0, OBJECTS, FOUND)
    noise = rng.normal(0, 0.03, (FOUND, 4)) * rng.integers(0, 3, (FOUND, 1))
    guesses = (boxes[of] + noise).clip(0, 1)
    guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2] + 0.02)
    right = rng.random(FOUND) < 0.8
    found = np.where(right, classes[of], rng.integers(0, CLASSES, FOUND))
    return boxes, classes, guesses, found


def coco_says(truth, guesses, images):
    """COCO's own mAP and AP at IoU 0.5, and precisions by threshold, recall and class."""
    coco_module = pytest.importorskip("pycocotools.coco")
    evaluation_module = pytest.importorskip("pycocotools.cocoeval")
    coco = coco_module.COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": i, "height": PIXELS, "width": PIXELS} for i in range(images)],
        "categories": [{"id": c + 1, "name": str(c)} for c in range(CLASSES)],
        "annotations": truth,
    }
    coco.createIndex()
    evaluation = evaluation_module.COCOeval(coco, coco.loadRes(guesses), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:2], evaluation.eval["precision"][..., 0, -1]


def as_coco(boxes):
    top, left, bottom, right = (np.float32(boxes) * PIXELS).T.astype(float)
    return np.stack([left, top, right - left, bottom - top], 1).tolist()


def crowds_of(rng, boxes, classes):
    """None to two large boxes, most of a class that is there."""
    count = int(rng.integers(0, CROWDS + 1))
    corner = rng.uniform(0, 0.4, (count, 2))
    crowds = np.concatenate([corner, corner + rng.uniform(0.3, 0.6, (count, 2))], 1)
    return crowds, rng.choice(classes, count)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_map_is_cocos_with_crowds(seed, capsys):
    """Detections in a crowd count neither way; to leave crowds out changes the figure."""
    ours, theirs, dropped = compare(seed, capsys, crowds=True)
    np.testing.assert_allclose([ours["map"], ours["map50"]], theirs, atol=1e-6)
    assert 0.2 < theirs[0] < theirs[1] < 0.95
    assert abs(dropped["map"] - theirs[0]) > 0.005


@pytest.mark.parametrize("seed", range(4))
def test_map_is_cocos(seed, capsys):
    """To the last digit, for every detection has a bin of scores to itself."""
    ours, theirs, dropped = compare(seed, capsys, crowds=False)
    assert dropped == ours
    np.testing.assert_allclose([ours["map"], ours["map50"]], theirs, atol=1e-6)
    assert 0.2 < theirs[0] < theirs[1] < 0.95


def compare(seed, capsys, crowds):
    """Our figures, COCO's, and ours without the crowds, on the same detections."""
    rng, images = np.random.default_rng(seed), 12
    logits = rng.permutation(np.linspace(-9, 9, images * FOUND)).reshape(images, FOUND)
    scores = 1 / (1 + np.exp(-logits))
    truth, guesses, batch = [], [], []
    for i in range(images):
        boxes, classes, near, found = scene_of_guesses(rng)
        order = np.argsort(-scores[i])
        near, found, score = near[order], found[order], scores[i][order]
        for box, c in zip(as_coco(boxes), classes.tolist(), strict=True):
            area, number = box[2] * box[3], len(truth) + 1
            truth.append({"id": number, "image_id": i, "category_id": c + 1, "bbox": box,
                          "area": area, "iscrowd": 0})  # fmt: skip
        for box, c, s in zip(as_coco(near), found.tolist(), score.tolist(), strict=True):
            guesses.append({"image_id": i, "category_id": c + 1, "bbox": box, "score": s})
        around, of = crowds_of(rng, boxes, classes) if crowds else (boxes[:0], classes[:0])
        for box, c in zip(as_coco(around), of.tolist(), strict=True):
            truth.append({"id": len(truth) + 1, "image_id": i, "category_id": c + 1, "bbox": box,
                          "area": box[2] * box[3], "iscrowd": 1})  # fmt: skip
        missing = CROWDS - len(of)
        boxes = np.concatenate([boxes, around, np.zeros((missing, 4))])
        classes = np.concatenate([classes, -2 - of, np.full(missing, -1)])
        batch.append((boxes, classes, near, found, score))
    boxes, classes, near, found, score = (np.stack(v) for v in zip(*batch, strict=True))
    detections = Detections(
        jnp.float32(near), jnp.float32(score), jnp.int32(found), jnp.ones(found.shape, bool)
    )
    histograms = jax.jit(score_histograms, static_argnums=4)
    sums, without = (
        jax.device_get(
            histograms(detections, jnp.float32(boxes), jnp.int32(labels), jnp.ones(images), CLASSES)
        )
        for labels in (classes, np.maximum(classes, -1))
    )
    theirs, curves = coco_says(truth, guesses, images)
    capsys.readouterr()  # it prints a table
    np.testing.assert_allclose(precisions(sums), curves.transpose(2, 1, 0), atol=1e-6)
    each = by_class(sums)
    np.testing.assert_allclose(each["ap"], curves.mean(axis=(0, 1)), atol=1e-6)
    np.testing.assert_allclose(each["ap50"], curves[0].mean(axis=0), atol=1e-6)
    real = [a["category_id"] - 1 for a in truth if not a["iscrowd"]]
    np.testing.assert_array_equal(each["objects"], np.bincount(real, minlength=CLASSES))
    return summarize(sums), theirs, summarize(without)
