"""Loads published weights: file, names, architecture, strict merge, and what belongs to them."""

from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.models.deeplab import DeepLabV3
from mnv2_jax.models.dialect import Dialect
from mnv2_jax.models.mobilenet import MobileNetV2
from mnv2_jax.models.spec import SPECS
from mnv2_jax.weights.architecture import Architecture, find_architecture
from mnv2_jax.weights.files import read_tensors
from mnv2_jax.weights.hub import describe_segmenter
from mnv2_jax.weights.merge import check_ecosystem, head_names, merge
from mnv2_jax.weights.names import ECOSYSTEMS, Ecosystem
from mnv2_jax.weights.preprocessing import Preprocessing, preprocessing_of, segmenter_preprocessing

IMAGENET_CLASSES = 1000
OUTPUT_STRIDE = 16  # of a segmenter where nothing says another: the paper's recommendation


class Loaded(NamedTuple):
    """Weights and all that gives them their meaning.

    Attributes:
      model: the network they are of, in their dialect: a classifier, or a segmenter.
      variables: `params` and `batch_stats`, float32.
      dialect: as in the model; its class offset is what the classifier has.
      classes: outputs of the classifier or segmenter; None where it was dropped.
      preprocessing: how images are to be prepared.
      sha256: of the file.
      source: what was loaded, as `ecosystem:path`.
      names: of a segmenter's classes, where a hub's description beside the file has them.
    """

    model: MobileNetV2 | DeepLabV3
    variables: dict[str, Any]
    dialect: Dialect
    classes: int | None
    preprocessing: Preprocessing
    sha256: str
    source: str
    names: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        """What the network does: "classify" or "segment"."""
        return "segment" if isinstance(self.model, DeepLabV3) else "classify"

    @property
    def backbone(self) -> MobileNetV2:
        """The `MobileNetV2` in the model."""
        return self.model.backbone if isinstance(self.model, DeepLabV3) else self.model

    @property
    def options(self) -> dict[str, Any]:
        """What `build`, or `build_deeplab`, takes to build the model again, as plain values.

        Raises:
          UsageError: the network's rows are in no table, so that no name stands for them.
        """
        model, backbone = self.model, self.backbone
        specs = SPECS
        if isinstance(model, DeepLabV3):
            specs = {name: spec._replace(last=None) for name, spec in SPECS.items()}
        spec = next((name for name, spec in specs.items() if spec == backbone.spec), None)
        if spec is None:
            raise UsageError(
                f"{self.source!r} is a network with channels or depths of its own, which no "
                f"configuration names ({', '.join(SPECS)} are named): use its model from Python."
            )
        shared = {
            "num_classes": model.num_classes,
            "width": backbone.width,
            "spec": spec,
            "in_channels": backbone.in_channels,
            "dropout": model.dropout,
            "dialect": self.dialect.name,
        }
        if isinstance(model, DeepLabV3):
            return shared | {
                "output_stride": backbone.output_stride,
                "channels": model.channels,
            }
        return shared | {"class_offset": self.dialect.class_offset}


