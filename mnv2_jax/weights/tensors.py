"""Every tensor of a network under our name and an ecosystem's, and the order of its axes."""

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from mnv2_jax.models.anchors import anchor_shapes
from mnv2_jax.models.block import Map, always_expand, standard_expand
from mnv2_jax.models.mobilenet import MobileNetV2
from mnv2_jax.models.spec import IMAGENET, Spec, unroll
from mnv2_jax.models.ssdlite import EXTRAS, SSDLite, extra_channels
from mnv2_jax.weights.names import ECOSYSTEMS, Ecosystem, Framework


class Tensor(NamedTuple):
    """One tensor of a file of weights."""

    ours: str  # its path in our variables, such as params/block_0/filter/conv/kernel
    theirs: str  # its name in the file
    kind: str  # "conv", "depthwise", "head" or "vector", which decides the order of its axes
    shape: tuple[int, ...]  # in our order


def convolutions(ecosystem: Ecosystem, spec: Spec) -> Iterator[tuple[str, str, str]]:
    """Yields (our layer, their convolution, their batch norm) in the network's order."""
    yield "stem", *ecosystem.stem
    i = 0
    for stage, row in enumerate(spec.rows):
        layers = ecosystem.thin if row.t == 1 else ecosystem.wide
        for index in range(row.n):
            place = {"i": i, "next": i + 1, "before": i - 1, "stage": stage, "index": index}
            group = f"conv{stage + 2}"
            paddle = f"{group}.{group}_{index + 1}" if index else f"{group}._first_block"
            place |= {"row": stage + 1, "paddle": paddle}
            for ours, (conv, norm) in layers.items():
                yield f"block_{i}/{ours}", conv.format(**place), norm.format(**place)
            i += 1
    if spec.last is not None:
        conv, norm = (name.format(after=i + 1) for name in ecosystem.last)
        yield "last", conv, norm


def kernel_shapes(
    spec: Spec, width: float, in_channels: int, expand: Map = standard_expand
) -> dict[str, tuple[int, ...]]:
    """Returns the (h, w, in, out) of every convolution of a network, by our layer."""
    layout = unroll(width, None, spec)
    shapes = {"stem": (3, 3, in_channels, layout.stem)}
    for i, block in enumerate(layout.blocks):
        if block.expansion > 1 or expand is always_expand:
            shapes[f"block_{i}/expand"] = (1, 1, block.in_channels, block.expanded)
        shapes[f"block_{i}/filter"] = (3, 3, 1, block.expanded)
        shapes[f"block_{i}/project"] = (1, 1, block.expanded, block.channels)
    if layout.last is not None:
        shapes["last"] = (1, 1, layout.blocks[-1].channels, layout.last)
    return shapes


def tensors(
    ecosystem: Ecosystem,
    spec: Spec,
    width: float,
    in_channels: int,
    classes: int | None,
    head: int | None = None,
    detects: bool = False,
) -> list[Tensor]:
    """Lists every tensor of a file.

    Without `classes` there is no classifier, `head` is DeepLab's, and what `detects` is SSDLite.

    >>> tensors(ECOSYSTEMS["torchvision"], IMAGENET, 1.0, 3, 1000)[0].theirs
    'features.0.0.weight'
    """
    leaves = ecosystem.framework.leaves
    shapes = kernel_shapes(spec, width, in_channels, ecosystem.expand)
    where = "backbone/" if detects or head is not None else ""
    layers = [
        (where + ours, conv, norm, shapes[ours])
        for ours, conv, norm in convolutions(ecosystem, spec)
    ]
    features = layers[-1][3][-1]
    if head is not None:
        assert ecosystem.segmenter is not None
        inputs = {"pooling": features, "aspp_0": features, "projection": 2 * head}
        for ours, pair in ecosystem.segmenter.layers.items():
            layers.append((ours, *pair, (1, 1, inputs[ours], head)))
        features = head
    outputs: list[tuple[str, str, str, tuple[int, ...]]] = []  # with a bias, of another kind
    if detects:
        assert classes is not None
        more, outputs = _ssdlite(ecosystem, spec, width, shapes, classes)
        layers += more
    elif classes is not None:
        kernel, _ = classifier_names(ecosystem, segmenter=head is not None)
        layer = kernel.removesuffix(leaves["head_kernel"])
        kind, ones = ("head", ()) if head is None else ("conv", (1, 1))
        outputs = [("classifier", layer, kind, (*ones, features, classes))]
    listed = []
    for ours, conv, norm, shape in layers:
        kind = "depthwise" if ours.endswith("/filter") else "conv"
        listed.append(Tensor(f"params/{ours}/conv/kernel", conv + leaves[kind], kind, shape))
        for leaf in ("scale", "bias", "mean", "var"):
            path = f"{'params' if leaf in ('scale', 'bias') else 'batch_stats'}/{ours}/norm/{leaf}"
            listed.append(Tensor(path, norm + leaves[leaf], "vector", shape[-1:]))
    for ours, layer, kind, shape in outputs:
        names = layer + leaves["head_kernel"], layer + leaves["head_bias"]
        listed.append(Tensor(f"params/{ours}/kernel", names[0], kind, shape))
        listed.append(Tensor(f"params/{ours}/bias", names[1], "vector", shape[-1:]))
    return listed


