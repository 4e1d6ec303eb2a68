"""Scenes: exact annotations, determinism and variety."""

import pickle

import numpy as np
import pytest

from mnv2_jax.lab.data import ArraySource, open_source, train_batches
from mnv2_jax.lab.data.scenes import Scenes

PINNED = {  # scene 0 at 32×32, boxes in pixels
    "classes": [6, 5, 7, 9, 6, 3],
    "boxes": [[7, 0, 18, 6], [4, 11, 18, 26], [17, 0, 28, 9], [11, 0, 31, 32], [3, 17, 12, 23],
              [17, 8, 29, 15]],
}  # fmt: skip


def make(split="train", **options):
    return Scenes(
        open_source("fashion_mnist_small", split), **{"length": 200, "size": (64, 80)} | options
    )


@pytest.fixture(scope="module")
def scenes():
    source = make()
    return [source.scene(i) for i in range(120)]


def test_a_scene_depends_on_seed_and_index_alone():
    one, other = make(), make(length=9)
    copy = pickle.loads(pickle.dumps(one))
    for i in (8, 3):
        for key, value in one[i].items():
            np.testing.assert_array_equal(value, other[i][key])
            np.testing.assert_array_equal(value, copy[i][key])
    assert (one[3]["image"] != make(seed=1)[3]["image"]).any()
    assert len({one.scene(i).image.tobytes() for i in range(20)}) == 20


def test_one_scene_is_as_it_was():
    """Pinned, so that a change of the drawing is noticed: results on scenes depend on it."""
    scene = make(size=(32, 32)).scene(0)
    assert scene.classes.tolist() == PINNED["classes"]
    assert scene.corners.tolist() == PINNED["boxes"]


@pytest.mark.slow
def test_records_have_the_shapes_that_are_promised(scenes):
    source = make(max_objects=5)
    assert len(source) == 200 and len(source.classes) == 10
    for i in range(30):
        record = source[i]
        assert record["image"].shape == (64, 80, 3) and record["image"].dtype == np.uint8
        assert record["boxes"].shape == (5, 4) and record["boxes"].dtype == np.float32
        assert record["label"].shape == (64, 80) and record["label"].dtype == np.uint8
        valid = record["classes"] >= 0
        n = valid.sum()
        assert 1 <= n <= 5 and valid[:n].all() and not record["boxes"][n:].any()
        boxes = record["boxes"][:n]
        assert (boxes[:, 2:] > boxes[:, :2]).all() and boxes.min() >= 0 and boxes.max() <= 1
        assert set(np.unique(record["label"])) == {0, *(record["classes"][:n] + 1)} or (
            0 not in record["label"]
        )


def test_boxes_are_those_of_the_pixels_that_are_seen(scenes):
    for scene in scenes:
        assert scene.instances.max() == len(scene.classes)
        for i, (top, left, bottom, right) in enumerate(scene.corners):
            mask = scene.instances == i + 1
            inside = mask[top:bottom, left:right]
            assert inside.sum() == mask.sum() >= 12
            assert inside[0].any() and inside[-1].any()
            assert inside[:, 0].any() and inside[:, -1].any()
            np.testing.assert_array_equal(scene.labels[mask], scene.classes[i] + 1)
        np.testing.assert_array_equal(scene.labels == 0, scene.instances == 0)


def test_scenes_vary(scenes):
    counts = np.bincount([len(scene.classes) for scene in scenes], minlength=9)
    assert (counts[1:7] > 0).all() and counts[0] == 0
    sizes = np.concatenate([np.diff(s.corners.reshape(-1, 2, 2), axis=1)[:, 0, 0] for s in scenes])
    assert sizes.min() <= 12 and sizes.max() >= 40
    assert len(set(np.concatenate([scene.classes for scene in scenes]))) == 10
    overlaps = border = 0
    for scene in scenes:
        boxes = scene.corners
        border += bool((boxes[:, :2] == 0).any())
        for i, a in enumerate(boxes):
            for b in boxes[i + 1 :]:
                low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
                overlaps += bool((high > low).all())
    assert overlaps > 50 and border > 20


def test_splits_show_different_items():
    """The items of training and test are disjoint, and so are their scenes."""
    train, test = make("train"), make("test")
    assert (train[0]["image"] != test[0]["image"]).any()


def test_scenes_go_through_the_pipeline():
    (batch,) = train_batches(make(size=(16, 24)), batch_size=6, seed=0, steps=1, threads=1)
    shapes = {name: value.shape for name, value in batch.items()}
    assert shapes == {
        "image": (6, 16, 24, 3), "boxes": (6, 8, 4), "classes": (6, 8), "label": (6, 16, 24),
        "mask": (6,), "id": (6,),
    }  # fmt: skip
    assert batch["label"].dtype == np.uint8 and batch["mask"].all()


@pytest.mark.parametrize("index", [-1, 200])
def test_there_is_no_scene_beyond_the_set(index):
    with pytest.raises(IndexError, match=f"scene {index} of 200"):
        make()[index]


@pytest.mark.slow
def test_items_of_any_content_can_be_placed():
    """Black pictures and single pixels are objects too, and the smallest canvas holds them."""
    images = np.zeros((3, 8, 8, 1), np.uint8)
    images[1, 4, 4], images[2] = 255, 255
    source = Scenes(
        ArraySource(images, np.arange(3), ("a", "b", "c")), 60, (8, 8), 20, scales=(0.5, 2.0)
    )
    found = [source.scene(i) for i in range(60)]
    assert {c for scene in found for c in scene.classes} == {0, 1, 2}
