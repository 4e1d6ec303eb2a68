"""Every tensor of one architecture in one ecosystem, and the order of its axes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mnv2_jax.models.spec import IMAGENET, Spec, unroll
from mnv2_jax.weights.names import Ecosystem, Framework


class Tensor(NamedTuple):
    """One tensor of a checkpoint.

    Attributes:
      ours: its path in our variables, such as `params/block_0/filter/conv/kernel`.
      theirs: its name in their file.
      kind: "conv", "depthwise", "head" or "vector": what decides the order of the axes.
      shape: in our order.
    """

    ours: str
    theirs: str
    kind: str
    shape: tuple[int, ...]


def positions(spec: Spec) -> Iterator[dict[str, int]]:
    """Gives every block the numbers that the templates name it by.

    >>> from mnv2_jax.models.spec import IMAGENET
    >>> list(positions(IMAGENET))[2]
    {'i': 2, 'next': 3, 'before': 1, 'stage': 1, 'index': 1}
    """
    i = 0
    for stage, row in enumerate(spec.rows):
        for index in range(row.n):
            yield {"i": i, "next": i + 1, "before": i - 1, "stage": stage, "index": index}
            i += 1


def convolutions(ecosystem: Ecosystem, spec: Spec) -> Iterator[tuple[str, str, str]]:
    """Yields (our layer, their convolution, their batch norm) in the network's order."""
    yield "stem", *ecosystem.stem
    places = list(positions(spec))
    thin = [row.t == 1 for row in spec.rows]
    for place in places:
        maps = ecosystem.thin if thin[place["stage"]] else ecosystem.wide
        for ours, pair in maps.items():
            conv, norm = (name.format(**place) for name in pair)
            yield f"block_{place['i']}/{ours}", conv, norm
    if spec.last is not None:
        conv, norm = (name.format(after=len(places) + 1) for name in ecosystem.last)
        yield "last", conv, norm


def kernel_shapes(spec: Spec, width: float, in_channels: int) -> dict[str, tuple[int, ...]]:
    """Returns the (h, w, in, out) of every convolution of a network, by our layer.

    >>> from mnv2_jax.models.spec import IMAGENET
    >>> kernel_shapes(IMAGENET, 1.0, 3)["block_1/filter"]
    (3, 3, 1, 96)
    """
    layout = unroll(width, None, spec)
    shapes = {"stem": (3, 3, in_channels, layout.stem)}
    for i, block in enumerate(layout.blocks):
        if block.expansion > 1:
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
) -> list[Tensor]:
    """Lists every tensor of a checkpoint, under our name and under theirs.

    Args:
      ecosystem: whose names they are.
      spec, width, in_channels: of the backbone.
      classes: outputs of the classifier, or of the segmenter; None for features only.
      head: channels of a segmenter's head; None for no segmenter.

    >>> from mnv2_jax.models.spec import IMAGENET
    >>> from mnv2_jax.weights.names import ECOSYSTEMS
    >>> tensors(ECOSYSTEMS["torchvision"], IMAGENET, 1.0, 3, 1000)[0]
    Tensor(ours='params/stem/conv/kernel', theirs='features.0.0.weight', kind='conv',
           shape=(3, 3, 3, 32))
    """
    leaves = ecosystem.framework.leaves
    shapes = kernel_shapes(spec, width, in_channels)
    where = "" if head is None else "backbone/"
    layers = [
        (where + ours, conv, norm, shapes[ours])
        for ours, conv, norm in convolutions(ecosystem, spec)
    ]
    if head is not None:
        layers += _head_layers(ecosystem, layers[-1][3][-1], head)
    found = []
    for ours, conv, norm, shape in layers:
        kind = "depthwise" if ours.endswith("/filter") else "conv"
        found.append(
            Tensor(f"params/{ours}/conv/kernel", leaves[kind].format(conv=conv), kind, shape)
        )
        for leaf, collection in (
            ("scale", "params"),
            ("bias", "params"),
            ("mean", "batch_stats"),
            ("var", "batch_stats"),
        ):
            name = leaves[leaf].format(norm=norm)
            found.append(Tensor(f"{collection}/{ours}/norm/{leaf}", name, "vector", shape[-1:]))
    if classes is not None:
        features, of_head = found[-1].shape[0], classifier_name(ecosystem, head is not None)
        kernel = ("head", (features, classes))
        if head is not None:
            kernel = ("conv", (1, 1, features, classes))
        for leaf, (kind, shape) in (("kernel", kernel), ("bias", ("vector", (classes,)))):
            name = leaves[f"head_{leaf}"].format(head=of_head)
            found.append(Tensor(f"params/classifier/{leaf}", name, kind, shape))
    return found


