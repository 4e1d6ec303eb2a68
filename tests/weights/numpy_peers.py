"""PaddleClas' classifier and mmsegmentation's backbone, written in numpy from their sources.

Neither package is made for each Python. Tensors have the names and axes of their files; everything
is computed in float64, channels first.
"""

import numpy as np

from tests.weights.peers import TABLE_2, Peer, divisible, random_like


class Layers:
    """Convolutions with their batch norms: random tensors under their names, and what they do."""

    def __init__(self, seed: int, conv: str, norm: str, statistics: tuple[str, str]):
        self.rng, self.tensors = np.random.default_rng(seed), {}
        self.conv, self.norm = conv, norm
        self.leaves = dict(zip(("weight", "bias", *statistics), "poop", strict=True))

    def make(self, name: str, outputs: int, inputs: int, side: int = 1) -> None:
        """Draws a layer; `inputs` of 1 makes a depthwise one."""
        shape, kinds = (outputs, inputs, side, side), {"p": "positive", "o": "offset"}
        kernel = random_like("kernel", shape, inputs * side**2, self.rng)
        self.tensors[f"{name}.{self.conv}.weight"] = kernel
        for leaf, kind in self.leaves.items():
            values = random_like(kinds[kind], (outputs,), 1, self.rng)
            self.tensors[f"{name}.{self.norm}.{leaf}"] = values

    def __call__(self, x, name: str, stride=1, dilation=1, linear=False):
        y = convolve(x, self.tensors[f"{name}.{self.conv}.weight"], stride, dilation)
        scale, bias, mean, variance = (
            self.tensors[f"{name}.{self.norm}.{leaf}"][:, None, None] for leaf in self.leaves
        )
        y = (y - mean) / np.sqrt(variance + 1e-5) * scale + bias
        return y if linear else np.clip(y, 0, 6)


def convolve(x, kernel, stride, dilation):
    """A convolution that pads by as much as the kernel reaches, depthwise for (c, 1, h, w)."""
    depthwise, reach = kernel.shape[1] == 1, dilation * (kernel.shape[2] // 2)
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    height, width = (-(-n // stride) for n in x.shape[2:])
    total = 0.0
    for i, j in np.ndindex(kernel.shape[2:]):
        top, left, tap = i * dilation, j * dilation, kernel[:, :, i, j]
        seen = padded[:, :, top:, left:][:, :, ::stride, ::stride][:, :, :height, :width]
        form = "oi,bohw->bohw" if depthwise else "oi,bihw->bohw"
        total = total + np.einsum(form, tap.astype(np.float64), seen)
    return total


def paddleclas(width: float, classes: int, seed: int) -> Peer:
    """ppcls/arch/backbone/model_zoo/mobilenet_v2.py: its first block expands from 32 to 32."""
    layers, blocks = Layers(seed, "_conv", "_batch_norm", ("_mean", "_variance")), []
    entering = int(32 * width)
    layers.make("conv1", entering, 3, 3)
    for group, (t, c, n, s) in enumerate(TABLE_2, 2):
        for i in range(n):
            name = f"conv{group}." + (f"conv{group}_{i + 1}" if i else "_first_block")
            wide, leaving = round(entering * t), int(c * width)
            layers.make(f"{name}._expand_conv", wide, entering)
            layers.make(f"{name}._bottleneck_conv", wide, 1, 3)
            layers.make(f"{name}._linear_conv", leaving, wide)
            blocks.append((name, 1 if i else s, i > 0))
            entering = leaving
    last = int(1280 * width) if width > 1.0 else 1280
    layers.make("conv9", last, entering)
    tensors = layers.tensors
    tensors["out.weight"] = random_like("kernel", (last, classes), last, layers.rng)
    tensors["out.bias"] = random_like("offset", (classes,), 1, layers.rng)

    def logits(images):
        x = layers(images.transpose(0, 3, 1, 2), "conv1", 2)
        for name, stride, adds in blocks:
            y = layers(layers(x, f"{name}._expand_conv"), f"{name}._bottleneck_conv", stride)
            y = layers(y, f"{name}._linear_conv", linear=True)
            x = x + y if adds else y
        features = layers(x, "conv9").mean((2, 3))
        return features @ tensors["out.weight"] + tensors["out.bias"]

    return Peer(tensors, logits, layers)


def mmseg(width: float, classes: int, seed: int) -> Peer:
    """mmseg/models/backbones/mobilenet_v2.py, with the strides and dilations of its configurations.

    A dilation is of the first block of a row alone. `classes` are those of a head of 1×1
    convolutions, which lies in the file and is not computed.
    """
    layers, blocks = Layers(seed, "conv", "bn", ("running_mean", "running_var")), []
    entering, strides, dilations = (
        divisible(32 * width),
        (1, 2, 2, 1, 1, 1, 1),
        (1, 1, 1, 2, 2, 4, 4),
    )
    layers.make("backbone.conv1", entering, 3, 3)
    for row, ((t, c, n, _), s, d) in enumerate(zip(TABLE_2, strides, dilations, strict=True), 1):
        for i in range(n):
            wide, leaving = entering * t, divisible(c * width)
            shapes = [(wide, entering, 1)] * (t > 1) + [(wide, 1, 3), (leaving, wide, 1)]
            names = [f"backbone.layer{row}.{i}.conv.{k}" for k in range(len(shapes))]
            for name, shape in zip(names, shapes, strict=True):
                layers.make(name, *shape)
            blocks.append((names, 1 if i else s, 1 if i else d))
            entering = leaving
    layers.make("decode_head.convs.0", 8, entering)
    layers.make("auxiliary_head.convs.0", 8, entering)
    shape = (classes, 8, 1, 1)
    layers.tensors["decode_head.conv_seg.weight"] = random_like("kernel", shape, 8, layers.rng)

    def features(images):
        x = layers(images.transpose(0, 3, 1, 2), "backbone.conv1", 2)
        for (*expand, filter_, project), stride, dilation in blocks:
            y = x
            for name in expand:
                y = layers(y, name)
            y = layers(layers(y, filter_, stride, dilation), project, linear=True)
            x = x + y if x.shape == y.shape else y
        return x.transpose(0, 2, 3, 1)

    return Peer(layers.tensors, features, layers)
