"""Data: named sources of labelled images and the batches made of them, in numpy only.

- `catalog.open_source`: a data set by name, with random access to its records (`source`);
- `preparation.prepare`: makes a set that `open_source` reads as `tfds:NAME`;
- `transforms`: names and numbers to one function of a record, for each task;
- `pipeline.train_batches`, `pipeline.eval_batches`: batches for one host;
- `shuffle.batch_ids`: which examples a training step sees, a pure function of (seed, step).
"""

from mnv2_jax.lab.data.catalog import open_source
from mnv2_jax.lab.data.fingerprints import fingerprint
from mnv2_jax.lab.data.pipeline import eval_batches, first_record, train_batches
from mnv2_jax.lab.data.preparation import prepare
from mnv2_jax.lab.data.shuffle import batch_ids, example_ids, record_rng
from mnv2_jax.lab.data.source import ArraySource, BadRecord, Source, Transform, summary
from mnv2_jax.lab.data.transforms import (
    detection_eval,
    detection_train,
    eval_transform,
    segmentation_eval,
    segmentation_train,
    train_transform,
)

__all__ = [
    "ArraySource", "BadRecord", "Source", "Transform", "batch_ids", "detection_eval",
    "detection_train", "eval_batches", "eval_transform", "example_ids", "fingerprint",
    "first_record", "open_source", "prepare", "record_rng", "segmentation_eval",
    "segmentation_train", "summary", "train_batches", "train_transform",
]  # fmt: skip
