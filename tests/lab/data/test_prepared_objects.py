"""Sets with boxes that TensorFlow Datasets has prepared."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import BadRecord, open_source
from mnv2_jax.lab.data.scenes import Scenes
from tests.lab.data.prepared_sets import encoded, prepare

OBJECT = {
    "bbox": tfds.features.BBoxFeature(),
    "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
    "is_crowd": np.bool_,
}


def an_object(box, label, crowd=False):
    return {"bbox": tfds.features.BBox(*box), "label": label, "is_crowd": crowd}


def test_objects_come_back_with_crowds_marked(tmp_path):
    scenes = Scenes(open_source("fashion_mnist_small", "test"), 4, (24, 40), max_objects=3)
    objects = [
        [an_object((0.0, 0.25, 0.5, 1.0), 2), an_object((0.0, 0.0, 1.0, 1.0), 1, True)],
        [],
        [an_object((0.125, 0.5, 0.25, 0.75), 0), an_object((0.5, 0.5, 0.5, 0.75), 0)],
        [an_object((0.0, 0.0, 1.0, 0.5), 1)],
    ]
    records = [
        {"image": encoded(scenes[i]["image"]), "objects": found} for i, found in enumerate(objects)
    ]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "objects": tfds.features.Sequence(OBJECT),
    }
    prepare(tmp_path, "boxed", features, records)
    source = open_source("tfds:boxed", "train", str(tmp_path))
    assert source.classes == ("a", "b", "c") and len(source) == 4 and source.arrays() is None
    expected = {  # tfds shuffles what it writes, so images tell the records apart
        scenes[0]["image"].tobytes(): ([[0, 0.25, 0.5, 1], [0, 0, 1, 1]], [2, -3]),
        scenes[1]["image"].tobytes(): (np.zeros((0, 4)), []),
        scenes[2]["image"].tobytes(): ([[0.125, 0.5, 0.25, 0.75]], [0]),
        scenes[3]["image"].tobytes(): ([[0, 0, 1, 0.5]], [1]),
    }
    for i in range(4):
        record = source[i]
        boxes, classes = expected.pop(record["image"].tobytes())
        np.testing.assert_allclose(record["boxes"], boxes)
        assert record["classes"].tolist() == classes
    assert not expected
    source._records = [{"image": b"none", "objects": {"bbox": [], "label": []}}]
    with pytest.raises(BadRecord, match="record 0"):
        source[0]


def test_a_set_with_neither_labels_nor_boxes_is_refused(tmp_path):
    image = tfds.features.Image(shape=(None, None, 3))
    records = [{"image": encoded(np.zeros((4, 4, 3), np.uint8)), "caption": "x"}]
    prepare(tmp_path, "captioned", {"image": image, "caption": tfds.features.Text()}, records)
    with pytest.raises(UsageError, match="a label, objects with bbox and label, or a map") as error:
        open_source("tfds:captioned", "train", str(tmp_path))
    assert "\n" not in str(error.value)
