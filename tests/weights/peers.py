"""The published implementations of MobileNetV2, with random weights and statistics, as oracles.

`peer(ecosystem, variant)` builds one as its own package does, fills it, and gives its tensors under
its own names and its logits. slim needs TensorFlow 1, so Hugging Face's port of it computes for it,
under the names that its conversion script lists. d-li14 and tonylins are no packages, and what
mmpretrain needs is not made for each Python: their layer structure is rebuilt here from `torch.nn`,
which then names the tensors by itself. `numpy_peers` has PaddleClas and mmsegmentation.
"""

import importlib
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
TIMM = (
    "mobilenetv2_035",
    "mobilenetv2_050",
    "mobilenetv2_075",
    "mobilenetv2_100",
    "mobilenetv2_110d",
    "mobilenetv2_120d",
    "mobilenetv2_140",
)
VARIANTS: dict[str, tuple] = {
    "slim": WIDTHS,
    "keras": WIDTHS,
    "torchvision": WIDTHS,
    "timm": TIMM,
    "hf": WIDTHS,
    "d-li14": WIDTHS,
    "tonylins": (0.5, 1.0, 1.4),
    "mmpretrain": (1.0, 0.5, 1.4),
    "paddleclas": (0.25, 1.0, 2.0),
    "mmseg": (0.5, 1.0),
}
# Widths and output strides of the segmenters.
SEGMENTERS: dict[str, tuple] = {
    "slim": ((1.0, 16),),
    "hf": ((0.5, 16), (1.0, 16), (1.4, 16), (1.0, 8), (0.35, 32)),
}
CLASSES = 11

TABLE_2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Peer(NamedTuple):
    """One implementation.

    Attributes:
      tensors: what its file of weights holds, by its names.
      logits: (b, h, w, 3) images in its input range to (b, classes).
      native: the object of its own package.
    """

    tensors: dict[str, np.ndarray]
    logits: Callable[[np.ndarray], np.ndarray]
    native: object


def peer(ecosystem: str, variant, classes: int = CLASSES, seed: int = 0) -> Peer:
    """Builds one; the test is skipped where its package is missing."""
    if ecosystem == "keras":
        return keras_peer(variant, classes, seed)
    if ecosystem == "slim":
        found = torch_peer("hf", variant, classes, seed)
        return found._replace(tensors=slim_tensors(found.tensors))
    if ecosystem in ("paddleclas", "mmseg"):
        from tests.weights import numpy_peers

        return getattr(numpy_peers, ecosystem)(variant, classes, seed)
    return torch_peer(ecosystem, variant, classes, seed)


def segmenter(ecosystem: str, variant, classes: int = CLASSES, seed: int = 0) -> Peer:
    """Builds DeepLabv3 of a width and output stride; logits at the resolution of the images.

    Hugging Face's are of the features' resolution. PyTorch brings them to the images' with corners
    aligned, as the authors' own release does; Hugging Face's processor aligns borders instead.
    """
    found = torch_peer("hf-segmenter", variant, classes, seed)

    def logits(images):
        import torch

        coarse = torch.from_numpy(found.logits(images))
        size = images.shape[1:3]
        fine = torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=True)
        return fine.numpy().transpose(0, 2, 3, 1)

    tensors = found.tensors if ecosystem == "hf" else slim_segmenter_tensors(found.tensors)
    return Peer(tensors, logits, found.native)


def random_like(kind: str, shape: tuple[int, ...], fan_in: float, rng) -> np.ndarray:
    """Numbers that keep activations alive and hide no wrong name, as `randomize` draws them.

    The kernels are a little smaller than there. At a variance of 2 / fan_in the network is so badly
    conditioned that PyTorch's own float32 is 2e-5 from its float64; at 1.3 it is 1e-6, and a wrong
    epsilon still moves the logits by 4e-3.
    """
    if kind == "kernel":
        return (rng.normal(size=shape) * (1.3 / fan_in) ** 0.5).astype(np.float32)
    low, high = (0.5, 1.5) if kind == "positive" else (-0.5, 0.5)
    return rng.uniform(low, high, shape).astype(np.float32)


# ---- PyTorch


def torch_peer(ecosystem: str, variant, classes: int, seed: int) -> Peer:
    torch = pytest.importorskip("torch")
    module = TORCH_PEERS[ecosystem](variant, classes).eval()
    rng = np.random.default_rng(seed)
    state = module.state_dict()
    for name, tensor in state.items():
        if tensor.ndim == 0:
            continue
        shape = tuple(tensor.shape)
        if len(shape) > 1:
            kind = "kernel"
        else:
            norm = name.rsplit(".", 1)[0] + ".running_var" in state
            positive = norm and name.endswith((".weight", ".running_var"))
            kind = "positive" if positive else "offset"
        values = random_like(kind, shape, np.prod(shape[1:]), rng)
        tensor.copy_(torch.from_numpy(values))

    def logits(images):
        with torch.no_grad():
            found = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        return getattr(found, "logits", found).numpy()

    return Peer({name: t.numpy().copy() for name, t in state.items()}, logits, module)