def classifier_name(ecosystem: Ecosystem, segmenter: bool) -> str:
    """Returns what an ecosystem calls the layer of the logits."""
    if not segmenter:
        return ecosystem.head
    assert ecosystem.segmenter is not None
    return ecosystem.segmenter.classifier


def _head_layers(
    ecosystem: Ecosystem, features: int, channels: int
) -> list[tuple[str, str, str, tuple[int, ...]]]:
    """Lists a segmenter's layers between backbone and logits, and the shapes of their kernels."""
    names = ecosystem.segmenter
    assert names is not None
    return [
        ("pooling", *names.pooling, (1, 1, features, channels)),
        ("aspp_0", *names.aspp_0, (1, 1, features, channels)),
        ("projection", *names.projection, (1, 1, 2 * channels, channels)),
    ]


def unused(ecosystem: Ecosystem, spec: Spec, width: float) -> list[Tensor]:
    """Lists what a segmenter's file holds besides its network: see `Segmenter.keeps_last`."""
    if ecosystem.segmenter is None or not ecosystem.segmenter.keeps_last:
        return []
    whole = tensors(ecosystem, spec._replace(last=IMAGENET.last), width, 3, None)
    return [tensor for tensor in whole if tensor.ours.split("/")[1] == "last"]


def axes(framework: Framework, kind: str) -> tuple[int, ...]:
    """Returns the order in which our axes stand in a tensor of theirs."""
    return {
        "vector": (0,),
        "head": framework.head,
        "conv": framework.conv,
        "depthwise": framework.depthwise,
    }[kind]


def to_ours(framework: Framework, kind: str, array: np.ndarray) -> np.ndarray:
    """Brings a tensor of theirs into our order of axes.

    A classifier comes as a matrix or as a 1×1 convolution; both are understood.

    >>> from mnv2_jax.weights.names import TORCH
    >>> to_ours(TORCH, "conv", np.zeros((32, 3, 5, 7))).shape
    (5, 7, 3, 32)
    """
    if kind == "head" and array.ndim == 4:
        return array.transpose(framework.conv)[0, 0]
    return array.transpose(axes(framework, kind))


def to_theirs(framework: Framework, kind: str, array: np.ndarray) -> np.ndarray:
    """Undoes `to_ours`.

    >>> from mnv2_jax.weights.names import TORCH
    >>> to_theirs(TORCH, "depthwise", np.zeros((3, 3, 1, 32))).shape
    (32, 1, 3, 3)
    """
    if kind == "head" and framework.head_is_conv:
        return array[None, None].transpose(np.argsort(framework.conv))
    return array.transpose(np.argsort(axes(framework, kind)))


def our_shape(framework: Framework, kind: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns the shape that `to_ours` would give, or None where it cannot be applied.

    >>> from mnv2_jax.weights.names import TF_SLIM
    >>> our_shape(TF_SLIM, "head", (1, 1, 1280, 1001)), our_shape(TF_SLIM, "conv", (3, 3))
    ((1280, 1001), None)
    """
    order = framework.conv if kind == "head" and len(shape) == 4 else axes(framework, kind)
    if len(shape) != len(order):
        return None
    ours = tuple(shape[axis] for axis in order)
    if kind == "head" and len(shape) == 4:
        return ours[2:] if ours[:2] == (1, 1) else None
    return ours


def their_shape(framework: Framework, kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Undoes `our_shape`: what a tensor of ours has as its shape over there."""
    if kind == "head" and framework.head_is_conv:
        kind, shape = "conv", (1, 1, *shape)
    return tuple(shape[i] for i in np.argsort(axes(framework, kind)))
