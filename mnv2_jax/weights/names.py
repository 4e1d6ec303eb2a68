"""How each ecosystem names MobileNetV2's tensors and lays them out, as tables.

An `Ecosystem` is data: templates for the names of the convolutions, which leaves a convolution and
its batch norm have, and the order of a tensor's axes. `mnv2_jax.weights.tensors` reads it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from mnv2_jax.models.dialect import HF, KERAS, SLIM, TIMM, TORCHVISION, Dialect


class Framework(NamedTuple):
    """The leaves and axes that a framework gives every convolution, batch norm and classifier.

    Attributes:
      leaves: our leaf to their name; `{conv}`, `{norm}` and `{head}` are their layers.
      conv, depthwise, head: the axes that bring a kernel of theirs into our order, which is
        (height, width, in, out) and (in, out) for the head.
      head_is_conv: whether the classifier is written as a 1×1 convolution.
      ignored: endings of names that belong to training and not to the network.
    """

    leaves: Mapping[str, str]
    conv: tuple[int, ...]
    depthwise: tuple[int, ...]
    head: tuple[int, int]
    head_is_conv: bool
    ignored: tuple[str, ...]


TORCH = Framework(
    leaves={
        "conv": "{conv}.weight",
        "depthwise": "{conv}.weight",
        "scale": "{norm}.weight",
        "bias": "{norm}.bias",
        "mean": "{norm}.running_mean",
        "var": "{norm}.running_var",
        "head_kernel": "{head}.weight",
        "head_bias": "{head}.bias",
    },
    conv=(2, 3, 1, 0),
    depthwise=(2, 3, 1, 0),
    head=(1, 0),
    head_is_conv=False,
    ignored=(".num_batches_tracked",),
)

TF_SLIM = Framework(
    leaves={
        "conv": "{conv}/weights",
        "depthwise": "{conv}/depthwise_weights",
        "scale": "{norm}/gamma",
        "bias": "{norm}/beta",
        "mean": "{norm}/moving_mean",
        "var": "{norm}/moving_variance",
        "head_kernel": "{head}/weights",
        "head_bias": "{head}/biases",
    },
    conv=(0, 1, 2, 3),
    depthwise=(0, 1, 3, 2),  # theirs is (3, 3, channels, 1)
    head=(0, 1),
    head_is_conv=True,
    ignored=("global_step",),
)

# Keras 3 calls a depthwise kernel "kernel"; the reader renames older files' "depthwise_kernel".
KERAS_LAYERS = TF_SLIM._replace(
    leaves={
        "conv": "{conv}/kernel",
        "depthwise": "{conv}/kernel",
        "scale": "{norm}/gamma",
        "bias": "{norm}/beta",
        "mean": "{norm}/moving_mean",
        "var": "{norm}/moving_variance",
        "head_kernel": "{head}/kernel",
        "head_bias": "{head}/bias",
    },
    head_is_conv=False,
    ignored=(),
)

Pair = tuple[str, str]  # a convolution and its batch norm


class Segmenter(NamedTuple):
    """What a publisher calls the head of Mobile DeepLabv3 (Sec. 6.3), without pyramid or decoder.

    Attributes:
      pooling, aspp_0, projection: our layers.
      classifier: the logits, a 1×1 convolution with a bias.
      keeps_last: whether the file also holds the backbone's last 1×1 convolution, which the paper
        drops and the segmenter computes nothing from.
    """

    pooling: Pair
    aspp_0: Pair
    projection: Pair
    classifier: str
    keeps_last: bool


class Ecosystem(NamedTuple):
    """One publisher's names.

    In the templates `{i}` counts blocks from 0, `{next}` from 1 and `{before}` from -1; `{stage}`
    and `{index}` are the row of Table 2 and the place in it; `{after}` follows the last `{next}`.

    Attributes:
      name: what users write before the colon.
      title: what it is called in messages.
      framework: leaves and axes.
      dialect: what the weights were trained with.
      dropout: before the classifier, in training.
      stem, last: the convolutions outside the blocks.
      thin: the first block, which does not expand.
      wide: the other blocks.
      head: the classifier.
      segmenter: the head of its DeepLabv3; None where it publishes none.
    """

    name: str
    title: str
    framework: Framework
    dialect: Dialect
    dropout: float
    stem: Pair
    thin: Mapping[str, Pair]
    wide: Mapping[str, Pair]
    last: Pair
    head: str
    segmenter: Segmenter | None = None


def _slim(layer: str) -> Pair:
    return f"MobilenetV2/{layer}", f"MobilenetV2/{layer}/BatchNorm"


def _hf(layer: str) -> Pair:
    return f"mobilenet_v2.{layer}.convolution", f"mobilenet_v2.{layer}.normalization"


def _hf_head(layer: str) -> Pair:
    return f"segmentation_head.{layer}.convolution", f"segmentation_head.{layer}.normalization"


FLAT_THIN = {
    "filter": ("features.{next}.conv.0", "features.{next}.conv.1"),
    "project": ("features.{next}.conv.3", "features.{next}.conv.4"),
}
FLAT_WIDE = {
    "expand": ("features.{next}.conv.0", "features.{next}.conv.1"),
    "filter": ("features.{next}.conv.3", "features.{next}.conv.4"),
    "project": ("features.{next}.conv.6", "features.{next}.conv.7"),
}

_ALL = (
    Ecosystem(
        name="slim",
        title="TF-slim, the authors' own",
        framework=TF_SLIM,
        dialect=SLIM,
        dropout=0.2,
        stem=_slim("Conv"),
        thin={
            "filter": _slim("expanded_conv/depthwise"),
            "project": _slim("expanded_conv/project"),
        },
        wide={
            "expand": _slim("expanded_conv_{i}/expand"),
            "filter": _slim("expanded_conv_{i}/depthwise"),
            "project": _slim("expanded_conv_{i}/project"),
        },
        last=_slim("Conv_1"),
        head="MobilenetV2/Logits/Conv2d_1c_1x1",
        segmenter=Segmenter(
            pooling=("image_pooling", "image_pooling/BatchNorm"),
            aspp_0=("aspp0", "aspp0/BatchNorm"),
            projection=("concat_projection", "concat_projection/BatchNorm"),
            classifier="logits/semantic",
            keeps_last=False,
        ),
    ),
    Ecosystem(
        name="keras",
        title="Keras Applications",
        framework=KERAS_LAYERS,
        dialect=KERAS,
        dropout=0.0,
        stem=("Conv1", "bn_Conv1"),
        thin={
            "filter": ("expanded_conv_depthwise", "expanded_conv_depthwise_BN"),
            "project": ("expanded_conv_project", "expanded_conv_project_BN"),
        },
        wide={
            "expand": ("block_{i}_expand", "block_{i}_expand_BN"),
            "filter": ("block_{i}_depthwise", "block_{i}_depthwise_BN"),
            "project": ("block_{i}_project", "block_{i}_project_BN"),
        },
        last=("Conv_1", "Conv_1_bn"),
        head="predictions",
    ),
    Ecosystem(
        name="torchvision",
        title="torchvision",
        framework=TORCH,
        dialect=TORCHVISION,
        dropout=0.2,
        stem=("features.0.0", "features.0.1"),
        thin={
            "filter": ("features.{next}.conv.0.0", "features.{next}.conv.0.1"),
            "project": ("features.{next}.conv.1", "features.{next}.conv.2"),
        },
        wide={
            "expand": ("features.{next}.conv.0.0", "features.{next}.conv.0.1"),
            "filter": ("features.{next}.conv.1.0", "features.{next}.conv.1.1"),
            "project": ("features.{next}.conv.2", "features.{next}.conv.3"),
        },
        last=("features.{after}.0", "features.{after}.1"),
        head="classifier.1",
    ),
    Ecosystem(
        name="timm",
        title="timm",
        framework=TORCH,
        dialect=TIMM,
        dropout=0.0,
        stem=("conv_stem", "bn1"),
        thin={
            "filter": ("blocks.{stage}.{index}.conv_dw", "blocks.{stage}.{index}.bn1"),
            "project": ("blocks.{stage}.{index}.conv_pw", "blocks.{stage}.{index}.bn2"),
        },
        wide={
            "expand": ("blocks.{stage}.{index}.conv_pw", "blocks.{stage}.{index}.bn1"),
            "filter": ("blocks.{stage}.{index}.conv_dw", "blocks.{stage}.{index}.bn2"),
            "project": ("blocks.{stage}.{index}.conv_pwl", "blocks.{stage}.{index}.bn3"),
        },
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
        stem=_hf("conv_stem.first_conv"),
        thin={
            "filter": _hf("conv_stem.conv_3x3"),
            "project": _hf("conv_stem.reduce_1x1"),
        },
        wide={
            "expand": _hf("layer.{before}.expand_1x1"),
            "filter": _hf("layer.{before}.conv_3x3"),
            "project": _hf("layer.{before}.reduce_1x1"),
        },
        last=_hf("conv_1x1"),
        head="classifier",
        segmenter=Segmenter(
            pooling=_hf_head("conv_pool"),
            aspp_0=_hf_head("conv_aspp"),
            projection=_hf_head("conv_projection"),
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
        stem=("features.0.0", "features.0.1"),
        thin=FLAT_THIN,
        wide=FLAT_WIDE,
        last=("conv.0", "conv.1"),
        head="classifier",
    ),
    Ecosystem(
        name="tonylins",
        title="tonylins/pytorch-mobilenet-v2",
        framework=TORCH,
        dialect=TORCHVISION,
        dropout=0.2,
        stem=("features.0.0", "features.0.1"),
        thin=FLAT_THIN,
        wide=FLAT_WIDE,
        last=("features.{after}.0", "features.{after}.1"),
        head="classifier",
    ),
)

ECOSYSTEMS: dict[str, Ecosystem] = {ecosystem.name: ecosystem for ecosystem in _ALL}
