"""The same network in PyTorch and as an ONNX file, and published detectors and segmenters.

They are what the benchmarks compare with.
"""

import importlib
from pathlib import Path

import torch
from torch import nn

from mnv2_jax.models.spec import SPECS, unroll


class Block(nn.Module):
    """The inverted residual of the paper."""

    def __init__(self, block):
        super().__init__()
        layers = [] if block.expansion == 1 else [conv_norm(block.in_channels, block.expanded, 1)]
        layers += [
            conv_norm(block.expanded, block.expanded, 3, block.stride, groups=block.expanded),
            conv_norm(block.expanded, block.channels, 1)[:2],
        ]
        self.layers = nn.Sequential(*layers)
        self.shortcut = block.stride == 1 and block.in_channels == block.channels

    def forward(self, x):
        return x + self.layers(x) if self.shortcut else self.layers(x)


def conv_norm(inputs, outputs, kernel, stride=1, groups=1):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


def mobilenet_v2(width=1.0, spec="imagenet", classes=1000):
    """MobileNetV2 of Table 2 in NCHW, as torchvision writes it."""
    layout = unroll(width, None, SPECS[spec])
    assert layout.last is not None
    return nn.Sequential(
        conv_norm(3, layout.stem, 3, layout.stem_stride),
        *(Block(block) for block in layout.blocks),
        conv_norm(layout.blocks[-1].channels, layout.last, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(layout.last, classes),
    )


def write_onnx(path: Path, batch: int, size: int, width: float = 1.0) -> None:
    """Writes the network for inference; the exporter folds batch norm into the convolutions."""
    network = mobilenet_v2(width).eval()
    torch.onnx.export(network, (torch.zeros(batch, 3, size, size),), path, external_data=False)


def torchvision():
    """Imports torchvision, also where its compiled operators do not fit the installed PyTorch.

    Networks need none of them; importing registers something for these two.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        torchvision.library = library  # it lasts as long as the object
        return importlib.import_module("torchvision")


def ssdlite_v3(classes=81):
    """torchvision's SSDLite on MobileNetV3-Large; as a whole it resizes images to 320×320."""
    torchvision()
    detection = importlib.import_module("torchvision.models.detection")
    return detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=classes
    )


class Predictions(nn.Module):
    """torchvision's SSDLite without its transform, decoding and suppression."""

    def __init__(self, classes=81):
        super().__init__()
        detector = ssdlite_v3(classes)
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images):
        return self.head(list(self.backbone(images).values()))


class LabelMaps(nn.Module):
    """Hugging Face's segmenter, with its logits brought to the images' size, and the best class."""

    def __init__(self, classes=21, output_stride=16):
        super().__init__()
        torchvision()
        transformers = importlib.import_module("transformers")
        config = transformers.MobileNetV2Config(num_labels=classes, output_stride=output_stride)
        self.network = transformers.MobileNetV2ForSemanticSegmentation(config)

    def forward(self, images):
        logits = self.network(images).logits
        size = images.shape[2:]
        logits = nn.functional.interpolate(logits, size, mode="bilinear", align_corners=True)
        return logits.argmax(1)


def count_madds(module, size):
    """Counts the multiply-adds of every convolution and matrix product for one image."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        module.eval()(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return total
