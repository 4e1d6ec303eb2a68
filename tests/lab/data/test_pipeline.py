"""Batches: every example exactly once, the same stream from any step and on any number of hosts."""

import contextlib
import itertools
import json
import logging

import numpy as np
import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import (
    ArraySource,
    BadRecord,
    batch_ids,
    eval_batches,
    open_source,
    train_batches,
)


class NumberedSource:
    """Record i is a 2x2 image filled with i and labelled i; the listed ones are bad."""

    classes = tuple(str(i) for i in range(1000))

    def __init__(self, n, bad=()):
        self.n = n
        self.bad = frozenset(bad)

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index in self.bad:
            raise BadRecord(f"image-{index}.jpg", "cut short")
        return {"image": np.full((2, 2, 1), index % 256, np.uint8), "label": index}

    def arrays(self):
        return None


def add_noise(record, rng):
    noise = rng.integers(0, 256, (2, 2, 1), np.uint8)
    return record | {"image": record["image"] ^ noise, "noise": noise[0, 0, 0]}


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def assert_same(batch, other):
    assert set(batch) == set(other)
    for key in batch:
        assert batch[key].dtype == other[key].dtype
        np.testing.assert_array_equal(batch[key], other[key])


def concatenated(batches):
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


@pytest.mark.parametrize("hosts", [1, 2, 8])
def test_evaluation_counts_every_example_once(hosts):
    for n in range(1, 3 * 8 + 2):
        shards = [
            list(eval_batches(NumberedSource(n), batch_size=8, shard=(i, hosts), threads=2))
            for i in range(hosts)
        ]
        assert {len(batches) for batches in shards} == {-(-n // 8)}
        rows = concatenated([concatenated(step) for step in zip(*shards, strict=True)])
        real = rows["mask"] == 1
        assert rows["id"][real].tolist() == rows["label"][real].tolist() == list(range(n))
        assert rows["mask"].sum() == n
        assert not rows["image"][~real].any()
        assert set(rows["id"][~real]) <= {-1}


def test_a_batch_has_fixed_shapes_and_types():
    for batches in (
        eval_batches(open_source("digits", "test"), batch_size=100),
        train_batches(open_source("digits", "train"), batch_size=100, seed=0, steps=3),
    ):
        for batch in batches:
            assert {key: (value.shape, str(value.dtype)) for key, value in batch.items()} == {
                "image": ((100, 8, 8, 1), "uint8"),
                "label": ((100,), "int32"),
                "mask": ((100,), "float32"),
                "id": ((100,), "int64"),
            }


@pytest.mark.parametrize("n", [5, 16, 37])
def test_training_from_any_step_is_the_undisturbed_stream(n):
    arguments = {"batch_size": 8, "seed": 3, "transform": add_noise, "threads": 3}
    undisturbed = take(train_batches(NumberedSource(n), **arguments), 12)
    for step, batch in enumerate(undisturbed):
        np.testing.assert_array_equal(batch["id"], batch_ids(n, 8, 3, step))
        np.testing.assert_array_equal(batch["label"], batch["id"])
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] ^ batch["noise"], batch["id"])
    for start in (1, 4, 11):
        restarted = train_batches(
            NumberedSource(n), start_step=start, steps=12 - start, **arguments
        )
        for batch, other in zip(restarted, undisturbed[start:], strict=True):
            assert_same(batch, other)


@pytest.mark.parametrize("hosts", [2, 4])
def test_shards_concatenate_to_the_global_batch(hosts):
    arguments = {"batch_size": 8, "seed": 1, "transform": add_noise, "steps": 6, "threads": 2}
    whole = train_batches(NumberedSource(21), **arguments)
    shards = [
        train_batches(NumberedSource(21), shard=(i, hosts), **arguments) for i in range(hosts)
    ]
    for batch, parts in zip(whole, zip(*shards, strict=True), strict=True):
        assert_same(concatenated(parts), batch)


@pytest.mark.parametrize("threads", [1, 7])
def test_the_number_of_threads_changes_nothing(threads):
    arguments = {"batch_size": 6, "seed": 1, "transform": add_noise, "steps": 5}
    batches = train_batches(NumberedSource(21), threads=threads, prefetch=1, **arguments)
    others = train_batches(NumberedSource(21), threads=4, prefetch=3, **arguments)
    for batch, other in zip(batches, others, strict=True):
        assert_same(batch, other)


def test_augmentation_differs_between_epochs():
    batches = train_batches(
        NumberedSource(8), batch_size=8, seed=0, steps=2, transform=add_noise, threads=1
    )
    first, second = (batch["noise"][np.argsort(batch["id"])] for batch in batches)
    assert (first != second).any()


def test_bad_records_are_masked_and_named_once(caplog):
    n, bad = 40, {7, 23}
    arguments = {"batch_size": 8, "seed": 2, "transform": add_noise, "threads": 2, "steps": 10}
    with caplog.at_level(logging.WARNING):
        masked = list(train_batches(NumberedSource(n, bad), **arguments))
    for batch, good in zip(masked, train_batches(NumberedSource(n), **arguments), strict=True):
        rows = np.isin(batch["id"], list(bad))
        np.testing.assert_array_equal(batch["mask"], 1.0 - rows)
        np.testing.assert_array_equal(batch["id"], good["id"])
        for key in ("image", "label", "noise"):
            assert not batch[key][rows].any()
            np.testing.assert_array_equal(batch[key][~rows], good[key][~rows])
    names = sorted(record.getMessage() for record in caplog.records)
    assert names == [
        "masked a bad record: image-23.jpg: cut short",
        "masked a bad record: image-7.jpg: cut short",
    ]


