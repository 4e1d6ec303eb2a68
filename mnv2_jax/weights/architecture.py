"""Which network a checkpoint is for: width, depth, classes and channels, read off its shapes."""

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

from mnv2_jax.models.spec import IMAGENET, Row, Spec
from mnv2_jax.weights.names import Ecosystem
from mnv2_jax.weights.tensors import classifier_name, convolutions, kernel_shapes, our_shape

PUBLISHED = (1.0, 0.35, 0.5, 0.75, 1.3, 1.4)
# Other widths that a training may have had, once no published one fits.
UNPUBLISHED = tuple(round(0.05 * step, 2) for step in range(1, 81))
MAX_DEPTH = 64  # blocks in one stage; timm's deepest has 7

Shapes = Mapping[str, tuple[int, ...]]


class Architecture(NamedTuple):
    """What is built: the arguments of the network that shapes determine.

    Attributes:
      spec, width, in_channels: of `MobileNetV2`.
      classes: of its classifier or of the segmenter; None for neither.
      head: channels of a segmenter's head; None for no segmenter.
    """

    spec: Spec
    width: float
    in_channels: int
    classes: int | None
    head: int | None = None

    @property
    def title(self) -> str:
        """What messages call it."""
        network = "MobileNetV2" if self.head is None else "DeepLabv3 on MobileNetV2"
        if self.spec._replace(last=IMAGENET.last) == IMAGENET:
            return f"{network} of width {self.width:g}"
        blocks = sum(row.n for row in self.spec.rows)
        return f"{network} of {blocks} blocks with channels of its own"


def find_architecture(ecosystem: Ecosystem, shapes: Shapes) -> Architecture:
    """Infers the network from the shapes in a file, by their names.

    A published width is preferred to another one, and any width to a list of channels. Where the
    shapes fit no network at all, the nearest published one is returned, for a merge to say what is
    wrong.

    Args:
      ecosystem: whose names they are.
      shapes: in the file's order of axes.
    """
    spec, head = _with_depth(ecosystem, shapes), _head_channels(ecosystem, shapes)
    if head is not None:
        spec = spec._replace(last=None)
    found = {
        ours: shapes.get(ecosystem.framework.leaves["scale"].format(norm=norm), ())
        for ours, _, norm in convolutions(ecosystem, spec)
    }
    found = {ours: shape[0] for ours, shape in found.items() if len(shape) == 1}

    def fit(spec: Spec, width: float) -> int:
        return sum(found.get(ours) == outputs for ours, outputs in _outputs(spec, width))

    layers = len(_outputs(spec, 1.0))
    for width in (*PUBLISHED, *UNPUBLISHED):
        if len(found) == layers and fit(spec, width) == layers:
            break
    else:
        listed = _with_channels(spec, found) if len(found) == layers else None
        if listed is not None and fit(listed, 1.0) == layers:
            spec, width = listed, 1.0
        else:
            width = max(PUBLISHED, key=lambda width: fit(spec, width))
    return Architecture(
        spec,
        width,
        _in_channels(ecosystem, shapes),
        _num_classes(ecosystem, shapes, head is not None),
        head,
    )


@functools.lru_cache(256)
def _outputs(spec: Spec, width: float) -> tuple[tuple[str, int], ...]:
    """The layers of a network and how many channels come out of each."""
    return tuple((ours, shape[3]) for ours, shape in kernel_shapes(spec, width, 3).items())


def _with_depth(ecosystem: Ecosystem, shapes: Shapes) -> Spec:
    """Table 2, with the repeats that the names of the blocks show where they number stages."""
    if "{stage}" not in ecosystem.stem[0] + ecosystem.wide["project"][0]:
        return IMAGENET
    pattern = re.escape(ecosystem.wide["project"][1])
    pattern = pattern.replace(r"\{stage\}", r"(\d{1,3})").replace(r"\{index\}", r"(\d{1,3})")
    places = {
        (int(match[1]), int(match[2])) for name in shapes if (match := re.match(pattern, name))
    }
    rows = []
    for stage, row in enumerate(IMAGENET.rows):
        depth = 1 + max((index for at, index in places if at == stage), default=row.n - 1)
        rows.append(row._replace(n=depth if row.t > 1 and depth <= MAX_DEPTH else row.n))
    return IMAGENET._replace(rows=tuple(rows))


def _with_channels(spec: Spec, found: Mapping[str, int]) -> Spec | None:
    """A spec that lists the found channels as they are; None where they are no such network."""
    rows: list[Row] = []
    i, entering = 0, found["stem"]
    for row in spec.rows:
        channels, expanded = found[f"block_{i}/project"], found[f"block_{i}/filter"]
        if entering < 1 or expanded % entering:
            return None
        rows.append(row._replace(t=expanded // entering, c=channels))
        i, entering = i + row.n, channels
    return Spec(found["stem"], spec.stem_stride, tuple(rows), found.get("last"), divisor=1)


def _in_channels(ecosystem: Ecosystem, shapes: Shapes) -> int:
    framework = ecosystem.framework
    name = framework.leaves["conv"].format(conv=ecosystem.stem[0])
    shape = our_shape(framework, "conv", shapes.get(name, ()))
    return shape[2] if shape is not None else 3


def _head_channels(ecosystem: Ecosystem, shapes: Shapes) -> int | None:
    """Returns the channels of a segmenter's head, or None where nothing of one is there."""
    names = ecosystem.segmenter
    if names is None:
        return None
    scale = ecosystem.framework.leaves["scale"]
    for _, norm in (names.projection, names.aspp_0, names.pooling):
        shape = shapes.get(scale.format(norm=norm), ())
        if len(shape) == 1:
            return shape[0]
    return None


def _num_classes(ecosystem: Ecosystem, shapes: Shapes, segmenter: bool) -> int | None:
    head = classifier_name(ecosystem, segmenter)
    shape = shapes.get(ecosystem.framework.leaves["head_bias"].format(head=head), ())
    return shape[0] if len(shape) == 1 else None
