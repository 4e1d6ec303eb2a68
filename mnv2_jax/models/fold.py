"""Prediction with batch norm folded into the convolutions: the network at its fastest on CPUs.

At inference batch norm is a fixed scale and offset, so it disappears into kernels and biases. What
remains is computed here as plain functions on plain arrays, a few images at a time, so that the
activations of one chunk stay in the cache.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnv2_jax.models.layers import PADDINGS, Folded, fold_norm, linear
from mnv2_jax.models.mobilenet import MobileNetV2, check_images
from mnv2_jax.models.spec import unroll

# Images at a time on a CPU: the expanded tensors of two fill the second-level cache at 224 pixels.
CHUNK = 2


def fold(model: MobileNetV2, variables: Any) -> dict[str, Any]:
    """Folds every batch norm's running statistics into the convolution before it.

    Args:
      model: the network that the variables belong to; its dialect gives the epsilon.
      variables: `{"params", "batch_stats"}` of the network.

    Returns:
      The tree of parameters with a `Folded` in place of each convolution and batch norm, in the
      model's dtype, for `folded_apply`; the classifier as it was.
    """

    def visit(params: Any, stats: Any) -> Any:
        if "conv" in params:
            folded = fold_norm(params, stats, model.dialect.bn_epsilon)
            return Folded(*(leaf.astype(model.dtype) for leaf in folded))
        return {name: visit(child, stats[name]) for name, child in params.items()}

    params = dict(variables["params"])
    classifier = {name: params.pop(name) for name in ("classifier",) if name in params}
    return {**visit(params, variables["batch_stats"]), **classifier}


def folded_apply(
    model: MobileNetV2, folded: dict[str, Any], images: Float[Array, "b h w c"]
) -> Array:
    """Computes `model.apply(variables, images)` from folded variables; call it under `jax.jit`.

    Results are those of the network in inference up to rounding, for every dialect, width, output
    stride, bottleneck and shortcut. `split` is not needed here and has no effect.

    Args:
      model: as it was given to `fold`.
      folded: the result of `fold`.
      images: in the dialect's input range.

    Returns:
      The logits, or the last feature map where there is no classifier.
    """
    check_images(images, model.in_channels)
    network = partial(_network, model, folded)
    whole = images.shape[0] // CHUNK * CHUNK
    if jax.default_backend() != "cpu" or whole <= CHUNK:
        return network(images)
    chunks = images[:whole].reshape(-1, CHUNK, *images.shape[1:])
    out = lax.map(network, chunks)
    out = out.reshape(whole, *out.shape[2:])
    return out if whole == len(images) else jnp.concatenate([out, network(images[whole:])])


def _network(model: MobileNetV2, folded: dict[str, Any], images: Array) -> Array:
    layout = unroll(model.width, model.output_stride, model.spec)
    layer, activation = partial(_layer, model), model.activation
    x = layer(folded["stem"], activation, images.astype(model.dtype), layout.stem_stride)
    wide = None
    for i, block in enumerate(layout.blocks):
        parts = folded[f"block_{i}"]
        x, wide = model.shortcut(
            partial(layer, parts["expand"], activation) if "expand" in parts else linear,
            partial(
                layer, parts["filter"], activation, stride=block.stride, dilation=block.dilation
            ),
            partial(layer, parts["project"], model.bottleneck),
            x,
            wide,
            block.stride,
        )
    if layout.last is not None:
        x = layer(folded["last"], activation, x)
    if model.num_classes is None:
        return x
    classifier = folded["classifier"]
    pooled = x.astype(jnp.float32).mean(axis=(1, 2))
    return pooled @ classifier["kernel"] + classifier["bias"][None]


def _layer(
    model: MobileNetV2,
    folded: Folded,
    activation: Any,
    x: Float[Array, "b h w c"],
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "b ho wo f"]:
    kernel, bias = folded
    pad = PADDINGS[model.dialect.padding]
    y = model.convolve(
        x,
        kernel,
        (stride, stride),
        [pad(n, kernel.shape[0], stride, dilation) for n in x.shape[1:3]],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3] // kernel.shape[2],
    )
    return activation(y + bias)