def test_a_batch_of_only_bad_records_keeps_its_shape():
    source = NumberedSource(4, bad={0, 3})
    batches = train_batches(source, batch_size=1, seed=0, steps=8, threads=1)
    masks = [(batch["mask"].item(), batch["image"].shape) for batch in batches]
    assert sorted(masks) == [(0.0, (1, 2, 2, 1))] * 4 + [(1.0, (1, 2, 2, 1))] * 4


def test_the_budget_stops_a_run_with_the_last_names():
    source = NumberedSource(100, bad=range(0, 100, 2))
    batches = train_batches(source, batch_size=10, seed=0, steps=20, bad_record_budget=0.2)
    with pytest.raises(UsageError, match=r"of \d+ records cannot be used.*image-\d+.jpg") as error:
        list(batches)
    assert "\n" not in str(error.value)


def test_ten_bad_records_are_always_allowed():
    source = NumberedSource(1000, bad=range(10))
    batches = train_batches(source, batch_size=100, seed=0, steps=10, bad_record_budget=0.0)
    assert sum(batch["mask"].sum() for batch in batches) == 990


@pytest.mark.parametrize(
    ("n", "bad", "share", "stops"),
    [(24, 1, 0.0, False), (24, 12, 0.01, True), (24, 10, 0.0, False), (4, 3, 0.01, True),
     (1000, 30, 0.03, False), (1000, 31, 0.03, True), (1, 0, 0.0, False)],
)  # fmt: skip
def test_the_budget_counts_records_and_not_how_often_they_are_met(n, bad, share, stops):
    """Over ten epochs; it is decided in the first."""
    arguments = {"batch_size": 8, "seed": 0, "bad_record_budget": share, "threads": 1}
    steps = -(-n // 8) if stops else 10 * n // 8 + 1
    batches = train_batches(NumberedSource(n, range(bad)), steps=steps, **arguments)
    told = rf"\d+ of {n} records cannot be used.*raise data.bad_record_budget"
    with pytest.raises(UsageError, match=told) if stops else contextlib.nullcontext():
        list(batches)


def test_a_restart_does_not_begin_to_count_anew(tmp_path):
    source, file = NumberedSource(40, range(15)), tmp_path / "bad.json"
    arguments = {"batch_size": 4, "seed": 0, "threads": 1, "bad_records": file}

    def steps_one_by_one(source, **more) -> None:
        for step in range(10):
            list(train_batches(source, start_step=step, steps=1, **arguments | more))

    with pytest.raises(UsageError, match=r"1[1-4] of 40 records"):
        steps_one_by_one(source)
    steps_one_by_one(source, bad_record_budget=0.5)
    assert len(json.loads(file.read_text())) == 15
    repaired = NumberedSource(40, range(3))
    raised = {"bad_record_budget": 0.5, "steps": 20}
    assert len(list(train_batches(repaired, **arguments | raised))) == 20
    assert set(json.loads(file.read_text())) == {"0", "1", "2"}
    for damage in ("[1]", '{"a": 1}', "", "{"):
        file.write_text(damage)
        assert len(list(train_batches(repaired, steps=20, **arguments))) == 20


@pytest.mark.parametrize(("every", "stops"), [(40, False), (4, True)])
def test_each_host_decides_by_its_share_of_the_set(every, stops):
    """In the first epoch: a quarter of 400 records is bad, or a fortieth, and a tenth may be."""
    for host in range(4):
        batches = train_batches(
            NumberedSource(400, range(0, 400, every)), batch_size=8, seed=0, steps=50,
            shard=(host, 4), threads=1, bad_record_budget=0.1,
        )  # fmt: skip
        with pytest.raises(UsageError) if stops else contextlib.nullcontext():
            list(batches)


def test_no_steps_are_no_batches():
    assert list(train_batches(NumberedSource(3), batch_size=2, seed=0, steps=0)) == []


def test_evaluation_stops_at_a_bad_record():
    with pytest.raises(UsageError, match=r"evaluation needs every record.*image-5.jpg: cut short"):
        list(eval_batches(NumberedSource(9, bad={5}), batch_size=4, threads=1))


def test_a_source_without_any_good_record_is_refused():
    source = NumberedSource(3, bad={0, 1, 2})
    with pytest.raises(
        UsageError,
        match=r"none of the 3 records .* The first: image-0.jpg: cut",
    ):
        next(train_batches(source, batch_size=2, seed=0, threads=1, bad_record_budget=1.0))


def test_records_of_different_shapes_are_refused():
    def uneven(record, rng):
        return record | {"image": np.zeros((2 + record["label"], 2, 1), np.uint8)}

    with pytest.raises(UsageError, match="different shapes of 'image'"):
        next(train_batches(NumberedSource(3), batch_size=3, seed=0, transform=uneven, threads=1))


def test_a_batch_that_hosts_cannot_share_is_refused_at_once():
    with pytest.raises(UsageError, match="does not divide over 2 hosts: try 10") as error:
        train_batches(NumberedSource(8), batch_size=9, seed=0, shard=(0, 2))
    assert "\n" not in str(error.value)


def test_empty_sources_are_refused():
    empty = ArraySource(np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0), ("a",))
    with pytest.raises(UsageError, match="the training set is empty"):
        train_batches(empty, batch_size=1, seed=0)
    with pytest.raises(UsageError, match="the evaluation set is empty"):
        eval_batches(empty, batch_size=1)