def torchvision_module():
    """Imports torchvision, also where its compiled operators do not fit the installed PyTorch.

    MobileNetV2 uses none of them; importing registers something for these two.
    """
    torch = pytest.importorskip("torch")
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        torchvision_module.library = library  # it lasts as long as the object
        return importlib.import_module("torchvision")


def _torchvision(width, classes):
    return torchvision_module().models.mobilenet_v2(width_mult=width, num_classes=classes)


def _timm(name, classes):
    torchvision_module()
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=classes)


def _hf(width, classes):
    torchvision_module()
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileNetV2Config(depth_multiplier=width, num_labels=classes)
    return transformers.MobileNetV2ForImageClassification(config)


def _hf_segmenter(variant, classes):
    torchvision_module()
    transformers = pytest.importorskip("transformers")
    width, stride = variant
    config = transformers.MobileNetV2Config(
        depth_multiplier=width, num_labels=classes, output_stride=stride
    )
    return transformers.MobileNetV2ForSemanticSegmentation(config)


def _layer(torch, inputs, outputs, kernel=1, stride=1, groups=1):
    nn = torch.nn
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    ]


def _flat(width, classes, head_in_features: bool):
    """The structure that d-li14 and tonylins share: every block one flat `conv` sequence."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride, t):
            super().__init__()
            wide = inputs * t
            layers = _layer(torch, inputs, wide) if t > 1 else []
            layers += _layer(torch, wide, wide, 3, stride, groups=wide)
            layers += _layer(torch, wide, outputs)[:2]
            self.conv = nn.Sequential(*layers)
            self.shortcut = stride == 1 and inputs == outputs

        def forward(self, x):
            return x + self.conv(x) if self.shortcut else self.conv(x)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            if head_in_features:  # tonylins rounds up, and leaves stem and first block alone
                channels = [16, *(rounded_up(row[1] * width) for row in TABLE_2[1:])]
                stem, last = 32, max(1280, rounded_up(1280 * width))
            else:
                channels = [divisible(row[1] * width) for row in TABLE_2]
                stem, last = divisible(32 * width), max(1280, divisible(1280 * width))
            layers = [nn.Sequential(*_layer(torch, 3, stem, 3, 2))]
            inputs = stem
            for (t, _, n, s), outputs in zip(TABLE_2, channels, strict=True):
                for i in range(n):
                    layers.append(Block(inputs, outputs, s if i == 0 else 1, t))
                    inputs = outputs
            final = nn.Sequential(*_layer(torch, inputs, last))
            if head_in_features:
                layers.append(final)
            self.features = nn.Sequential(*layers)
            if not head_in_features:
                self.conv = final
            self.classifier = nn.Linear(last, classes)

        def forward(self, x):
            x = self.features(x)
            if not head_in_features:
                x = self.conv(x)
            return self.classifier(x.mean((2, 3)))

    return Network()


def _mmpretrain(width, classes):
    """The layers of mmpretrain, each convolution in a module with its batch norm."""
    nn = pytest.importorskip("torch").nn

    def module(*args, activation=True, **options):
        layers = _layer(pytest.importorskip("torch"), *args, **options)
        names = ("conv", "bn", "activate")[: 2 + activation]
        return nn.Sequential(OrderedDict(zip(names, layers, strict=False)))

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride, t):
            super().__init__()
            wide = inputs * t
            layers = [module(inputs, wide)] if t > 1 else []
            layers.append(module(wide, wide, 3, stride, groups=wide))
            layers.append(module(wide, outputs, activation=False))
            self.conv = nn.Sequential(*layers)
            self.shortcut = stride == 1 and inputs == outputs

        def forward(self, x):
            return x + self.conv(x) if self.shortcut else self.conv(x)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            inputs, last = divisible(32 * width), int(1280 * max(width, 1.0))
            stages = OrderedDict(conv1=module(3, inputs, 3, 2))
            for number, (t, c, n, s) in enumerate(TABLE_2, 1):
                blocks, outputs = [], divisible(c * width)
                for i in range(n):
                    blocks.append(Block(inputs, outputs, s if i == 0 else 1, t))
                    inputs = outputs
                stages[f"layer{number}"] = nn.Sequential(*blocks)
            stages["conv2"] = module(inputs, last)
            self.backbone = nn.Sequential(stages)
            self.head = nn.Sequential(OrderedDict(fc=nn.Linear(last, classes)))

        def forward(self, x):
            return self.head(self.backbone(x).mean((2, 3)))

    return Network()


def divisible(value: float) -> int:
    """The authors' rounding, written once more."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * value else rounded + 8


