"""Mobile DeepLabv3 (Sec. 6.3, Table 7): MobileNetV2 with dilated last blocks and a small head.

The head that the paper recommends has no atrous spatial pyramid (ASPP); that and a decoder are
options. At 513×513 and 21 classes: 2.114 M parameters and 2.741 B multiply-adds at output stride
16, 8.83 B at 8; with the pyramid of full convolutions 4.524 M and 5.36 B (2.568 M with separable
ones, so Table 7's 4.52 M is the full pyramid).
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnv2_jax.errors import UsageError
from mnv2_jax.models.dialect import SLIM, Dialect
from mnv2_jax.models.layers import Images, Mask, Scope, bind_conv, relu, settings_of
from mnv2_jax.models.mobilenet import MobileNetV2, check_head
from mnv2_jax.models.spec import IMAGENET, Spec

HEAD: Dialect = SLIM._replace(bn_decay=0.9997, bn_epsilon=1e-5)
"""Batch norm of the authors' head; their backbone keeps its own constants."""

FEATURES: Spec = IMAGENET._replace(last=None)
"""The backbone up to the 320 channels: the paper drops the last 1×1 convolution of 1280."""

RATES = {32: (3, 6, 9), 16: (6, 12, 18), 8: (12, 24, 36)}
"""The pyramid's rates by output stride; the authors use those of 16 and 8."""

DECODER_TAP = "block_3/expansion"
LOW_LEVEL_CHANNELS = 48  # as in DeepLabv3+ (arXiv 1802.02611)
# The authors draw the logits' weights from a normal of 0.01, truncated at two sigmas.
logits_init = nn.initializers.truncated_normal(stddev=0.01)

# (conv, x, channels, rate) -> x convolved 3×3 with taps `rate` apart; `conv` makes a layer with the
# head's settings (`layers.bind_conv`).
Atrous = Callable[..., Array]


def full_atrous(conv, x, channels, rate):
    """One full 3×3 convolution at a rate: the pyramid of Table 7."""
    return conv(x, channels, kernel=3, dilation=rate, name="conv")


def separable_atrous(conv, x, channels, rate):
    """A depthwise 3×3 convolution at a rate, then 1×1, each with its norm and activation."""
    x = conv(x, x.shape[-1], kernel=3, dilation=rate, depthwise=True, name="filter")
    return conv(x, channels, name="project")


ATROUS: dict[str, Atrous] = {"full": full_atrous, "separable": separable_atrous}