def _ssdlite(
    ecosystem: Ecosystem, spec: Spec, width: float, shapes: Mapping[str, tuple], classes: int
) -> tuple[list[tuple], list[tuple]]:
    """Lists SSDLite's layers after the backbone, and the convolutions of its outputs."""
    assert ecosystem.detector is not None
    tap = SSDLite(backbone=MobileNetV2(None, width, spec=spec)).tap()
    inputs, layers, outputs = [shapes[f"block_{tap}/expand"][3], shapes["last"][3]], [], []
    for i, (channels, squeezed) in enumerate(extra_channels(EXTRAS, width)):
        of_layer = ((1, 1, inputs[-1], squeezed), (3, 3, 1, squeezed), (1, 1, squeezed, channels))
        place = {"map": len(inputs), "channels": channels, "squeezed": squeezed}
        for (ours, pair), shape in zip(ecosystem.detector.extra.items(), of_layer, strict=True):
            layers.append((f"extra_{i}/{ours}", *(name.format(**place) for name in pair), shape))
        inputs.append(channels)
    for i, (features, anchors) in enumerate(zip(inputs, anchor_shapes(len(inputs)), strict=True)):
        for ours, (project, pair) in ecosystem.detector.predictors.items():
            size = 4 if ours == "boxes" else classes + 1
            names = (name.format(map=i) for name in pair)
            layers.append((f"{ours}_{i}/filter", *names, (3, 3, 1, features)))
            shape = (1, 1, features, len(anchors) * size)
            outputs.append((f"{ours}_{i}/project", project.format(map=i), "conv", shape))
    return layers, outputs


@functools.cache
def backbone_names(ecosystem: str) -> frozenset[str]:
    """Returns the names of Table 2's network without its classifier."""
    listed = tensors(ECOSYSTEMS[ecosystem], ECOSYSTEMS[ecosystem].spec, 1.0, 3, None)
    return frozenset(tensor.theirs for tensor in listed)


def classifier_names(ecosystem: Ecosystem, segmenter: bool = False) -> tuple[str, str]:
    """Returns an ecosystem's names of the kernel and the bias that compute the logits."""
    layer, leaves = ecosystem.head, ecosystem.framework.leaves
    if segmenter:
        assert ecosystem.segmenter is not None
        layer = ecosystem.segmenter.classifier
    return layer + leaves["head_kernel"], layer + leaves["head_bias"]


def unused(ecosystem: Ecosystem, spec: Spec, width: float) -> list[Tensor]:
    """Lists the tensors of a segmenter's file that it does not use: see `Segmenter.keeps_last`."""
    if ecosystem.segmenter is None or not ecosystem.segmenter.keeps_last:
        return []
    whole = tensors(ecosystem, spec._replace(last=IMAGENET.last), width, 3, None)
    return [tensor for tensor in whole if tensor.ours.split("/")[1] == "last"]


def to_ours(framework: Framework, kind: str, array: np.ndarray) -> np.ndarray | None:
    """Brings a tensor of a file into our order of axes; None where it has other axes.

    A classifier may be a matrix or a 1×1 convolution.

    >>> from mnv2_jax.weights.names import TORCH
    >>> to_ours(TORCH, "head", np.zeros((1000, 1280, 1, 1))).shape
    (1280, 1000)
    """
    if kind == "head" and array.ndim == 4:
        array = array.transpose(framework.axes["conv"])
        return array[0, 0] if array.shape[:2] == (1, 1) else None
    axes = framework.axes[kind]
    return array.transpose(axes) if array.ndim == len(axes) else None


def to_theirs(framework: Framework, kind: str, array: np.ndarray) -> np.ndarray:
    """Undoes `to_ours`."""
    if kind == "head" and framework.head_is_conv:
        kind, array = "conv", array[None, None]
    return array.transpose(np.argsort(framework.axes[kind]))


def their_shape(framework: Framework, tensor: Tensor) -> tuple[int, ...]:
    """Returns the shape of a tensor in the ecosystem's order of axes."""
    return to_theirs(framework, tensor.kind, np.broadcast_to(np.float32(0), tensor.shape)).shape