def load_weights(
    source: str,
    sha256: str | None = None,
    drop_head: bool = False,
    drop_background: bool = False,
    ema: bool = True,
    output_stride: int | None = None,
) -> Loaded:
    """Loads published weights, all of them or none: a classifier's, or a segmenter's (Sec. 6.3).

    To fine-tune on other classes, drop the head and put the rest into fresh variables, whose names
    are the same: `fresh["params"] | loaded.variables["params"]`, and `batch_stats` likewise.

    Args:
      source: `ecosystem:path`, such as `torchvision:mobilenet_v2-b0353104.pth`; the ecosystem is
        one of `ECOSYSTEMS`, for formats see `files.read_tensors`.
      sha256: what the file's has to be; safetensors and pickles have no checksum of their own.
      drop_head: leave the classifier out, whatever its classes; the model gives features only.
      drop_background: drop class 0 of a classifier whose class 0 is "background", 1001 to 1000.
      ema: where the file has moving averages of the weights, take them (they are what was
        published); False takes the raw weights.
      output_stride: of a segmenter, which its weights do not tell: any of 8, 16 and 32 computes
        with the same ones. None takes what a hub's `config.json` beside the file says, else 16.

    Raises:
      UsageError: the file cannot be read, is not of this ecosystem, or does not fit MobileNetV2;
        then a diff says what is missing (-), unexpected (+) and of another shape (~).
    """
    ecosystem, path = parse_source(source)
    contents = read_tensors(path, ema, sha256)
    found = contents.tensors
    check_ecosystem(ecosystem, found, path)
    architecture = find_architecture(ecosystem, {name: a.shape for name, a in found.items()})
    if architecture.head is not None:
        if drop_head or drop_background:
            raise UsageError(
                f"{path!r} is a segmenter: it is loaded as it is, without drop_head or "
                "drop_background; its backbone's variables are under 'backbone'."
            )
        variables = merge(ecosystem, architecture, found, path)
        return _segmenter(
            ecosystem, architecture, variables, source, contents.sha256, output_stride
        )
    if output_stride is not None:
        raise UsageError(f"{path!r} is a classifier, which takes no output_stride: leave it out.")
    if drop_head:
        architecture = architecture._replace(classes=None)
        found = {name: a for name, a in found.items() if name not in head_names(ecosystem)}
    variables = merge(ecosystem, architecture, found, path)
    if architecture.classes is None and not drop_head:
        raise UsageError(
            f"{path!r} has no classifier ({head_names(ecosystem)[0]}): load it with drop_head=True "
            "for its features."
        )
    offset = class_offset(ecosystem, architecture.classes)
    if drop_background:
        _drop_background(path, variables, architecture.classes, offset)
        architecture, offset = architecture._replace(classes=IMAGENET_CLASSES), 0
    dialect = ecosystem.dialect._replace(class_offset=offset)
    model = MobileNetV2(
        num_classes=architecture.classes,
        width=architecture.width,
        spec=architecture.spec,
        in_channels=architecture.in_channels,
        dropout=ecosystem.dropout,
        dialect=dialect,
    )
    preprocessing = preprocessing_of(ecosystem.name, dialect, path, contents.sha256)
    return Loaded(
        model, variables, dialect, architecture.classes, preprocessing, contents.sha256, source
    )


def _segmenter(
    ecosystem: Ecosystem,
    architecture: Architecture,
    variables: dict[str, Any],
    source: str,
    sha256: str,
    output_stride: int | None,
) -> Loaded:
    """Builds the DeepLabv3 that variables are of; its head has its own batch norm, as published."""
    path = source.partition(":")[2]
    assert architecture.head is not None and architecture.classes is not None
    described = describe_segmenter(path, architecture.classes)
    backbone = MobileNetV2(
        num_classes=None,
        width=architecture.width,
        output_stride=output_stride or described.output_stride or OUTPUT_STRIDE,
        spec=architecture.spec,
        in_channels=architecture.in_channels,
        dialect=ecosystem.dialect,
    )
    model = DeepLabV3(architecture.classes, backbone, channels=architecture.head)
    preprocessing = segmenter_preprocessing(ecosystem.dialect, path)
    return Loaded(
        model,
        variables,
        ecosystem.dialect,
        architecture.classes,
        preprocessing,
        sha256,
        source,
        described.names,
    )


def _drop_background(
    path: str, variables: dict[str, Any], classes: int | None, offset: int
) -> None:
    """Cuts class 0 off the classifier in place."""
    if not offset:
        raise UsageError(
            f"{path!r} has {classes or 'no'} classes, and none is background: load it without "
            "drop_background."
        )
    head = variables["params"]["classifier"]
    for name, leaf in head.items():
        head[name] = np.ascontiguousarray(leaf[..., offset:])


def class_offset(ecosystem: Ecosystem, classes: int | None) -> int:
    """Returns 1 where class 0 of a classifier is "background", told by its 1001 classes."""
    offset = ecosystem.dialect.class_offset
    return offset if classes == IMAGENET_CLASSES + offset else 0


def parse_source(source: str) -> tuple[Ecosystem, str]:
    """Splits `ecosystem:path`.

    >>> parse_source("timm:model.safetensors")[1]
    'model.safetensors'

    Raises:
      UsageError: there is no colon, or no such ecosystem.
    """
    name, colon, path = str(source).partition(":")
    if not colon or not path or "/" in name:
        raise UsageError(
            f"{str(source)!r} does not say whose weights these are: write ecosystem:path, with the "
            f"ecosystem one of {', '.join(ECOSYSTEMS)}."
        )
    if name not in ECOSYSTEMS:
        raise unknown("ecosystem", name, ECOSYSTEMS)
    return ECOSYSTEMS[name], path