class DeepLabV3(nn.Module):
    """The segmenter of Sec. 6.3: float images (b, h, w, c) to float32 logits (b, h, w, classes).

    Any size of image works, square or not.

    Attributes:
      num_classes: background included.
      backbone: a `MobileNetV2` without classifier, whose output stride sets the cost. The head
        takes its dtype, norm_axis, frozen_norm and convolve.
      rates: of the pyramid's branches; none leaves the pyramid out. `RATES` has the authors'.
      atrous: how a branch, and the decoder, convolve: `full_atrous` or `separable_atrous`.
      decoder_tap: endpoint of the backbone that a decoder refines the result with (DeepLabv3+),
        or None for no decoder, as in the paper. `DECODER_TAP` has stride 4 and 144 channels.
      channels: of every layer of the head.
      dropout: rate before the logits; above 0, training needs an rng named "dropout".
      dialect: padding and batch norm of the head.

    >>> import jax
    >>> images = jax.ShapeDtypeStruct((1, 65, 97, 3), jnp.float32)
    >>> jax.eval_shape(DeepLabV3().init_with_output, jax.random.key(0), images)[0].shape
    (1, 65, 97, 21)
    """

    num_classes: int = 21
    backbone: MobileNetV2 = MobileNetV2(num_classes=None, output_stride=16, spec=FEATURES)
    rates: tuple[int, ...] = ()
    atrous: Atrous = full_atrous
    decoder_tap: str | None = None
    channels: int = 256
    dropout: float = 0.1
    dialect: Dialect = HEAD

    def __post_init__(self):
        super().__post_init__()
        check_head(self.num_classes, self.backbone)
        if any(isinstance(r, bool) or not isinstance(r, int) or r < 1 for r in self.rates):
            raise UsageError(f"rates are {self.rates!r}: they must be integers of at least 1.")

    @nn.compact
    def __call__(
        self, images: Images, train: bool = False, mask: Mask = None
    ) -> Float[Array, "b h w classes"]:
        """Returns the logits at the resolution of the images; arguments are `MobileNetV2`'s."""
        bb = self.backbone
        conv = bind_conv(settings_of(bb) | {"dialect": self.dialect}, relu, train, mask)
        endpoints = bb.endpoints(images, train, mask)
        x = list(endpoints.values())[-1]
        pooled = x.astype(jnp.float32).mean(axis=(1, 2), keepdims=True)
        pooled = conv(pooled, self.channels, name="pooling")
        # Interpolating one pixel, as the authors do, is repeating it.
        pooled = jnp.broadcast_to(pooled, (*x.shape[:3], self.channels))
        branches = [pooled, conv(x, self.channels, name="aspp_0")]
        for i, rate in enumerate(self.rates, 1):
            branches.append(Scope(self.atrous, name=f"aspp_{i}")(conv, x, self.channels, rate))
        x = conv(jnp.concatenate(branches, axis=-1), self.channels, name="projection")
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        if self.decoder_tap is not None:
            x = self._decode(x, endpoints, conv)
        logits = nn.Conv(
            self.num_classes, (1, 1), dtype=bb.dtype, kernel_init=logits_init,
            conv_general_dilated=bb.convolve, name="classifier",
        )(x)  # fmt: skip
        return resize_aligned(logits.astype(jnp.float32), images.shape[1:3])

    def _decode(self, x: Array, endpoints: dict[str, Array], conv: Callable[..., Array]) -> Array:
        """Refines features with an earlier tensor of higher resolution."""
        if self.decoder_tap not in endpoints:
            raise UsageError(
                f"decoder_tap is {self.decoder_tap!r}: this backbone's endpoints are "
                f"{', '.join(endpoints)}."
            )
        low = conv(endpoints[self.decoder_tap], LOW_LEVEL_CHANNELS, name="low_level")
        x = jnp.concatenate([resize_aligned(x, low.shape[1:3]), low], axis=-1)
        for i in range(2):
            x = Scope(self.atrous, name=f"decoder_{i}")(conv, x, self.channels, 1)
        return x


@partial(jax.jit, static_argnums=1)  # under its own name in what exporters trace
def resize_aligned(x: Images, size: tuple[int, ...]) -> Float[Array, "b h2 w2 c"]:
    """Interpolates bilinearly so that corner pixels keep their place, as the authors' release does.

    Output pixel i lies at i (h - 1) / (h2 - 1) of the input ("align corners"), where
    `jax.image.resize` would align the images' borders: half a stride of 16 pixels apart.

    >>> resize_aligned(jnp.array([0.0, 1.0, 4.0]).reshape(1, 1, 3, 1), (1, 5)).ravel()
    Array([0. , 0.5, 1. , 2.5, 4. ], dtype=float32)
    """
    for axis, n in ((1, size[0]), (2, size[1])):
        if x.shape[axis] == n:
            continue
        position = np.arange(n) * ((x.shape[axis] - 1) / max(n - 1, 1))
        low = np.floor(position).astype(np.int32).clip(0, max(x.shape[axis] - 2, 0))
        shape = [n if i == axis else 1 for i in range(4)]
        share = jnp.asarray((position - low).reshape(shape), x.dtype)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        below, above = (jnp.take(x, i, axis=axis, mode="clip") for i in (low, high))
        x = below * (1 - share) + above * share
    return x
