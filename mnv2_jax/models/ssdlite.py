"""SSDLite (Sec. 6.2, Tables 5 and 6): MobileNetV2 with extra feature maps and box predictors.

SSDLite is SSD with every 3×3 convolution of the extra maps and predictors replaced by a depthwise
3×3 and a pointwise one. At 320×320 the whole SSDLite has 4.337 M parameters and 0.789 B
multiply-adds for 80 classes, 4.50 M and 0.804 B for the 90 ids of COCO that the authors train.
Table 5 compares what comes after the backbone, for 80 classes: 14.78 M and 1.26 B for SSD, as
printed, and 2.11 M and 0.178 B for SSDLite, where the paper prints 0.35 B, twice what it has.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnv2_jax.errors import UsageError
from mnv2_jax.models.anchors import anchor_shapes, ssd_anchors
from mnv2_jax.models.dialect import SLIM, Dialect
from mnv2_jax.models.layers import Images, Mask, Scope, bind_conv, settings_of
from mnv2_jax.models.mobilenet import MobileNetV2, check_head

DETECTION: Dialect = SLIM._replace(bn_decay=0.9997)
"""The authors' detection models: their dialect with slower moving averages, epsilon 1e-3."""

EXTRAS = (512, 256, 256, 128)
SMALLEST_EXTRA = 16
# The authors' configuration draws predictors from a normal of 0.03, truncated at two sigmas.
predictor_init = nn.initializers.truncated_normal(stddev=0.03)


def extra_channels(extras: tuple[int, ...], width: float) -> list[tuple[int, int]]:
    """Lists the channels of the extra maps at a width, and those of the 1×1 convolutions before.

    >>> extra_channels((512, 256, 256, 128), 1.0)
    [(512, 256), (256, 128), (256, 128), (128, 64)]
    """
    scaled = ((max(int(n * width), SMALLEST_EXTRA) for n in (d, d / 2)) for d in extras)
    return [(channels, squeezed) for channels, squeezed in scaled]


def separable_extra(conv, x, channels, squeezed):
    """SSDLite's next map, half the size: 1×1 to half the channels, depthwise 3×3, 1×1."""
    x = conv(x, squeezed, name="squeeze")
    x = conv(x, squeezed, kernel=3, stride=2, depthwise=True, name="filter")
    return conv(x, channels, name="expand")


def full_extra(conv, x, channels, squeezed):
    """SSD's next map, half the size: 1×1 to half the channels, full 3×3."""
    x = conv(x, squeezed, name="squeeze")
    return conv(x, channels, kernel=3, stride=2, name="expand")


def separable_predictor(conv, x, project):
    """SSDLite's predictor: depthwise 3×3 with batch norm and ReLU6, then 1×1 with a bias."""
    x = conv(x, x.shape[-1], kernel=3, depthwise=True, name="filter")
    return project(kernel_size=(1, 1), name="project")(x)


def full_predictor(conv, x, project):
    """SSD's predictor: one full 3×3 convolution with a bias."""
    return project(kernel_size=(3, 3), name="project")(x)


class Heads(NamedTuple):
    """How a detector computes its 3×3 convolutions: what Table 5 compares.

    `extra` is (conv, x, channels, squeezed) -> the next smaller map of so many channels, with
    `squeezed` between; `predictor` is (conv, x, project) -> what is predicted from a map, where
    `project` makes an `nn.Conv` to that many numbers. For conv see `layers.bind_conv`.
    """

    extra: Callable[..., Array]
    predictor: Callable[..., Array]


SSDLITE = Heads(separable_extra, separable_predictor)
SSD = Heads(full_extra, full_predictor)
HEADS = {"ssdlite": SSDLITE, "ssd": SSD}


