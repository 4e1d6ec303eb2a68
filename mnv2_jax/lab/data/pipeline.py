"""Batches from a source: sharded, shuffled, decoded by grain's threads, padded and masked.

A batch is a dict of arrays with the rows of this host. Bad records keep their place as zeros with
mask 0, so neither the order of the others nor any shape depends on them.
"""

import functools
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data.shuffle import record_rng, stream_ids
from mnv2_jax.lab.data.source import BadRecord, Source, Transform

log = logging.getLogger(__name__)

MIN_BAD_RECORDS = 10
MAX_ROWS_PER_TASK = 16
MAX_DEFAULT_THREADS = 16
PADDING_ID = -1


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    steps: int | None = None,
    transform: Transform | None = None,
    shard: tuple[int, int] = (0, 1),
    threads: int | None = None,
    prefetch: int = 2,
    bad_record_budget: float = 0.01,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this host's rows of every global training batch, from `start_step` on.

    Each batch has `image` (b, h, w, c), `mask` (b,) float32, `id` (b,) int64 (which example) and
    whatever else the transform returns, where b is batch_size / hosts. A record that cannot be
    decoded is a row of zeros with mask 0, named once in the log.

    Args:
        source: random-access records.
        batch_size: rows of the *global* batch.
        seed: fixes the order of the examples and their augmentation.
        start_step: the first batch; the stream does not depend on where it was entered.
        steps: how many batches to yield; without it the stream is endless.
        transform: applied to each record in a thread.
        shard: (this host's index, number of hosts).
        threads: how many records are read at once; by default one a core, at most 16.
        prefetch: how many batches are prepared ahead.
        bad_record_budget: the fraction of records that may be bad before the run stops; the first
            10 are always allowed.

    Raises:
        UsageError: impossible sizes, or more bad records than the budget.
    """
    local, first, threads = _check(source, "training", batch_size, shard, threads, prefetch)
    if start_step < 0 or not 0 <= bad_record_budget <= 1 or (steps is not None and steps < 0):
        raise UsageError(
            f"start_step {start_step} and steps {steps} must be at least 0, and bad_record_budget "
            f"{bad_record_budget} between 0 and 1."
        )

    def row(k: int) -> dict | BadRecord:
        """Reads the k-th row of this host, counted from `start_step`."""
        step, offset = divmod(k, local)
        position = (start_step + step) * batch_size + first + offset
        index = int(stream_ids(len(source), seed, position, 1)[0])
        return _read(source, index, transform, seed, position)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        rows = _threaded_rows(row, source, local, steps, threads, prefetch)
        blank = _blank_row(source, transform)
        budget = _BadRecordBudget(bad_record_budget)
        for step, batch in enumerate(rows, start_step):
            budget.count(batch)
            start = step * batch_size + first
            yield _stack(batch, stream_ids(len(source), seed, start, local), blank)

    return batches()


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    transform: Transform | None = None,
    shard: tuple[int, int] = (0, 1),
    threads: int | None = None,
    prefetch: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this host's rows of every example once, in order, as `train_batches` does.

    The last batch is padded with rows of zeros with mask 0 and id -1. Every host yields the same
    number of batches, even if all rows of one are padding.

    Raises:
        UsageError: impossible sizes, or a record that cannot be decoded, by name: a score over some
            of the examples would not be comparable.
    """
    local, first, threads = _check(source, "evaluation", batch_size, shard, threads, prefetch)
    n = len(source)

    def row(k: int) -> dict | BadRecord | None:
        step, offset = divmod(k, local)
        index = step * batch_size + first + offset
        return _read(source, index, transform, 0, index) if index < n else None

    def batches() -> Iterator[dict[str, np.ndarray]]:
        rows = _threaded_rows(row, source, local, -(-n // batch_size), threads, prefetch)
        blank = _blank_row(source, transform)
        for step, batch in enumerate(rows):
            for record in batch:
                if isinstance(record, BadRecord):
                    raise UsageError(
                        f"evaluation needs every record, and one cannot be used: {record}. "
                        "Repair or remove it."
                    )
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
    raise UsageError(
        f"none of the {len(source)} records of the data set can be used. The first: {first}. "
        "Check its files."
    )


def _check(
    source: Source, kind: str, batch_size: int, shard: tuple[int, int], threads: int | None,
    prefetch: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Gives the number of rows of each host, the first row of this one, and the threads."""
    index, count = shard
    if threads is None:
        threads = min(MAX_DEFAULT_THREADS, os.cpu_count() or 1)
    if min(batch_size, threads, prefetch) < 1 or not 0 <= index < count:
        raise UsageError(
            f"batch_size {batch_size}, threads {threads} and prefetch {prefetch} must be at least "
            f"1, and shard {shard} must be (index, count) with 0 <= index < count."
        )
    if batch_size % count:
        raise UsageError(
            f"batch_size {batch_size} does not divide over {count} hosts: "
            f"try {-(-batch_size // count) * count}."
        )
    if len(source) == 0:
        raise UsageError(f"the {kind} set is empty: give a source with at least one record.")
    local = batch_size // count
    return local, index * local, threads


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

    def task(k: int) -> list:
        return [row(i) for i in range(k * rows, (k + 1) * rows)]

    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(threads, prefetch * tasks_per_batch)
    )
    elements = iter(grain.MapDataset.range(tasks).map(task).to_iter_dataset(options))
    try:
        while batch := list(itertools.chain(*itertools.islice(elements, tasks_per_batch))):
            yield batch
    finally:
        elements.close()


def _blank_row(source: Source, transform: Transform | None) -> Callable[[], dict[str, np.ndarray]]:
    """Makes the row that stands for a missing record: zeros in the shapes of a good one."""
    return functools.cache(
        lambda: {key: np.zeros_like(v) for key, v in first_record(source, transform).items()}
    )


class _BadRecordBudget:
    """Counts bad records, names each once in the log, and stops a run that has too many."""

    def __init__(self, fraction: float):
        self._fraction = fraction
        self._seen = self._bad = 0
        self._names: set[str] = set()
        self._last: deque[str] = deque(maxlen=3)

    def count(self, batch: list) -> None:
        self._seen += len(batch)
        for record in batch:
            if isinstance(record, BadRecord):
                self._bad += 1
                self._last.append(str(record))
                if record.name not in self._names:
                    self._names.add(record.name)
                    log.warning("masked a bad record: %s", record)
        if self._bad > max(MIN_BAD_RECORDS, self._fraction * self._seen):
            raise UsageError(
                f"{self._bad} of {self._seen} records cannot be used, above the budget of "
                f"{self._fraction:.1%}; the last: {'; '.join(self._last)}. "
                "Repair the data or raise bad_record_budget."
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
            shapes = sorted({np.shape(value) for value in values})
            raise UsageError(
                f"records of one batch have different shapes of {key!r}: {shapes[:3]}. Give a "
                "transform that brings them to one size."
            ) from None
    if "label" in arrays and arrays["label"].ndim == 1:  # maps of labels stay bytes
        arrays["label"] = arrays["label"].astype(np.int32)
    return arrays | {"mask": mask, "id": ids.astype(np.int64)}
