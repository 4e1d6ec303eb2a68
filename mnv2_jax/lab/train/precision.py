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

from mnv2_jax.inference import quantize as integer
from mnv2_jax.inference.graph import trace
from mnv2_jax.inference.operations import Graph, run
from mnv2_jax.lab.data import eval_batches, eval_transform, open_source
from mnv2_jax.lab.tasks.task import evaluate
from mnv2_jax.lab.train.config import eval_resolution
from mnv2_jax.models.dialect import normalize

CALIBRATION_IMAGES = 512
BATCH = 128
# Further training: long enough to settle, at a rate that leaves the network what it is.
TRAINED_EPOCHS, TRAINED_RATE = 2, 1e-4

Logits = Callable[[Any], Any]
Batches = Callable[[], Iterator[tuple[Any, Any]]]  # of normalized training images and their labels


def bfloat16(model: Any, variables: Any, _: Batches) -> Logits:
    """Activations and kernels in bfloat16; statistics and the classifier stay float32."""
    half = model.clone(dtype=jnp.bfloat16)
    return lambda images: half.apply(variables, images)


def int8(model: Any, variables: Any, batches: Batches) -> Logits:
    """Integers, calibrated on training images (PTQ)."""
    quantized = integer.quantize(*_calibration(model, variables, batches))
    return lambda images: integer.simulate(quantized, images)[0]


def int8_trained(model: Any, variables: Any, batches: Batches) -> Logits:
    """Integers, after training with rounding in the loop (QAT), at the ranges of PTQ."""
    graph, images = _calibration(model, variables, batches)
    ranges = integer.quantize(graph, images).activations
    trained = _trained(graph, partial(integer.simulate_training, graph, ranges), batches)
    quantized = integer.with_ranges(trained, ranges)
    return lambda images: integer.simulate(quantized, images)[0]


def float32_trained(model: Any, variables: Any, batches: Batches) -> Logits:
    """As `int8_trained`, but without any rounding: what the further training alone is worth."""
    graph, _ = _calibration(model, variables, batches)
    trained = _trained(graph, lambda w, x: run(integer.with_weights(graph, w), x), batches)
    return lambda images: run(trained, images)[0]


# (model, variables, batches) -> (normalized images -> logits)
PRECISIONS: dict[str, Callable[[Any, Any, Batches], Logits]] = {
    compute.__name__: compute for compute in (bfloat16, int8, int8_trained, float32_trained)
}


def _calibration(model: Any, variables: Any, batches: Batches) -> tuple[Graph, list[Any]]:
    images = list(integer.first_images((batch for batch, _ in batches()), CALIBRATION_IMAGES))
    return trace(model, variables, images[0].shape[1:3]), images


def _trained(graph: Graph, compute: Callable[[Any, Any], Any], batches: Batches) -> Graph:
    """Trains a graph's weights by the outputs that `compute(weights, images)` gives."""
    weights = integer.trainable(graph)
    optimizer = optax.adam(TRAINED_RATE)

    @jax.jit
    def step(weights: Any, state: Any, images: Any, labels: Any) -> Any:
        def loss(weights: Any) -> Any:
            logits = compute(weights, images)[0]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        with jax.numpy_dtype_promotion("standard"):  # Optax mixes its count with floats
            updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return optax.apply_updates(weights, updates), state

    state = optimizer.init(weights)
    for _ in range(TRAINED_EPOCHS):
        for batch, labels in batches():
            weights, state = step(weights, state, batch, labels)
    return integer.with_weights(graph, jax.device_get(weights))


def low_precision_scores(config: Any, model: Any, variables: Any, seed: int) -> dict[str, float]:
    """Returns {"PRECISION/accuracy": value} on the held-out split for each `config.low_precision`.

    `variables` are those that the seed has trained.
    """
    if not config.low_precision:
        return {}
    data, variables = config.data, jax.device_get(variables)
    options = {"channels": model.in_channels, **data.eval.to_dict()}
    transform = eval_transform(eval_resolution(config), **options)

    def rows(split: str) -> Iterator[Any]:
        source = open_source(data.name, split + f"@{seed}" * data.resplit, data.root)
        for batch in eval_batches(source, batch_size=min(BATCH, len(source)), transform=transform):
            images = normalize(jnp.asarray(batch["image"]), model.dialect)
            yield batch | {"image": np.asarray(images)}

    def training() -> Iterator[tuple[Any, Any]]:
        for batch in rows(data.train_split):
            kept = batch["mask"] > 0
            yield batch["image"][kept], batch["label"][kept]

    def accuracy(name: str) -> float:
        logits = jax.jit(PRECISIONS[name](model, variables, training))

        def hits(batch: Any) -> dict[str, Any]:
            right = np.asarray(logits(batch["image"])).argmax(1) == batch["label"]
            return {"accuracy": ((right * batch["mask"]).sum(), batch["mask"].sum())}

        return evaluate(hits, rows(data.eval_split))["accuracy"]

    return {f"{name}/accuracy": accuracy(name) for name in config.low_precision}