class SSDLite(nn.Module):
    """The detector of Sec. 6.2: float images (b, h, w, c) to codes and logits of every anchor.

    Any size of image works, square or not. The first map is the expansion in the backbone's last
    strided block (block 13 of the paper's network: 576 channels, stride 16), before its depthwise
    convolution; the second its last feature map (1280, stride 32); four extra maps follow.

    Attributes:
      num_classes: without background, for which there is one more slot.
      backbone: a `MobileNetV2` without classifier. The heads take its width, dialect, dtype,
        norm_axis, frozen_norm, activation and convolve.
      heads: `SSDLITE`, or `SSD` with full convolutions.
      extras: channels of the extra maps at width 1; at another width w they are max(int(d w), 16).

    >>> import jax
    >>> images = jax.ShapeDtypeStruct((1, 320, 320, 3), jnp.float32)
    >>> (codes, logits), _ = jax.eval_shape(SSDLite().init_with_output, jax.random.key(0), images)
    >>> codes.shape, logits.shape
    ((1, 2034, 4), (1, 2034, 81))
    """

    num_classes: int = 80
    backbone: MobileNetV2 = MobileNetV2(num_classes=None, dialect=DETECTION)
    heads: Heads = SSDLITE
    extras: tuple[int, ...] = EXTRAS

    def __post_init__(self):
        super().__post_init__()
        check_head(self.num_classes, self.backbone)
        if self.backbone.split != 1:
            raise UsageError(
                f"the backbone has split={self.backbone.split}, and SSDLite predicts from an "
                "expansion that a split never computes whole: use split=1."
            )
        self.tap()

    def tap(self) -> int:
        """Returns the block whose expansion is the first feature map: the last strided one."""
        blocks = self.backbone.layout.blocks
        strided = [i for i, b in enumerate(blocks) if b.stride > 1 and b.expansion > 1]
        if not strided:
            raise UsageError(
                f"no block of this backbone (output_stride {self.backbone.output_stride}) halves "
                "the resolution: SSDLite's first map is the expansion in the last one that does."
            )
        return strided[-1]

    def grids(self, image: tuple[int, int]) -> list[tuple[int, int]]:
        """Returns (rows, columns) of every feature map for an image of (height, width).

        >>> SSDLite().grids((320, 320))
        [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
        """
        strides = self.backbone.layout.strides
        grids = [(-(-image[0] // s), -(-image[1] // s)) for s in (strides[self.tap()], strides[-1])]
        for _ in self.extras:
            h, w = grids[-1]
            grids.append((-(-h // 2), -(-w // 2)))
        return grids

    def anchors(self, image: tuple[int, int]) -> Float[Array, "a 4"]:
        """Returns the anchors for an image of (height, width), in the order of the outputs."""
        return jnp.asarray(ssd_anchors(self.grids(image), image))

    @nn.compact
    def __call__(
        self, images: Images, train: bool = False, mask: Mask = None
    ) -> tuple[Float[Array, "b a 4"], Float[Array, "b a slots"]]:
        """Returns float32 box codes and class logits, of which slot 0 is the background.

        The arguments are `MobileNetV2`'s.
        """
        bb = self.backbone
        conv = bind_conv(settings_of(bb), bb.activation, train, mask)
        endpoints = bb.endpoints(images, train, mask)
        maps = [endpoints[f"block_{self.tap()}/expansion"], list(endpoints.values())[-1]]
        for i, (channels, squeezed) in enumerate(extra_channels(self.extras, bb.width)):
            extra = Scope(self.heads.extra, name=f"extra_{i}")
            maps.append(extra(conv, maps[-1], channels, squeezed))
        codes, logits = [], []
        for i, (x, shapes) in enumerate(zip(maps, anchor_shapes(len(maps)), strict=True)):
            for out, size, name in ((codes, 4, "boxes"), (logits, self.num_classes + 1, "classes")):
                project = partial(
                    nn.Conv, len(shapes) * size, dtype=bb.dtype, kernel_init=predictor_init,
                    conv_general_dilated=bb.convolve,
                )  # fmt: skip
                y = Scope(self.heads.predictor, name=f"{name}_{i}")(conv, x, project)
                y = y.astype(jnp.float32)
                out.append(y.reshape(y.shape[0], -1, size))  # (b, h * w * shapes, size)
        return jnp.concatenate(codes, axis=1), jnp.concatenate(logits, axis=1)
