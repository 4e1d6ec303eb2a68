"""Convolution, batch normalization and activation: the layer that the whole network is made of."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from mnv2_jax.errors import UsageError
from mnv2_jax.models.dialect import SLIM, Dialect, Padding
from mnv2_jax.ops.batch_norm import BatchNorm
from mnv2_jax.ops.convolution import MAX_PATCH_CHANNELS, Operands, Window, convolution, operands
from mnv2_jax.ops.platform import platform

Activation = Callable[[Array], Array]
Images = Float[Array, "b h w c"]  # or features
Mask = Float[Array, " b"] | None  # rows of the batch where it is 0 leave statistics alone

# With this many outputs for each input, a 1×1 convolution takes its statistics from its inputs.
EXPANDS = 3

# slim draws every convolution from N(0, 0.09), truncated at two sigmas.
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
    half = dilation * (kernel - 1) // 2
    return half, half


PADDINGS: dict[Padding, Callable[[int, int, int, int], tuple[int, int]]] = {
    "same": pad_same, "symmetric": pad_symmetric,
}  # fmt: skip


class LayerSettings(nn.Module, kw_only=True):
    """The settings that a network hands down to every layer, as keyword arguments.

    Attributes:
      dialect: padding and batch-norm constants.
      dtype: of the computation and the output; parameters and statistics are always float32.
      norm_axis: the mapped axis over whose devices batch statistics are averaged; None for none.
      frozen_norm: use the running statistics in training too (fine-tuning).
      convolve: computes the convolution, as `jax.lax.conv_general_dilated` would.
    """

    dialect: Dialect = SLIM
    dtype: Any = jnp.float32
    norm_axis: str | None = None
    frozen_norm: bool = False
    convolve: Callable[..., Array] = convolution


def settings_of(module: nn.Module, kind: type[nn.Module] = LayerSettings) -> dict[str, Any]:
    """Returns the fields of a module that `kind` defines, to hand them down to a submodule."""
    fields = [name for name in kind.__dataclass_fields__ if name not in ("parent", "name")]
    return {name: getattr(module, name) for name in fields}


class Product(nn.Conv):
    """An `nn.Conv` that leaves its product to the batch norm behind it."""

    @nn.compact
    def __call__(self, x: Images) -> Operands:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns what the convolution is the product of; it is one of those that are."""
        own: Any = self  # nn.Conv takes its fields in more forms than a ConvNorm gives them
        shape = (*own.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", kernel_init, shape, jnp.float32)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        window = Window(own.strides, tuple(own.padding), own.kernel_dilation)
        return operands(x, kernel, window)  # pyright: ignore[reportReturnType]


class ConvNorm(LayerSettings):
    """A convolution without bias, batch normalization, then an activation.

    Maps (b, h, w, c) to (b, ceil(h / stride), ceil(w / stride), features), which are c where the
    convolution is depthwise. `kernel` is the side of the square kernel; without `norm` a bias
    stands in place of the batch normalization. Statistics are computed in float32. For the other
    attributes see `LayerSettings`.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    activation: Activation = relu6
    norm: bool = True

    @nn.compact
    def __call__(
        self, x: Images, train: bool | None = None, mask: Mask = None
    ) -> Float[Array, "b ho wo f"]:
        """Applies the layer; inside a block that `train` is left out is a UsageError."""
        train = given_train(self, train)
        pad = PADDINGS[self.dialect.padding]
        conv = partial(
            nn.Conv, self.features, (self.kernel, self.kernel), (self.stride, self.stride),
            padding=[pad(n, self.kernel, self.stride, self.dilation) for n in x.shape[1:3]],
            kernel_dilation=(self.dilation, self.dilation),
            feature_group_count=self.features if self.depthwise else 1,
            use_bias=not self.norm, dtype=self.dtype, conv_general_dilated=self.convolve,
            kernel_init=kernel_init if self.norm else nn.linear.default_kernel_init, name="conv",
        )  # fmt: skip
        if not self.norm:
            return self.activation(conv()(x))
        norm = BatchNorm(
            not train or self.frozen_norm, momentum=self.dialect.bn_decay, dtype=self.dtype,
            epsilon=self.dialect.bn_epsilon, axis_name=self.norm_axis, name="norm",
        )  # fmt: skip
        whole = expands(self, x.shape[-1]) if norm.is_written_out else is_fused(self, norm, x)
        if whole and not self.is_initializing():
            conv = partial(Product, *conv.args, **conv.keywords)
        return norm(conv()(x), mask, self.activation)


def is_fused(layer: ConvNorm, norm: BatchNorm, x: Images) -> bool:
    """Whether a layer with running statistics is one kernel, as a product: on GPUs many are.

    Those of 1×1 are, and full ones of few channels.
    """
    product = is_pointwise(layer) or (not layer.depthwise and x.shape[-1] <= MAX_PATCH_CHANNELS)
    ours = layer.convolve is convolution and platform() == "cuda"
    return bool(norm.use_running_average) and product and ours


def is_pointwise(layer: ConvNorm) -> bool:
    """Whether a layer is a plain 1×1 convolution."""
    return (layer.kernel, layer.stride) == (1, 1)


def expands(layer: ConvNorm, channels: int) -> bool:
    """Whether it pays to take a layer's batch statistics from its input of so many channels.

    In bfloat16 it does on GPUs, where it saves memory traffic.
    """
    return (
        is_pointwise(layer)
        and layer.convolve is convolution
        and layer.features >= EXPANDS * channels
        and (jnp.finfo(layer.dtype).bits >= 32 or platform() == "cuda")
    )


def given_train(module: nn.Module, train: bool | None) -> bool:
    """Returns `train`, or where it is left out False, which inside of a block raises UsageError."""
    around = module.parent
    while train is None and isinstance(around, nn.Module):
        if getattr(around, "layers_need_train", False):
            raise UsageError(
                f"{type(module).__name__} {module.name!r} in {around.name!r} is called without "
                "train: make the layer by the conv that a block's maps are given, or pass "
                "train=block.train."
            )
        around = around.parent
    return bool(train)


def bind_conv(
    settings: Mapping[str, Any], activation: Activation, train: bool, mask: Mask
) -> Callable[..., Array]:
    """Returns `conv(x, features, *, name, ...)`, which adds a layer to the module being computed.

    It is a `ConvNorm`, which has the other options, with these settings, and trains as the network.
    """

    def conv(x: Array, features: int, *, name: str, **options: Any) -> Array:
        layer = ConvNorm(features, name=name, **{"activation": activation, **options}, **settings)
        return layer(x, train, mask)

    return conv


class Scope(nn.Module):
    """Puts the layers that a function makes below one name; it takes the function's arguments."""

    make: Callable[..., Array]

    @nn.compact
    def __call__(self, *args: Any) -> Array:
        """Calls the function."""
        return self.make(*args)
