"""From a data source to what a step consumes: sets on the device, or batches streamed to it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mnv2_jax.lab.data import (
    Source,
    Transform,
    batch_ids,
    eval_batches,
    first_record,
    train_batches,
    train_transform,
)
from mnv2_jax.lab.tasks.augment import Augmentation, random_flip, random_shift
from mnv2_jax.lab.tasks.task import Batch, TaskSpec

Rows = dict[str, np.ndarray]
# Settings of the training transform that are also made on the device.
DEVICE_CROPS = ("pad", "none")
HOST_ONLY = {"color": 0.0, "policy": "none", "erasing": 0.0}


class Feed(NamedTuple):
    """One split of a data set, ready for a step.

    Attributes:
      resident: () -> arrays that every device holds; {} for a streamed set.
      batches: (seeds, first step) -> this host's rows of every batch from there on. Several seeds
        are stacked, each in its own order.
      fetch: (resident, rows) -> batch, on the device.
      augmentations: what is left for the device to do to a training image.
    """

    resident: Callable[[], dict[str, np.ndarray]]
    batches: Callable[[tuple[int, ...], int], Iterator[Rows]]
    fetch: Callable[[dict[str, Array], Batch], Batch]
    augmentations: tuple[Augmentation, ...] = ()


def lives_on_device(spec: TaskSpec, config: Any, source: Source) -> bool:
    """Whether a set fits the device and its augmentation can be done there."""
    transform = config.data.train
    possible = transform.crop in DEVICE_CROPS and all(
        transform[key] == off for key, off in HOST_ONLY.items()
    )
    # Boxes and label maps move with their images, which is done on the host.
    possible = possible and not any(spec.fields.values())
    return config.data.on_device and possible and source.arrays() is not None


def image_channels(spec: TaskSpec, source: Source, name: str) -> int:
    """The channels of a set's images, from the first record that can be read.

    Raises:
      UsageError: there is none, or it lacks what the task learns from.
    """
    record = first_record(source)
    spec.check_record(record, name)
    return np.shape(record["image"])[-1]


def train_feed(spec: TaskSpec, config: Any, source: Source, channels: int) -> Feed:
    """Opens a training set."""
    shard = jax.process_index(), jax.process_count()
    size = config.data.resolution
    transform = spec.train_transform(config, channels)  # checks its options in any case
    if not lives_on_device(spec, config, source):
        stream = _stream_train(spec, config, source, transform, shard)
        return Feed(dict, stream, lambda _, rows: rows)
    resize = train_transform(size, crop="none", flip=0.0, channels=channels)
    n, size = len(source), config.batch_size

    def batches(seeds: tuple[int, ...], start: int) -> Iterator[Rows]:
        local = size // shard[1]
        mine = slice(shard[0] * local, (shard[0] + 1) * local)
        step = start
        while True:
            ids = np.stack([batch_ids(n, size, seed, step)[mine] for seed in seeds])
            rows = np.broadcast_to(np.arange(size)[mine], ids.shape)
            both = {"id": ids.astype(np.int32), "row": rows.astype(np.int32)}
            yield both if len(seeds) > 1 else {name: v[0] for name, v in both.items()}
            step += 1

    train = config.data.train
    augmentations = (
        *((random_shift(train.pad),) if train.crop == "pad" else ()),
        *((random_flip(train.flip),) if train.flip else ()),
    )
    return Feed(partial(_resident, source, resize), batches, _gather, augmentations)


def eval_feed(
    spec: TaskSpec, config: Any, source: Source, on_device: bool, channels: int, devices: int
) -> Feed:
    """Opens an evaluation set: every example once, the last batch padded with masked rows.

    Args:
      spec: the task.
      config: of the run; its `eval_batch_size` is rounded up to a multiple of `devices`.
      source: of the examples.
      on_device: whether the set may live on the device.
      channels: of the images.
      devices: that a batch is spread over.
    """
    index, hosts = jax.process_index(), jax.process_count()
    size = -(-config.eval_batch_size // devices) * devices
    options = spec.eval_options(config)
    transform = spec.eval_transform(config.data.resolution, channels, options)
    if not on_device or source.arrays() is None:
        shard, fields = (index, hosts), ("image", *spec.fields, "mask")

        def stream(seeds: tuple[int, ...], start: int) -> Iterator[Rows]:
            del seeds, start
            options = {"shard": shard, "threads": config.data.threads}
            for rows in eval_batches(source, batch_size=size, transform=transform, **options):
                yield {key: rows[key] for key in fields}

        return Feed(dict, stream, lambda _, rows: rows)
    n, local = len(source), size // hosts

    def batches(seeds: tuple[int, ...], start: int) -> Iterator[Rows]:
        del seeds
        for start in range(0, n, size):
            ids = start + index * local + np.arange(local)
            yield {"id": np.where(ids < n, ids, -1).astype(np.int32)}

    return Feed(partial(_resident, source, transform), batches, _gather_padded)


def _stream_train(
    spec: TaskSpec, config: Any, source: Source, transform: Transform, shard: tuple[int, int]
) -> Callable[[tuple[int, ...], int], Iterator[Rows]]:
    local = config.batch_size // shard[1]
    row = (shard[0] * local + np.arange(local)).astype(np.int32)
    fields = ("image", *spec.fields, "mask")

    def batches(seeds: tuple[int, ...], start: int) -> Iterator[Rows]:
        (seed,) = seeds
        for rows in train_batches(
            source,
            batch_size=config.batch_size,
            seed=seed,
            start_step=start,
            transform=transform,
            shard=shard,
            threads=config.data.threads,
            bad_record_budget=config.data.bad_record_budget,
        ):
            yield {key: rows[key] for key in fields} | {"row": row}

    return batches


def _resident(source: Source, transform: Transform) -> dict[str, np.ndarray]:
    """All images of a set, through a transform that draws nothing."""
    arrays = source.arrays()
    assert arrays is not None
    rng = np.random.default_rng(0)
    images = [transform({"image": image}, rng)["image"] for image in arrays["image"]]
    return {"image": np.stack(images), "label": arrays["label"]}


def _gather(resident: dict[str, Array], rows: Batch) -> Batch:
    """Looks examples up by id. The mask is a constant, which XLA folds away wherever it acts."""
    ids = rows["id"]
    found = {name: jnp.take(array, ids, axis=0, mode="clip") for name, array in resident.items()}
    return rows | found | {"mask": jnp.ones(ids.shape, jnp.float32)}


def _gather_padded(resident: dict[str, Array], rows: Batch) -> Batch:
    """Looks examples up by id, where -1 stands for a padding row."""
    return _gather(resident, rows) | {"mask": (rows["id"] >= 0).astype(jnp.float32)}
