"""Data: named sources of labelled images and the batches made of them, in numpy only.

- `sources.open_source`: a data set by name, with random access to its records;
- `prepared.prepare`: makes a set that TensorFlow Datasets can read, without TensorFlow if it can;
- `transforms.train_transform`, `transforms.eval_transform`: names and numbers to one function;
- `image`, `augment`: those transforms, one by one;
- `pipeline.train_batches`, `pipeline.eval_batches`: batches for one host;
- `order.batch_ids`: which examples a training step sees, a pure function of (seed, step).
"""

from mnv2_jax.lab.data.pipeline import eval_batches, train_batches
from mnv2_jax.lab.data.readers.prepared import prepare
from mnv2_jax.lab.data.record import BadRecord
from mnv2_jax.lab.data.shuffle import batch_ids, example_ids, record_rng
from mnv2_jax.lab.data.sources import ArraySource, Source, open_source
from mnv2_jax.lab.data.transforms import eval_transform, train_transform

__all__ = [
    "ArraySource",
    "BadRecord",
    "Source",
    "batch_ids",
    "eval_batches",
    "eval_transform",
    "example_ids",
    "open_source",
    "prepare",
    "record_rng",
    "train_batches",
    "train_transform",
]
