"""MobileNetV2 in Flax NNX, whole in this file; its results are the Linen network's to the bit.

What belongs to no framework is shared with it: `mnv2_jax.models`, and `mnv2_jax.ops` for speed.

A fresh model trains, as NNX's own layers do: with the batch's statistics, which update the running
ones, and with dropout. `model.eval()` ends both, and `model.train()` begins them again, in place;
`nnx.view(model, use_running_average=True, deterministic=True)` leaves the model as it is.

>>> model = nnx.eval_shape(lambda: MobileNetV2(num_classes=10, rngs=nnx.Rngs(0)))
>>> images = jax.ShapeDtypeStruct((1, 96, 128, 3), jnp.float32)
>>> nnx.eval_shape(lambda model, images: model(images), model, images).shape
(1, 10)
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float

from mnv2_jax.errors import UsageError, shown
from mnv2_jax.models import block, layers, mobilenet
from mnv2_jax.models.layers import Images, Mask
from mnv2_jax.ops.batch_norm import Setting, expanded, is_written_out, normalized

COLLECTIONS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}  # Linen's, and NNX's for them


def as_they_are(args: Any, **_: Any) -> Any:
    """Makes `nnx.BatchNorm` keep float32 statistics, and mix them with x, as Linen's does."""
    return args


class ConvNorm(nnx.Module):
    """A convolution without bias, batch normalization, then an activation.

    Maps (b, h, w, in_channels) to (b, ceil(h / stride), ceil(w / stride), features). The options
    are the attributes of the Linen layer, `mnv2_jax.ConvNorm`, with its defaults.
    """

    def __init__(self, in_channels: int, features: int, *, rngs: nnx.Rngs, **options: Any):
        self.linen = given = layers.ConvNorm(features, parent=None, **options)
        side, stride, dilation, dialect = given.kernel, given.stride, given.dilation, given.dialect
        half = layers.pad_symmetric(0, side, stride, dilation)  # the same at every size
        self.conv = nnx.Conv(
            in_channels, features, (side, side), stride, kernel_dilation=dilation,
            padding="SAME" if dialect.padding == "same" else [half, half],
            feature_group_count=features if given.depthwise else 1, use_bias=not given.norm,
            kernel_init=layers.kernel_init if given.norm else nnx.initializers.lecun_normal(),
            dtype=given.dtype, conv_general_dilated=given.convolve, rngs=rngs,
        )  # fmt: skip
        self.norm = nnx.BatchNorm(
            features, momentum=dialect.bn_decay, epsilon=dialect.bn_epsilon, dtype=given.dtype,
            promote_dtype=as_they_are, axis_name=given.norm_axis, rngs=rngs,
        ) if given.norm else None  # fmt: skip

    def __call__(self, x: Images, mask: Mask = None) -> Float[Array, "b ho wo f"]:
        """Applies the layer; rows of the batch where the mask is 0 leave its statistics alone."""
        given, norm = self.linen, self.norm
        if norm is None:
            return given.activation(self.conv(x))
        frozen = norm.use_running_average or given.frozen_norm
        if frozen or not is_written_out(norm.axis_name):
            rows = None if mask is None else mask.reshape(-1, 1, 1, 1) > 0
            with jax.numpy_dtype_promotion("standard"):
                out = norm(self.conv(x), frozen, mask=rows)
            return given.activation(out)
        # Fast in training on CPUs and GPUs, and right over several devices: see `ops.batch_norm`.
        if layers.expands(given, x.shape[-1]):
            kernel = self.conv.kernel[0, 0].astype(given.dtype)
            form, operands = expanded, (x.astype(given.dtype), kernel)
        else:
            form, operands = normalized, (self.conv(x),)
        setting = Setting(norm.epsilon, given.activation, norm.axis_name, given.dtype)
        affine = norm.scale[...], norm.bias[...]  # pyright: ignore[reportOptionalSubscript]
        out, *moments, count = form(*operands, *affine, mask, setting)
        share = jnp.where(count > 0, 1 - norm.momentum, 0.0)  # none where no row counts
        for running, now in zip((norm.mean, norm.var), moments, strict=True):
            running[...] = lax.stop_gradient((1 - share) * running[...] + share * now)
        return out


