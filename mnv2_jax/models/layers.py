"""Convolution, batch normalisation and activation: the layer that the whole network is made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnv2_jax.models.dialect import SLIM, Dialect, Padding
from mnv2_jax.ops.batch_norm import BatchNorm, Operands
from mnv2_jax.ops.convolution import convolution

Activation = Callable[[Array], Array]

# From this many outputs an input on, a 1×1 convolution takes its statistics from its inputs.
EXPANDS = 3

# slim's training scope draws every convolution from N(0, 0.09), truncated at two sigmas. Batch norm
# follows each of them, so the scale only sets how fast weight decay and the learning rate act.
kernel_init = nn.initializers.truncated_normal(stddev=0.09)
# The classifier is torchvision's N(0, 0.01): small first logits, hence a first loss of ln(classes).
classifier_init = nn.initializers.normal(stddev=0.01)


def relu6(x: Array) -> Array:
    """min(max(x, 0), 6), the non-linearity of the expanded layers (Sec. 3.3)."""
    return jax.nn.relu6(x)


def linear(x: Array) -> Array:
    """The identity, the paper's activation of the bottleneck itself (Sec. 3.2)."""
    return x


def relu(x: Array) -> Array:
    """max(x, 0), unbounded: what ReLU6 is compared with at low precision."""
    return jax.nn.relu(x)


ACTIVATIONS: dict[str, Activation] = {"linear": linear, "relu6": relu6, "relu": relu}


def pad_same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's SAME for one axis: the output is size / stride rounded up, the far side first.

    >>> pad_same(224, 3, 2, 1), pad_same(7, 3, 2, 1), pad_same(14, 3, 1, 2)
    ((0, 1), (1, 1), (2, 2))
    """
    span = dilation * (kernel - 1) + 1
    total = max(0, (-(-size // stride) - 1) * stride + span - size)
    return total // 2, total - total // 2


def pad_symmetric(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """PyTorch's usual padding for one axis: half the kernel's span on both sides.

    >>> pad_symmetric(224, 3, 2, 1)
    (1, 1)
    """
    del size, stride
    half = dilation * (kernel - 1) // 2
    return half, half


PADDINGS: dict[Padding, Callable[[int, int, int, int], tuple[int, int]]] = {
    "same": pad_same,
    "symmetric": pad_symmetric,
}


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation, then an activation.

    Maps (b, h, w, c) to (b, ceil(h / stride), ceil(w / stride), features). Parameters and
    statistics are float32 whatever `dtype` is; the statistics are computed in float32.

    Attributes:
      features: output channels; for a depthwise convolution, those of its input.
      kernel: side of the square kernel.
      stride, dilation: of the kernel, the same on both axes.
      depthwise: whether every channel has a kernel of its own.
      activation: applied last; `linear` for a bottleneck.
      dialect: padding and batch-norm constants.
      dtype: of the computation and the output.
      norm_axis: the mapped axis over whose devices batch statistics are averaged (`shard_map`,
        `pmap` or `vmap`); None leaves them to the batch that is seen here.
      frozen_norm: use the running statistics in training too (fine-tuning).
      convolve: computes the convolution, as `jax.lax.conv_general_dilated` would.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    activation: Activation = relu6
    dialect: Dialect = SLIM
    dtype: Any = jnp.float32
    norm_axis: str | None = None
    frozen_norm: bool = False
    convolve: Callable[..., Array] = convolution

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        train: bool = False,
        mask: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b ho wo f"]:
        """Applies the layer; rows of the batch where `mask` is 0 leave the statistics alone."""
        pad = PADDINGS[self.dialect.padding]
        seen = []  # (operands, result) of the convolution

        def convolve(lhs: Array, rhs: Array, *args: Any, **kwargs: Any) -> Array:
            seen.append((Operands(lhs, rhs[0, 0]), self.convolve(lhs, rhs, *args, **kwargs)))
            return seen[-1][1]

        y = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            self.stride,
            padding=[pad(n, self.kernel, self.stride, self.dilation) for n in x.shape[1:3]],
            kernel_dilation=self.dilation,
            feature_group_count=self.features if self.depthwise else 1,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=kernel_init,
            conv_general_dilated=convolve,
            name="conv",
        )(x)
        operands, result = seen[-1] if seen else (None, None)
        # Together with its batch norm where that pays, and where nothing came between the two.
        together = (
            not self.is_initializing()
            and self.convolve is convolution
            and result is y
            and (self.kernel, self.stride) == (1, 1)
            and self.features >= EXPANDS * x.shape[-1]
            and jnp.finfo(self.dtype).bits >= 32
        )
        return BatchNorm(
            use_running_average=not train or self.frozen_norm,
            momentum=self.dialect.bn_decay,
            epsilon=self.dialect.bn_epsilon,
            dtype=self.dtype,
            axis_name=self.norm_axis,
            name="norm",
        )(y, mask, self.activation, operands if together else None)


class Folded(NamedTuple):
    """A convolution with the batch norm that follows it folded in, for inference."""

    kernel: Float[Array, "kh kw i o"]
    bias: Float[Array, "1 1 1 o"]


def fold_norm(params: Any, batch_stats: Any, epsilon: float) -> Folded:
    """Folds a `ConvNorm`'s running statistics and affine parameters into kernel and bias.

    Args:
      params: `{"conv": {"kernel"}, "norm": {"scale", "bias"}}`, as `ConvNorm` makes them.
      batch_stats: `{"norm": {"mean", "var"}}`.
      epsilon: of the dialect that the statistics belong to.
    """
    norm, stats = params["norm"], batch_stats["norm"]
    scale = (norm["scale"] * jax.lax.rsqrt(stats["var"] + epsilon)).reshape(1, 1, 1, -1)
    mean, bias = (v.reshape(1, 1, 1, -1) for v in (stats["mean"], norm["bias"]))
    return Folded(params["conv"]["kernel"] * scale, bias - mean * scale)
