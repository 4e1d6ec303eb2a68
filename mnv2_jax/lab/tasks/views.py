"""Several looks at one image: resized and mirrored inputs whose answers are averaged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mnv2_jax.lab.tasks.task import Forward, TestTimeAugmentation
from mnv2_jax.models.deeplab import resize_aligned

InPlace = Callable[[Array, int, tuple[int, ...]], Array]


def average(
    forward: Forward,
    augmentation: TestTimeAugmentation,
    in_place: InPlace = lambda logits, turn, size: logits,
) -> Forward:
    """Averages the class probabilities over resized and mirrored inputs (Table 7's MF).

    Returns (weights, images) -> the logarithms of the averages. A resized side is n·scale rounded,
    with the corners kept in place. Where logits have pixels, `in_place` brings them to those of the
    image: of (logits, -1 for a mirrored input or 1, (h, w) of the image).
    """

    def averaged(weights: Any, images: Array) -> Array:
        size, found = images.shape[1:3], []
        for scale in augmentation.scales:
            scaled = resize_aligned(images, tuple(max(1, round(n * scale)) for n in size))
            for turn in (1, -1) if augmentation.flip else (1,):
                logits = jnp.asarray(forward(weights, scaled[:, :, ::turn]))
                found.append(jax.nn.softmax(in_place(logits, turn, size)))
        mean = sum(found[1:], found[0]) / len(found)
        return jnp.log(jnp.maximum(mean, jnp.finfo(jnp.float32).tiny))

    return averaged
