"""The details in which published weights differ: one value per ecosystem, and it goes with them."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

Padding = Literal["same", "symmetric"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Dialect(NamedTuple):
    """What must agree between weights and the network that runs them.

    Attributes:
      padding: of 3×3 convolutions. "same" is TensorFlow's, which pads the far side first, so an
        even input under stride 2 is padded by (0, 1); "symmetric" is PyTorch's (1, 1). They differ
        at every stride-2 layer.
      bn_decay: of the moving averages (Flax's `momentum`, one minus PyTorch's).
      mean, std: pixels in [0, 1] become (pixel - mean) / std, channel by channel or for all.
    """

    name: str
    padding: Padding
    bn_epsilon: float
    bn_decay: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


SLIM = Dialect("slim", "same", 1e-3, 0.997, (0.5,), (0.5,))
"""The authors' own release (TF-slim)."""

# Keras pads its strided depthwise layers by hand; for 3×3 kernels the result is SAME.
KERAS = Dialect("keras", "same", 1e-3, 0.999, (0.5,), (0.5,))

TORCHVISION = Dialect("torchvision", "symmetric", 1e-5, 0.9, IMAGENET_MEAN, IMAGENET_STD)

TIMM = Dialect("timm", "symmetric", 1e-5, 0.9, IMAGENET_MEAN, IMAGENET_STD)

HF = Dialect("hf", "same", 1e-3, 0.997, (0.5,), (0.5,))

DIALECTS = {d.name: d for d in (SLIM, KERAS, TORCHVISION, TIMM, HF)}


def normalize(
    images: UInt8[Array, "*batch h w c"], dialect: Dialect
) -> Float[Array, "*batch h w c"]:
    """Maps pixels 0..255 to the input range that a dialect's network expects, in float32.

    A mean or std of one value holds for every channel; of several, for images of as many channels
    (grey images take their average).

    >>> normalize(jnp.array([[[0, 255, 51]]], jnp.uint8), SLIM)
    Array([[[-1. ,  1. , -0.6]]], dtype=float32)
    """
    mean, std = (_per_channel(values, images) for values in (dialect.mean, dialect.std))
    return (images.astype(jnp.float32) / 255.0 - mean) / std


def _per_channel(values: tuple[float, ...], images: Array) -> Array:
    if len(values) != images.shape[-1]:
        values = (sum(values) / len(values),) * images.shape[-1]
    return jnp.expand_dims(jnp.asarray(values, jnp.float32), tuple(range(images.ndim - 1)))
