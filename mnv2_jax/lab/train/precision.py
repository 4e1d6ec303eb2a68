"""A finished classifier at low precision: does its accuracy survive bfloat16 and 8-bit integers?

The paper calls ReLU6 robust at low precision (Sec. 3.3). Here a trained network is evaluated again
in bfloat16, in int8 after calibration on training images, and in int8 after a short training with
the rounding in the loop, beside the same short training without.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnv2_jax.inference.graph import Graph, run, trace
from mnv2_jax.inference.quantize import (
    quantize,
    simulate,
    simulate_training,
    trainable,
    with_ranges,
    with_weights,
)
from mnv2_jax.lab.data import Source, eval_batches, eval_transform, open_source
from mnv2_jax.models.dialect import normalize

CALIBRATION_IMAGES = 512
BATCH = 128
# Further training: long enough to settle, at a rate that leaves the network what it is.
TRAINED_EPOCHS, TRAINED_RATE = 2, 1e-4

Logits = Callable[[Any], Any]
# (model, variables, batches of training images and labels) -> (normalised images -> logits)
Precision = Callable[[Any, Any, Callable[[], Iterator[Any]]], Logits]


def bfloat16(model: Any, variables: Any, batches: Callable[[], Iterator[Any]]) -> Logits:
    """Activations and kernels in bfloat16; statistics and the classifier stay float32."""
    del batches
    half = model.clone(dtype=jnp.bfloat16)
    return lambda images: half.apply(variables, images)


def int8(model: Any, variables: Any, batches: Callable[[], Iterator[Any]]) -> Logits:
    """Integers, calibrated on training images (PTQ)."""
    quantized = quantize(*_calibration(model, variables, batches))
    return lambda images: simulate(quantized, images)[0]


def int8_trained(model: Any, variables: Any, batches: Callable[[], Iterator[Any]]) -> Logits:
    """Integers, after training with rounding in the loop (QAT), at the ranges of PTQ."""
    graph, images = _calibration(model, variables, batches)
    ranges = quantize(graph, images).activations
    trained = _trained(graph, partial(simulate_training, graph, ranges), batches)
    quantized = with_ranges(trained, ranges)
    return lambda images: simulate(quantized, images)[0]


def float32_trained(model: Any, variables: Any, batches: Callable[[], Iterator[Any]]) -> Logits:
    """As `int8_trained`, but without any rounding: what the further training alone is worth."""
    graph, _ = _calibration(model, variables, batches)
    trained = _trained(graph, lambda weights, x: run(with_weights(graph, weights), x), batches)
    return lambda images: run(trained, images)[0]


def _trained(
    graph: Graph, compute: Callable[[Any, Any], Any], batches: Callable[[], Iterator[Any]]
) -> Graph:
    """Trains a graph's weights by the outputs that `compute(weights, images)` gives."""
    weights = trainable(graph)
    optimizer = optax.adam(TRAINED_RATE)

    @jax.jit
    def step(weights: Any, state: Any, images: Any, labels: Any) -> Any:
        def loss(weights: Any) -> Any:
            logits = compute(weights, images)[0]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return optax.apply_updates(weights, updates), state

    state = optimizer.init(weights)
    for _ in range(TRAINED_EPOCHS):
        for batch, labels in batches():
            weights, state = step(weights, state, batch, labels)
    return with_weights(graph, jax.device_get(weights))


PRECISIONS: dict[str, Precision] = {
    "bfloat16": bfloat16,
    "int8": int8,
    "int8_trained": int8_trained,
    "float32_trained": float32_trained,
}


def _calibration(model: Any, variables: Any, batches: Callable[[], Iterator[Any]]) -> Any:
    images, left = [], CALIBRATION_IMAGES
    for batch, _ in batches():
        images.append(batch[:left])
        left -= len(images[-1])
        if left <= 0:
            break
    return trace(model, variables, images[0].shape[1:3]), images


def low_precision_scores(config: Any, model: Any, variables: Any) -> dict[str, float]:
    """Returns {"PRECISION/accuracy": value} on the held-out split, for every precision asked for.

    Args:
      config: of the training; its data, and `low_precision`.
      model: the trained network.
      variables: of one seed.
    """
    if not config.low_precision:
        return {}
    data = config.data
    options = {"channels": model.in_channels, **data.eval.to_dict()}
    transform = eval_transform(data.resolution, **options)
    variables = jax.device_get(variables)

    def batches(split: str) -> Iterator[Any]:
        source: Source = open_source(data.name, split, data.root)
        for rows in eval_batches(source, batch_size=min(BATCH, len(source)), transform=transform):
            kept = rows["mask"] > 0
            yield (
                np.asarray(normalize(jnp.asarray(rows["image"][kept]), model.dialect)),
                rows["label"][kept],
            )

    scores = {}
    for name in config.low_precision:
        logits = jax.jit(PRECISIONS[name](model, variables, lambda: batches(data.train_split)))
        hits = [
            np.asarray(logits(images)).argmax(1) == labels
            for images, labels in batches(data.eval_split)
        ]
        scores[f"{name}/accuracy"] = float(np.concatenate(hits).mean())
    return scores
