"""Batches from a source: sharded, shuffled, decoded by grain's threads, padded and masked.

A batch is a dict of arrays with the rows of this host. Bad records keep their place as zeros with
mask 0, so neither the order of the others nor any shape depends on them.
"""

import logging
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.files import read_json, write_json
from mnv2_jax.lab.data.shuffle import record_rng, stream_ids
from mnv2_jax.lab.data.source import BadRecord, Source, Transform

log = logging.getLogger(__name__)

ALLOWED_BAD = 10  # but no more than half of a set
MAX_ROWS_PER_TASK = MAX_DEFAULT_THREADS = 16
PADDING_ID = -1
Batch = dict[str, np.ndarray]


def train_batches(
    source: Source, *, batch_size: int, seed: int, start_step: int = 0, steps: int | None = None,
    transform: Transform | None = None, shard: tuple[int, int] = (0, 1), threads: int | None = None,
    prefetch: int = 2, bad_record_budget: float = 0.01, bad_records: Path | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """Yields this host's rows of every global training batch, from `start_step` on.

    Each batch has `image` (b, h, w, c), `mask` (b,) float32, `id` (b,) int64 (which example) and
    whatever else the transform returns, where b is batch_size / hosts. A record that cannot be
    decoded is a row of zeros with mask 0, named once in the log.

    The stream depends on `seed` and not on the step where it is entered; without `steps` it is
    endless. `batch_size` counts the rows of the *global* batch, of which `shard`, (this host's
    index, number of hosts), gives a part. Each record is read and transformed in one of `threads`
    threads, by default one a core but at most 16, and `prefetch` batches are prepared ahead.

    No more than the share `bad_record_budget` of the set's records may be bad; ten always may, but
    no more than half. The file `bad_records` keeps which ones are, for a run that is started again.
    `UsageError` for more bad records than the budget, and a batch that hosts cannot share.
    """
    local, first, threads = _share(source, "training", batch_size, shard, threads)
    n = len(source)

    def row(k: int) -> dict | BadRecord:  # the k-th of this host, counted from `start_step`
        step, offset = divmod(k, local)
        position = (start_step + step) * batch_size + first + offset
        return _read(source, int(stream_ids(n, seed, position, 1)[0]), transform, seed, position)

    def batches() -> Iterator[Batch]:
        rows = _threaded_rows(row, source, local, steps, threads, prefetch)
        blank = _blank_row(source, transform)
        budget = _BadRecords(bad_record_budget, bad_records)
        for step, batch in enumerate(rows, start_step):
            ids = stream_ids(n, seed, step * batch_size + first, local)
            budget.count(batch, ids, min(n, max(n // shard[1], (step + 1) * local)))
            yield _stack(batch, ids, blank)

    return batches()


def eval_batches(
    source: Source, *, batch_size: int, transform: Transform | None = None,
    shard: tuple[int, int] = (0, 1), threads: int | None = None, prefetch: int = 2,
) -> Iterator[Batch]:  # fmt: skip
    """Yields this host's rows of every example once, in order, as `train_batches` does.

    The last batch is padded with rows of zeros with mask 0 and id -1. Every host yields the same
    number of batches, even if all rows of one are padding. `UsageError` for a record that cannot be
    decoded: a score over some of the examples would not be comparable.
    """
    local, first, threads = _share(source, "evaluation", batch_size, shard, threads)
    n = len(source)

    def row(k: int) -> dict | BadRecord | None:
        step, offset = divmod(k, local)
        index = step * batch_size + first + offset
        return _read(source, index, transform, 0, index) if index < n else None

    def batches() -> Iterator[Batch]:
        rows = _threaded_rows(row, source, local, -(-n // batch_size), threads, prefetch)
        blank = _blank_row(source, transform)
        for step, batch in enumerate(rows):
            for bad in (record for record in batch if isinstance(record, BadRecord)):
                needed = "evaluation needs every record, and one cannot be used"
                raise UsageError(f"{needed}: {bad}. Repair or remove it.")
            ids = step * batch_size + first + np.arange(local)
            yield _stack(batch, np.where(ids < n, ids, PADDING_ID), blank)

    return batches()


def first_record(source: Source, transform: Transform | None = None) -> dict:
    """Returns the first record that can be used, transformed; `UsageError` if there is none."""
    first = None
    for index in range(len(source)):
        record = _read(source, index, transform, 0, 0)
        if isinstance(record, dict):
            return record
        first = first or record
    if first is None:
        raise UsageError("the data set has no records: give one with at least one.")
    none = f"none of the {len(source)} records of the data set can be used"
    raise UsageError(f"{none}. The first: {first}. Check its files.")


def _share(
    source: Source, kind: str, batch_size: int, shard: tuple[int, int], threads: int | None
) -> tuple[int, int, int]:
    """Gives the number of rows of each host, the first row of this one, and the threads."""
    index, count = shard
    if batch_size % count:
        hosts = f"{count} hosts: try {-(-batch_size // count) * count}"
        raise UsageError(f"batch_size {batch_size} does not divide over {hosts}.")
    if len(source) == 0:
        raise UsageError(f"the {kind} set is empty: give a source with at least one record.")
    local = batch_size // count
    return local, index * local, threads or min(MAX_DEFAULT_THREADS, os.cpu_count() or 1)


def _read(
    source: Source, index: int, transform: Transform | None, seed: int, position: int
) -> dict | BadRecord:
    """Reads and transforms one record; a bad one is returned, not raised, to keep its place."""
    try:
        record = dict(source[index])
        return record if transform is None else transform(record, record_rng(seed, position))
    except BadRecord as bad:
        return bad


def _threaded_rows(
    row: Callable[[int], dict | BadRecord | None], source: Source, local: int, steps: int | None,
    threads: int, prefetch: int,
) -> Iterator[list]:  # fmt: skip
    """Yields the rows of one batch after the other, read by grain's threads in order.

    A grain element costs about 0.2 ms whatever it holds, so one carries several rows: a divisor of
    the batch, all of it for sets in memory.
    """
    import grain

    largest = local if source.arrays() is not None else min(local, MAX_ROWS_PER_TASK)
    rows = next(size for size in range(largest, 0, -1) if local % size == 0)
    tasks_per_batch = local // rows
    tasks = tasks_per_batch * (2**40 // tasks_per_batch if steps is None else steps)
    ahead = max(threads, prefetch * tasks_per_batch)

    def task(k: int) -> list:
        return [row(i) for i in range(k * rows, (k + 1) * rows)]

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    elements = iter(grain.MapDataset.range(tasks).map(task).to_iter_dataset(options))
    try:
        while batch := list(chain(*islice(elements, tasks_per_batch))):
            yield batch
    finally:
        elements.close()


def _blank_row(source: Source, transform: Transform | None) -> Callable[[], dict[str, np.ndarray]]:
    """Makes the row that stands for a missing record: zeros in the shapes of a good one."""
    record = partial(first_record, source, transform)
    return cache(lambda: {key: np.zeros_like(value) for key, value in record().items()})


class _BadRecords:
    """Which records are bad, each named once in the log; stops a run that has too many."""

    def __init__(self, share: float, file: Path | None):
        self._share, self._file, self._bad = share, file, {}
        if file is not None and os.path.lexists(file):
            try:
                self._bad = {int(index): str(why) for index, why in read_json(file).items()}
            except (ValueError, AttributeError) as error:
                log.warning("%s is damaged (%s): bad records are counted anew", file, error)

    def count(self, batch: list, ids: np.ndarray, of: int) -> None:
        """Counts those of a batch; `of` is the number of records that this host is to judge."""
        before = dict(self._bad)
        for index, record in zip(ids.tolist(), batch, strict=True):
            if not isinstance(record, BadRecord):
                self._bad.pop(index, None)  # repaired since
                continue
            if index not in self._bad:
                log.warning("masked a bad record: %s", record)
            self._bad[index] = str(record)
        if self._bad != before and self._file is not None:
            write_json(self._file, self._bad)
        if len(self._bad) > max(min(ALLOWED_BAD, of // 2), self._share * of):
            raise UsageError(
                f"{len(self._bad)} of {of} records cannot be used, above the budget of "
                f"{self._share:.1%}; the last: {'; '.join(list(self._bad.values())[-3:])}. "
                "Repair the data or raise data.bad_record_budget."
            )


def _stack(batch: list, ids: np.ndarray, blank: Callable[[], dict]) -> dict[str, np.ndarray]:
    """Stacks records into arrays, with zeros and mask 0 where there is none."""
    mask = np.array([isinstance(record, dict) for record in batch], np.float32)
    if not mask.all():
        row = blank()
        batch = [record if isinstance(record, dict) else row for record in batch]
    arrays = {}
    for key in batch[0]:
        values = [record[key] for record in batch]
        try:
            arrays[key] = np.stack(values)
        except ValueError:
            shapes = f"shapes of {key!r}: {sorted({np.shape(value) for value in values})[:3]}"
            remedy = "Give a transform that brings them to one size"
            raise UsageError(f"records of one batch have different {shapes}. {remedy}.") from None
    if "label" in arrays and arrays["label"].ndim == 1:  # maps of labels stay bytes
        arrays["label"] = arrays["label"].astype(np.int32)
    return arrays | {"mask": mask, "id": ids.astype(np.int64)}
