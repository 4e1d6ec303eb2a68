"""Infers the network of a file of weights, its width, depth, classes and channels, from shapes."""

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

from mnv2_jax.models.anchors import anchor_shapes
from mnv2_jax.models.block import Map
from mnv2_jax.models.spec import IMAGENET, Row, Spec
from mnv2_jax.weights.names import Ecosystem
from mnv2_jax.weights.tensors import classifier_names, convolutions, kernel_shapes

PUBLISHED = (1.0, 0.35, 0.5, 0.75, 1.3, 1.4)
# Other widths, tried once no published one fits.
UNPUBLISHED = tuple(round(0.05 * step, 2) for step in range(1, 81))
MAX_DEPTH = 64  # blocks in one stage; timm's deepest has 7

Shapes = Mapping[str, tuple[int, ...]]


class Architecture(NamedTuple):
    """The arguments of the network that shapes determine."""

    spec: Spec
    width: float
    in_channels: int
    classes: int | None  # of the classifier or of the segmenter; None for neither
    head: int | None = None  # channels of a segmenter's head; None for a classifier
    detects: bool = False  # whether SSDLite's predictors are there

    @property
    def title(self) -> str:
        """The network's name in messages."""
        network = "MobileNetV2" if self.head is None else "DeepLabv3 on MobileNetV2"
        network = "SSDLite on MobileNetV2" if self.detects else network
        if self.spec.rows == IMAGENET.rows:
            return f"{network} of width {self.width:g}"
        blocks = sum(row.n for row in self.spec.rows)
        return f"{network} of {blocks} blocks with its own channels"


def find_architecture(ecosystem: Ecosystem, shapes: Shapes) -> Architecture:
    """Infers the network from the names and shapes in a file.

    A published width is preferred to another one, and any width to a list of channels. Where the
    shapes fit no network, the nearest published one is returned, for the merge to report the
    differences. `shapes` are in the file's order of axes.
    """
    leaves, axes = ecosystem.framework.leaves, ecosystem.framework.axes
    vectors = {name: shape[0] for name, shape in shapes.items() if len(shape) == 1}
    spec, head = _with_depth(ecosystem, shapes), None
    if ecosystem.segmenter is not None:
        scales = [norm + leaves["scale"] for _, norm in ecosystem.segmenter.layers.values()]
        head = next((vectors[name] for name in reversed(scales) if name in vectors), None)
    if head is not None:
        spec = spec._replace(last=None)
    scales = {ours: norm + leaves["scale"] for ours, _, norm in convolutions(ecosystem, spec)}
    channels = {ours: vectors[name] for ours, name in scales.items() if name in vectors}

    def fit(spec: Spec, width: float) -> int:
        """How many layers have as many output channels as in the file."""
        outputs = _outputs(spec, width, ecosystem.expand)
        return sum(channels.get(ours) == count for ours, count in outputs)

    layers = len(_outputs(spec, 1.0, ecosystem.expand))
    width = max(PUBLISHED, key=lambda width: fit(spec, width))
    if len(channels) == layers != fit(spec, width):
        width = next((w for w in UNPUBLISHED if fit(spec, w) == layers), width)
        listed = _with_channels(spec, channels)
        if fit(spec, width) != layers and listed is not None and fit(listed, 1.0) == layers:
            spec, width = listed, 1.0
    stem = shapes.get(ecosystem.stem[0] + leaves["conv"], ())
    in_channels = stem[axes["conv"][2]] if len(stem) == 4 else 3
    classes = _detected_classes(ecosystem, shapes)
    if classes is not None:
        return Architecture(spec, width, in_channels, classes, detects=True)
    _, bias = classifier_names(ecosystem, segmenter=head is not None)
    return Architecture(spec, width, in_channels, vectors.get(bias), head)


def _detected_classes(ecosystem: Ecosystem, shapes: Shapes) -> int | None:
    """Returns the classes of a detector, background not counted; None where it is none."""
    if ecosystem.detector is None:
        return None
    layer, _ = ecosystem.detector.predictors["classes"]
    kernel = shapes.get(layer.format(map=0) + ecosystem.framework.leaves["head_kernel"])
    if not kernel:
        return None
    return max(kernel[-1] // len(anchor_shapes(2)[0]) - 1, 1)


@functools.lru_cache(256)
def _outputs(spec: Spec, width: float, expand: Map) -> tuple[tuple[str, int], ...]:
    """Lists the layers of a network with their output channels."""
    return tuple((ours, shape[3]) for ours, shape in kernel_shapes(spec, width, 3, expand).items())


def _with_depth(ecosystem: Ecosystem, shapes: Shapes) -> Spec:
    """Returns the spec with the repeats that timm's names show, which number stages and blocks."""
    if "{stage}" not in ecosystem.wide["project"][0]:
        return ecosystem.spec
    pattern = re.escape(ecosystem.wide["project"][1])
    pattern = pattern.replace(r"\{stage\}", r"(\d{1,3})").replace(r"\{index\}", r"(\d{1,3})")
    matches = [match for name in shapes if (match := re.match(pattern, name))]
    rows = []
    for stage, row in enumerate(IMAGENET.rows):
        indices = (int(match[2]) for match in matches if int(match[1]) == stage)
        depth = 1 + max(indices, default=row.n - 1)
        rows.append(row._replace(n=depth if row.t > 1 and depth <= MAX_DEPTH else row.n))
    return IMAGENET._replace(rows=tuple(rows))


def _with_channels(spec: Spec, channels: Mapping[str, int]) -> Spec | None:
    """Returns a spec that lists the channels as they are; None where no network has them."""
    rows: list[Row] = []
    i, entering = 0, channels["stem"]
    for row in spec.rows:
        outputs, expanded = channels[f"block_{i}/project"], channels[f"block_{i}/filter"]
        if entering < 1 or expanded % entering:
            return None
        rows.append(row._replace(t=expanded // entering, c=outputs))
        i, entering = i + row.n, outputs
    stem, last = channels["stem"], channels.get("last")
    return spec._replace(stem=stem, rows=tuple(rows), last=last, divisor=1)
