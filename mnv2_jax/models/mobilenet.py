"""MobileNetV2 as a Linen module: Table 2's backbone with named endpoints, and the classifier."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnv2_jax.errors import UsageError
from mnv2_jax.models.block import BlockSettings, InvertedResidual
from mnv2_jax.models.dialect import Dialect
from mnv2_jax.models.layers import Images, Mask, bind_conv, classifier_init, settings_of
from mnv2_jax.models.spec import IMAGENET, Layout, Spec, unroll


class MobileNetV2(BlockSettings):
    """The network of Table 2: float images (b, h, w, in_channels) to float32 logits (b, classes).

    Any size of image works, square or not. `model.endpoints` gives every intermediate by name,
    `model.pyramid` the features by stride. For the other attributes see `BlockSettings`;
    `activation` is also that of the first and the last convolution.

    Attributes:
      num_classes: size of the classifier; None leaves it out, and the network returns the last
        feature map.
      width, output_stride, spec: see `spec.unroll`.
      in_channels: of the images; anything else is refused.
      dropout: rate before the classifier; above 0, training needs an rng named "dropout".
      class_offset: 1 where class 0 of the logits is "background" (1001 classes for ImageNet).

    >>> import jax
    >>> model = MobileNetV2(num_classes=10)
    >>> images = jax.ShapeDtypeStruct((1, 96, 128, 3), jnp.float32)
    >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    >>> logits.shape, sorted(variables)
    ((1, 10), ['batch_stats', 'params'])
    """

    num_classes: int | None = 1000
    width: float = 1.0
    output_stride: int | None = None
    spec: Spec = IMAGENET
    in_channels: int = 3
    dropout: float = 0.2
    class_offset: int = 0

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.spec, Spec):
            raise UsageError(f"spec is {self.spec!r}: give a Spec, such as SPECS['imagenet'].")
        self.layout  # noqa: B018 -- refuses what cannot be unrolled
        if not isinstance(self.dialect, Dialect):
            raise UsageError(
                f"dialect is {self.dialect!r}: give a Dialect, such as DIALECTS['slim']."
            )
        if self.num_classes is not None and self.num_classes < 1:
            raise UsageError(
                f"num_classes is {self.num_classes!r}: give at least 1, or None for no classifier."
            )
        if self.class_offset not in (0, 1):
            raise UsageError(
                f"class_offset is {self.class_offset!r}: it is 1 where class 0 is background, "
                "else 0."
            )

    @property
    def layout(self) -> Layout:
        """The unrolled architecture."""
        return unroll(self.width, self.output_stride, self.spec)

    def __call__(
        self, images: Images, train: bool = False, mask: Mask = None
    ) -> Float[Array, "b ..."]:
        """Returns the logits, or the last feature map where there is no classifier.

        Args:
          images: in the dialect's input range (`normalize` maps pixels to it).
          train: use and update batch statistics (`mutable=["batch_stats"]`), and drop features.
          mask: rows of the batch that are 0 here take no part in batch statistics.

        Raises:
          UsageError: the images are not floats of shape (b, h, w, in_channels).
        """
        return list(self.endpoints(images, train, mask).values())[-1]

    def pyramid(self, images: Images, train: bool = False, mask: Mask = None) -> dict[int, Array]:
        """Returns the features of `layout.stages` by stride: `apply(..., method="pyramid")`."""
        endpoints = self.endpoints(images, train, mask)
        return {stride: endpoints[name] for stride, (name, _) in self.layout.stages.items()}

    @nn.compact
    def endpoints(self, images: Images, train: bool = False, mask: Mask = None) -> dict[str, Array]:
        """Returns every named tensor of the network, in order: `apply(..., method="endpoints")`.

        The names are `stem`; for every block i from 0, `block_i/expansion` (the expanded tensor
        that enters its depthwise convolution; left out where Sec. 5.1's split never makes it) and
        `block_i` (its bottleneck); `last` (the 1280 channels), `pooled` and `logits`.
        """
        check_images(images, self.in_channels)
        layout, shared = self.layout, settings_of(self, BlockSettings)
        conv = bind_conv(settings_of(self), self.activation, train, mask)
        x = conv(images, layout.stem, kernel=3, stride=layout.stem_stride, name="stem")
        found, wide = {"stem": x}, None
        for i, block in enumerate(layout.blocks):
            # timm's line, which ends one block after the last.
            shared["stochastic_depth"] = self.stochastic_depth * i / len(layout.blocks)
            one = InvertedResidual(*block[1:], name=f"block_{i}", **shared)
            x, wide, expansion = one.wire(x, wide, train, mask)
            if expansion is not None:
                found[f"block_{i}/expansion"] = expansion
            found[f"block_{i}"] = x
        if layout.last is not None:
            found["last"] = x = conv(x, layout.last, name="last")
        if self.num_classes is not None:
            found["pooled"] = x = x.astype(jnp.float32).mean(axis=(1, 2))
            x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
            dense = nn.Dense(self.num_classes, kernel_init=classifier_init, name="classifier")
            found["logits"] = dense(x)
        return found


def check_head(num_classes: int, backbone: MobileNetV2) -> None:
    """Raises UsageError where there are no classes, or the backbone has a classifier."""
    if num_classes < 1:
        raise UsageError(f"num_classes is {num_classes!r}: give at least 1.")
    if backbone.num_classes is not None:
        raise UsageError(
            f"the backbone has a classifier of {backbone.num_classes} classes: build it with "
            "num_classes=None."
        )


def check_images(images: Array, in_channels: int) -> None:
    """Raises UsageError for anything but a batch of float images of `in_channels` channels."""
    if images.ndim != 4:
        hint = " For one image, add an axis: image[None]." if images.ndim == 3 else ""
        raise UsageError(
            f"images have shape {images.shape}: 4 axes are needed, (batch, height, width, "
            f"{in_channels}).{hint}"
        )
    if images.shape[-1] != in_channels:
        raise UsageError(
            f"images have shape {images.shape}, so {images.shape[-1]} channels where this network "
            f"takes {in_channels}: convert them, or build it with in_channels={images.shape[-1]}."
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UsageError(
            f"images are {images.dtype}: the network takes floats in its dialect's range; "
            "normalize(images, dialect) maps pixels 0..255 to it."
        )
