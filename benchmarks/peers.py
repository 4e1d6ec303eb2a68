"""The same network in PyTorch and as an ONNX file, for the benchmarks to compare with."""

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