def rounded_up(value: float) -> int:
    """tonylins' rule."""
    return int(np.ceil(value / 8)) * 8


TORCH_PEERS = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _hf,
    "hf-segmenter": _hf_segmenter,
    "d-li14": lambda width, classes: _flat(width, classes, head_in_features=False),
    "tonylins": lambda width, classes: _flat(width, classes, head_in_features=True),
    "mmpretrain": _mmpretrain,
}


# ---- slim, by way of Hugging Face's port of it


def slim_backbone() -> list[tuple[str, str]]:
    """Pairs Hugging Face's layers with slim's, as far as the last block."""
    places = [("conv_stem.first_conv", "Conv")]
    places += [("conv_stem.conv_3x3", "expanded_conv/depthwise")]
    places += [("conv_stem.reduce_1x1", "expanded_conv/project")]
    for i in range(16):
        for theirs, slims in (
            ("expand_1x1", "expand"),
            ("conv_3x3", "depthwise"),
            ("reduce_1x1", "project"),
        ):
            places.append((f"layer.{i}.{theirs}", f"expanded_conv_{i + 1}/{slims}"))
    return [(f"mobilenet_v2.{theirs}", f"MobilenetV2/{slims}") for theirs, slims in places]


def slim_layers(hf: dict[str, np.ndarray], places: list[tuple[str, str]]) -> dict:
    """Gives convolutions and their norms slim's names and axes."""
    norms = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    found = {}
    for theirs, slims in places:
        kernel = hf[f"{theirs}.convolution.weight"]
        if "depthwise" in slims:
            found[f"{slims}/depthwise_weights"] = kernel.transpose(2, 3, 0, 1)
        else:
            found[f"{slims}/weights"] = kernel.transpose(2, 3, 1, 0)
        for leaf, name in norms.items():
            found[f"{slims}/BatchNorm/{name}"] = hf[f"{theirs}.normalization.{leaf}"]
    return found


def slim_tensors(hf: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames and reorders Hugging Face's tensors to TF-slim's, as their conversion maps them."""
    last = ("mobilenet_v2.conv_1x1", "MobilenetV2/Conv_1")
    found = slim_layers(hf, [*slim_backbone(), last])
    head = "MobilenetV2/Logits/Conv2d_1c_1x1"
    found[f"{head}/weights"] = hf["classifier.weight"].T[None, None]
    found[f"{head}/biases"] = hf["classifier.bias"]
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def slim_segmenter_tensors(hf: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Does the same for a segmenter; the authors' has no last convolution."""
    head = {"conv_pool": "image_pooling", "conv_aspp": "aspp0"}
    head |= {"conv_projection": "concat_projection"}
    places = [(f"segmentation_head.{theirs}", slims) for theirs, slims in head.items()]
    found = slim_layers(hf, [*slim_backbone(), *places])
    logits = "segmentation_head.classifier.convolution"
    found["logits/semantic/weights"] = hf[f"{logits}.weight"].transpose(2, 3, 1, 0)
    found["logits/semantic/biases"] = hf[f"{logits}.bias"]
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


# ---- Keras


def keras_peer(width: float, classes: int, seed: int) -> Peer:
    keras = pytest.importorskip("keras")
    import jax

    def build(size):  # padding is fixed when the model is built, by the size
        return keras.applications.MobileNetV2(
            input_shape=(*size, 3),
            alpha=width,
            weights=None,
            classes=classes,
            classifier_activation=None,
        )

    model = build((96, 96))
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in model.layers:
        values = []
        for variable in layer.weights:
            shape, leaf = tuple(variable.shape), variable.path.split("/")[-1]
            if "kernel" in leaf:
                kind, fan_in = "kernel", 9 if "depthwise" in layer.name else np.prod(shape[:-1])
            else:
                kind, fan_in = ("positive" if leaf in ("gamma", "moving_variance") else "offset"), 1
            values.append(random_like(kind, shape, fan_in, rng))
            tensors[f"{layer.name}/{leaf}"] = values[-1]
        if values:
            layer.set_weights(values)

    def logits(images):
        sized = build(images.shape[1:3])
        sized.set_weights(model.get_weights())
        with jax.numpy_rank_promotion("allow"):  # Keras relies on it
            return np.asarray(sized.predict(images, verbose=0))

    return Peer(tensors, logits, model)