class InvertedResidual(nnx.Module):
    """The building block of MobileNetV2 (Sec. 3.2–3.4, Table 1): expand, filter, project.

    Maps (b, h, w, in_channels) to (b, ceil(h / stride), ceil(w / stride), channels). The options
    are the attributes of `mnv2_jax.InvertedResidual`, such as `bottleneck` (Fig. 6a), `shortcut`
    (Fig. 6b) and maps of one's own. The layers are those that the maps ask for, by their names.
    `UsageError` for maps that give another shape than the block's, and for `split` above 1.
    """

    def __init__(
        self, in_channels: int, channels: int, expansion: int = 6, stride: int = 1,
        dilation: int = 1, *, rngs: nnx.Rngs, **options: Any,
    ):  # fmt: skip
        self.linen = given = block.InvertedResidual(
            channels, expansion, stride, dilation, parent=None, **options
        )
        for name, none in (("split", 1), ("stochastic_depth", 0)):
            if (value := getattr(given, name)) > none:
                what = f"{name} is {value}: only the Linen network has it. Inference does without"
                raise UsageError(f"{what}: give {none}, or to twin network.clone({name}={none}).")
        asked: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}

        def ask(x: Array, features: int, *, name: str, stride: int = 1, **window: Any) -> Array:
            """Notes a layer, and gives something of the shape that the layer will give."""
            asked[name] = (x.shape[-1], features), {"stride": stride, **window}
            return jnp.zeros((1, *(-(-n // stride) for n in x.shape[1:3]), features), given.dtype)

        thin = jax.ShapeDtypeStruct((1, 8, 8, in_channels), given.dtype)  # of any size
        jax.eval_shape(lambda thin: self.wire(thin, None, conv=ask), thin)
        shared = layers.settings_of(given) | {"activation": given.activation}
        for name, (sizes, window) in asked.items():
            setattr(self, name, ConvNorm(*sizes, **shared | window, rngs=rngs))

    def __call__(self, x: Images, mask: Mask = None) -> Float[Array, "b ho wo k"]:
        """Applies one block on its own."""
        return self.wire(x, None, mask)[0]

    def wire(
        self, thin: Images, wide: Array | None, mask: Mask = None, conv: Any = None
    ) -> tuple[Array, Array | None, Array | None]:
        """Applies the block to a bottleneck, and the expanded tensor that the one before passes on.

        Returns the bottleneck, the expanded tensor to pass on, and the one that was filtered. The
        block's layers are applied by `conv`, if it is given: see `mnv2_jax.models.block.Map`.
        """
        given, c, entering = self.linen, thin.shape[-1], None
        norms = [layer.norm for _, layer in nnx.iter_children(self)]
        info = block.BlockInfo(
            c, c * given.expansion, given.channels, given.stride, given.dilation, given.activation,
            given.bottleneck, any(norm and not norm.use_running_average for norm in norms),
        )  # fmt: skip
        conv = conv or (lambda x, *_, name, **__: getattr(self, name)(x, mask))

        def filter_(x: Array) -> Array:
            nonlocal entering
            entering = x
            return given.filter(conv, x, info)

        expand, project = given.expand, given.project
        maps = (lambda x: expand(conv, x, info), filter_, lambda x: project(conv, x, info))
        expected = (*(-(-n // given.stride) for n in thin.shape[1:3]), given.channels)
        thin, wide = given.shortcut(*maps, thin, wide, given.stride)
        block.check_output("the block", thin.shape[1:], expected)
        return thin, wide, entering


class MobileNetV2(nnx.Module):
    """The network of Table 2: float images (b, h, w, in_channels) to float32 logits (b, classes).

    Args:
      num_classes: size of the classifier; None leaves it out.
      width: the multiplier of Sec. 4.
      rngs: with the streams `params` and `dropout`, or a default one.
      **options: `output_stride`, `spec`, `in_channels`, `dropout`, `dialect`, `bottleneck`,
        `shortcut` and all else that `mnv2_jax.MobileNetV2` has, with its defaults and its errors.

    `linen` is the Linen network of these options: for `account`, `fold`, `export` and the like.
    """

    def __init__(
        self, num_classes: int | None = 1000, width: float = 1.0, *, rngs: nnx.Rngs, **options: Any
    ):
        self.linen = given = mobilenet.MobileNetV2(num_classes, width, parent=None, **options)
        layout, ends = given.layout, layers.settings_of(given) | {"activation": given.activation}
        first = {"kernel": 3, "stride": layout.stem_stride, **ends}
        self.stem = ConvNorm(given.in_channels, layout.stem, rngs=rngs, **first)
        shared = layers.settings_of(given, block.BlockSettings)
        for i, row in enumerate(layout.blocks):
            setattr(self, f"block_{i}", InvertedResidual(*row, rngs=rngs, **shared))
        channels = layout.blocks[-1].channels
        if layout.last is not None:
            self.last = ConvNorm(channels, layout.last, rngs=rngs, **ends)
            channels = layout.last
        if num_classes is not None:
            self.dropout, init = nnx.Dropout(given.dropout, rngs=rngs), layers.classifier_init
            self.classifier = nnx.Linear(channels, num_classes, kernel_init=init, rngs=rngs)

    def __call__(self, images: Images, mask: Mask = None) -> Float[Array, "b ..."]:
        """Returns the logits, or the last feature map where there is no classifier.

        Rows where the mask is 0 take no part in statistics. `UsageError` for images of other form.
        """
        return list(self.endpoints(images, mask).values())[-1]

    def pyramid(self, images: Images, mask: Mask = None) -> dict[int, Array]:
        """Returns the features of `linen.layout.stages` by stride."""
        endpoints = self.endpoints(images, mask)
        return {stride: endpoints[name] for stride, (name, _) in self.linen.layout.stages.items()}

    def endpoints(self, images: Images, mask: Mask = None) -> dict[str, Array]:
        """Returns every named tensor, in order, as `mnv2_jax.MobileNetV2.endpoints` does."""
        mobilenet.check_images(images, self.linen.in_channels)
        x = self.stem(images, mask)
        found, wide = {"stem": x}, None
        for i in range(len(self.linen.layout.blocks)):
            x, wide, expansion = getattr(self, f"block_{i}").wire(x, wide, mask)
            if expansion is not None:
                found[f"block_{i}/expansion"] = expansion
            found[f"block_{i}"] = x
        if self.linen.layout.last is not None:
            found["last"] = x = self.last(x, mask)
        if self.linen.num_classes is not None:
            found["pooled"] = x = x.astype(jnp.float32).mean(axis=(1, 2))
            found["logits"] = self.classifier(self.dropout(x))
        return found


def twin(
    linen: mobilenet.MobileNetV2, variables: Mapping[str, Any], rngs: nnx.Rngs | None = None
) -> MobileNetV2:
    """Makes the model of a Linen network and its variables, such as `load_weights` gives.

    Initializes nothing. `rngs` are for dropout in training. For errors see `from_linen`.
    """
    if not isinstance(linen, mobilenet.MobileNetV2):
        raise UsageError(f"the network is {shown(linen)}: give a MobileNetV2 of Linen.")
    options = layers.settings_of(linen, mobilenet.MobileNetV2)
    model = nnx.eval_shape(lambda: MobileNetV2(**options, rngs=nnx.Rngs(0)))
    if linen.num_classes is not None:
        model.dropout = nnx.Dropout(linen.dropout, rngs=rngs)
    return from_linen(model, variables)


def from_linen(model: MobileNetV2, variables: Mapping[str, Any]) -> MobileNetV2:
    """Sets a model's parameters and statistics to a Linen network's, in place, and returns it.

    Arrays are copied, to float32. `UsageError` lists what does not fit; then nothing is set.
    """
    flat, held = (flatten_dict({**tree}, sep="/") for tree in (variables, to_linen(model)))
    given, own = ({k: list(np.shape(v)) for k, v in tree.items()} for tree in (flat, held))
    if wrong := sorted(name for name in own | given if own.get(name) != given.get(name)):
        what = f"{len(wrong)} of the variables do not fit the model, and nothing was set"
        has = [(shown(k), given.get(k, "missing"), own.get(k, "left out")) for k in wrong]
        told = [f"{name} is {is_} and has to be {wanted}" for name, is_, wanted in has]
        raise UsageError(f"{what}: {'; '.join([*told[:4], '…'][: len(told)])}.")
    arrays = {name: jnp.array(leaf, jnp.float32) for name, leaf in flat.items()}
    nnx.update(model, *unflatten_dict(arrays, sep="/").values())
    return model


def to_linen(model: nnx.Module) -> dict[str, Any]:
    """Returns the variables of a Linen network; the arrays are the model's own, not copies."""
    return {name: nnx.to_pure_dict(nnx.state(model, of)) for name, of in COLLECTIONS.items()}
