"""How each ecosystem names MobileNetV2's tensors and orders their axes, as tables."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from mnv2_jax.models.block import Map, always_expand, standard_expand
from mnv2_jax.models.dialect import HF, KERAS, SLIM, TIMM, TORCHVISION, Dialect
from mnv2_jax.models.spec import IMAGENET, MMSEG, PADDLE, Spec

PARTS = ("conv", "depthwise", "scale", "bias", "mean", "var", "head_kernel", "head_bias")


class Framework(NamedTuple):
    """How a framework names and orders the tensors of a convolution, batch norm and classifier.

    Our order of axes is (height, width, in, out) for convolutions and (in, out) for the head.
    """

    leaves: Mapping[str, str]  # what follows the name of the layer, by our name of the tensor
    axes: Mapping[str, tuple[int, ...]]  # that bring a tensor into our order, by its kind
    head_is_conv: bool = False  # the classifier is written as a 1×1 convolution
    ignored: tuple[str, ...] = ()  # endings of names that belong to the training


def _leaves(separator: str, names: str) -> dict[str, str]:
    return {part: separator + name for part, name in zip(PARTS, names.split(), strict=True)}


TORCH = Framework(
    _leaves(".", "weight weight weight bias running_mean running_var weight bias"),
    {"conv": (2, 3, 1, 0), "depthwise": (2, 3, 1, 0), "head": (1, 0), "vector": (0,)},
    ignored=(".num_batches_tracked",),
)
PADDLEPADDLE = Framework(
    _leaves(".", "weight weight weight bias _mean _variance weight bias"),
    {**TORCH.axes, "head": (0, 1)},
)
_NORM = "gamma beta moving_mean moving_variance"
TF_SLIM = Framework(
    _leaves("/", f"weights depthwise_weights {_NORM} weights biases"),
    # A depthwise kernel is (3, 3, channels, 1).
    {"conv": (0, 1, 2, 3), "depthwise": (0, 1, 3, 2), "head": (0, 1), "vector": (0,)},
    head_is_conv=True,
    ignored=("global_step",),
)
# Keras 3 calls a depthwise kernel "kernel"; the reader renames older files' "depthwise_kernel".
KERAS_LAYERS = Framework(_leaves("/", f"kernel kernel {_NORM} kernel bias"), TF_SLIM.axes)

Pair = tuple[str, str]  # the names of a convolution and of its batch norm


class Segmenter(NamedTuple):
    """How a publisher names the head of Mobile DeepLabv3 (Sec. 6.3), without pyramid or decoder."""

    layers: Mapping[str, Pair]  # its convolutions, by our name
    classifier: str  # the logits, a 1×1 convolution with a bias
    keeps_last: bool  # the file holds the last 1×1 convolution, which the segmenter does not use


class Detector(NamedTuple):
    """How a publisher names the layers of SSDLite (Sec. 6.2) that follow the backbone.

    `{map}` counts feature maps from 0, of which the first two are the backbone's; `{squeezed}` and
    `{channels}` are the channels inside and at the end of an extra one.
    """

    extra: Mapping[str, Pair]  # the layers of an extra map, by our name
    # By our name, what its 1×1 convolution is called, and its depthwise one.
    predictors: Mapping[str, tuple[str, Pair]]


class Ecosystem(NamedTuple):
    """How one publisher names the layers of MobileNetV2.

    In the templates `{i}` counts blocks from 0, `{next}` from 1 and `{before}` from -1; `{stage}`
    and `{index}` are the row of Table 2 and the place in it, `{row}` counts rows from 1; `{after}`
    follows the last `{next}`, and `{paddle}` is the whole path of a block in PaddleClas.
    """

    name: str  # what users write before the colon
    title: str  # its name in messages
    framework: Framework
    dialect: Dialect  # of the networks that its weights were trained in
    dropout: float  # before the classifier, in training
    stem: Pair
    thin: Mapping[str, Pair]  # the layers of a block of t = 1, which mostly does not expand
    wide: Mapping[str, Pair]  # the layers of every other block
    last: Pair
    head: str  # the classifier; empty where it publishes backbones of other tasks
    segmenter: Segmenter | None = None  # None where it publishes none
    detector: Detector | None = None  # likewise
    class_offset: int = 0  # 1 where class 0 of its 1001 is "background"
    spec: Spec = IMAGENET
    output_stride: int | None = None  # of its backbones

    @property
    def expand(self) -> Map:
        """The expanding map of its blocks."""
        return always_expand if "expand" in self.thin else standard_expand


def _suffixed(conv: str, norm: str) -> Callable[[str], Pair]:
    return lambda layer: (layer + conv, layer + norm)


_slim, _keras = _suffixed("", "/BatchNorm"), _suffixed("", "_BN")
_hf, _mm = _suffixed(".convolution", ".normalization"), _suffixed(".conv", ".bn")
_paddle = _suffixed("._conv", "._batch_norm")


def _sequential(layer: str) -> Pair:
    """In a `torch.nn.Sequential` the batch norm follows its convolution."""
    parent, _, index = layer.rpartition(".")
    return layer, f"{parent}.{int(index) + 1}"


def _block(
    names: Callable[[str], Pair],
    prefix: str,
    *layers: str,
    ours: tuple[str, ...] = ("expand", "filter", "project"),
) -> dict[str, Pair]:
    """Names the layers of a block, or the last ones of them."""
    ours = ours[-len(layers) :]
    return {key: names(prefix + layer) for key, layer in zip(ours, layers, strict=True)}


def _timm(*layers: str) -> dict[str, Pair]:
    place = "blocks.{stage}.{index}."
    norms = iter(f"{place}bn{i}" for i in (1, 2, 3))
    return _block(lambda layer: (layer, next(norms)), place, *layers)


_PADDLE = _block(_paddle, "{paddle}.", "_expand_conv", "_bottleneck_conv", "_linear_conv")
HEAD = ("pooling", "aspp_0", "projection")
EXTRA = ("squeeze", "filter", "expand")


def _predictor(name: str) -> tuple[str, Pair]:
    return f"BoxPredictor_{{map}}/{name}", _slim(f"BoxPredictor_{{map}}/{name}_depthwise")


_ALL = (
    Ecosystem(
        name="slim",
        title="TF-slim, the authors' own",
        framework=TF_SLIM,
        dialect=SLIM,
        dropout=0.2,
        stem=_slim("MobilenetV2/Conv"),
        thin=_block(_slim, "MobilenetV2/expanded_conv/", "depthwise", "project"),
        wide=_block(_slim, "MobilenetV2/expanded_conv_{i}/", "expand", "depthwise", "project"),
        last=_slim("MobilenetV2/Conv_1"),
        head="MobilenetV2/Logits/Conv2d_1c_1x1",
        class_offset=1,
        segmenter=Segmenter(
            layers=_block(_slim, "", "image_pooling", "aspp0", "concat_projection", ours=HEAD),
            classifier="logits/semantic",
            keeps_last=False,
        ),
        # of the Object Detection API, whose layer_19 is the last 1×1 convolution
        detector=Detector(
            extra=_block(
                _slim,
                "MobilenetV2/layer_19_",
                "1_Conv2d_{map}_1x1_{squeezed}",
                "2_Conv2d_{map}_3x3_s2_{channels}_depthwise",
                "2_Conv2d_{map}_3x3_s2_{channels}",
                ours=EXTRA,
            ),
            predictors={
                "boxes": _predictor("BoxEncodingPredictor"),
                "classes": _predictor("ClassPredictor"),
            },
        ),
    ),
    Ecosystem(
        name="keras",
        title="Keras Applications",
        framework=KERAS_LAYERS,
        dialect=KERAS,
        dropout=0.0,
        stem=("Conv1", "bn_Conv1"),
        thin=_block(_keras, "expanded_conv_", "depthwise", "project"),
        wide=_block(_keras, "block_{i}_", "expand", "depthwise", "project"),
        last=("Conv_1", "Conv_1_bn"),
        head="predictions",
    ),
    Ecosystem(
        name="torchvision",
        title="torchvision",
        framework=TORCH,
        dialect=TORCHVISION,
        dropout=0.2,
        stem=_sequential("features.0.0"),
        thin=_block(_sequential, "features.{next}.conv.", "0.0", "1"),
        wide=_block(_sequential, "features.{next}.conv.", "0.0", "1.0", "2"),
        last=_sequential("features.{after}.0"),
        head="classifier.1",
    ),
    Ecosystem(
        name="timm",
        title="timm",
        framework=TORCH,
        dialect=TIMM,
        dropout=0.0,
        stem=("conv_stem", "bn1"),
        thin=_timm("conv_dw", "conv_pw"),
        wide=_timm("conv_pw", "conv_dw", "conv_pwl"),
        last=("conv_head", "bn2"),
        head="classifier",
    ),
    Ecosystem(
        name="hf",
        title="Hugging Face transformers",
        framework=TORCH,
        dialect=HF,
        # Its configuration says 0.8, slim's *keep* probability read as a rate; 0.2 is what it was.
        dropout=0.2,
        stem=_hf("mobilenet_v2.conv_stem.first_conv"),
        thin=_block(_hf, "mobilenet_v2.conv_stem.", "conv_3x3", "reduce_1x1"),
        wide=_block(_hf, "mobilenet_v2.layer.{before}.", "expand_1x1", "conv_3x3", "reduce_1x1"),
        last=_hf("mobilenet_v2.conv_1x1"),
        head="classifier",
        class_offset=1,
        segmenter=Segmenter(
            layers=_block(
                _hf, "segmentation_head.", "conv_pool", "conv_aspp", "conv_projection", ours=HEAD
            ),
            classifier="segmentation_head.classifier.convolution",
            keeps_last=True,
        ),
    ),
    Ecosystem(
        name="d-li14",
        title="d-li14/mobilenetv2.pytorch",
        framework=TORCH,
        dialect=TORCHVISION,
        dropout=0.2,
        stem=_sequential("features.0.0"),
        thin=_block(_sequential, "features.{next}.conv.", "0", "3"),
        wide=_block(_sequential, "features.{next}.conv.", "0", "3", "6"),
        last=_sequential("conv.0"),
        head="classifier",
    ),
    Ecosystem(
        name="mmpretrain",
        title="OpenMMLab's mmpretrain, once mmclassification",
        framework=TORCH,
        dialect=TORCHVISION,
        dropout=0.0,
        stem=_mm("backbone.conv1"),
        thin=_block(_mm, "backbone.layer{row}.{index}.conv.", "0", "1"),
        wide=_block(_mm, "backbone.layer{row}.{index}.conv.", "0", "1", "2"),
        last=_mm("backbone.conv2"),
        head="head.fc",
    ),
    Ecosystem(
        name="paddleclas",
        title="PaddleClas",
        framework=PADDLEPADDLE,
        dialect=TORCHVISION,
        dropout=0.0,
        stem=_paddle("conv1"),
        thin=_PADDLE,  # which has an expansion
        wide=_PADDLE,
        last=_paddle("conv9"),
        head="out",
        spec=PADDLE,
    ),
)
_OF = {ecosystem.name: ecosystem for ecosystem in _ALL}
# tonylins differs from d-li14 in the place of the last convolution.
_TONYLINS = _OF["d-li14"]._replace(
    name="tonylins",
    title="tonylins/pytorch-mobilenet-v2",
    last=_sequential("features.{after}.0"),
)
# The backbone alone: the heads of its segmenters are other networks than ours.
_MMSEG = _OF["mmpretrain"]._replace(
    name="mmseg", title="OpenMMLab's mmsegmentation", head="", spec=MMSEG, output_stride=8
)

ECOSYSTEMS: dict[str, Ecosystem] = _OF | {own.name: own for own in (_TONYLINS, _MMSEG)}
