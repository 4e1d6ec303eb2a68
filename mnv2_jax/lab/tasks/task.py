"""The contract between the training loop and a task."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array

Variables = dict[str, Any]
Batch = dict[str, Array]
Sums = dict[str, tuple[Array, Array]]
"""Metrics as (sum, count) pairs: they add up over batches, devices and hosts without bias."""


class Task(NamedTuple):
    """A learning problem as pure functions.

    Attributes:
      init: key -> variables (`params`, and `batch_stats` if the model has any).
      loss: (variables, batch, key) -> (sums, batch_stats), in training mode. `sums["loss"]` is
        minimised as sum / count; the other pairs are reported.
      metrics: (variables, batch) -> sums, in evaluation mode.
      summarize: the sums of a whole set -> {metric: number}. Not every metric is a mean: average
        precision and mean IoU are computed from sums that are arrays.
      monitor: the metric, higher is better, that names the best checkpoint and the verdict.

    Rows of a batch whose `mask` is 0 count nowhere.
    """

    init: Callable[[Array], Variables]
    loss: Callable[[Variables, Batch, Array], tuple[Sums, Any]]
    metrics: Callable[[Variables, Batch], Sums]
    summarize: Callable[[Mapping[str, tuple[Any, Any]]], dict[str, float]]
    monitor: str


def means(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """Divides every sum by its count; a count of 0 gives 0.

    >>> means({"loss": (3.0, 2), "accuracy": (0.0, 0)})
    {'loss': 1.5, 'accuracy': 0.0}
    """
    return {name: float(value) / max(float(count), 1.0) for name, (value, count) in sums.items()}
