"""Loads published weights: file, names, architecture, strict merge, and what belongs to them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, first_line, unknown
from mnv2_jax.files import read_file
from mnv2_jax.models.deeplab import DeepLabV3
from mnv2_jax.models.dialect import Dialect
from mnv2_jax.models.mobilenet import MobileNetV2
from mnv2_jax.models.spec import SPECS
from mnv2_jax.weights.architecture import Architecture, find_architecture
from mnv2_jax.weights.merge import check_ecosystem, merge
from mnv2_jax.weights.names import ECOSYSTEMS, Ecosystem
from mnv2_jax.weights.preprocessing import Preprocessing, preprocessing_of, segmenter_preprocessing
from mnv2_jax.weights.readers import Contents, read_tensors
from mnv2_jax.weights.tensors import classifier_names, unused

IMAGENET_CLASSES = 1000
OUTPUT_STRIDE = 16  # of a segmenter whose files do not say; the paper's recommendation
MAX_CONFIG = 1 << 20  # bytes; a config.json with the names of a thousand classes takes 70 kB


class Loaded(NamedTuple):
    """Weights and what is needed to use them.

    Attributes:
      model: the network, in the dialect of its weights: a classifier or a segmenter.
      variables: `params` and `batch_stats`, float32.
      preprocessing: how images are to be prepared.
      sha256: of the file.
      source: what was loaded, as `ecosystem:path`.
      names: of a segmenter's classes, where a `config.json` beside the file lists them.
    """

    model: MobileNetV2 | DeepLabV3
    variables: dict[str, Any]
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
    def dialect(self) -> Dialect:
        """The dialect of the weights."""
        return self.backbone.dialect

    @property
    def classes(self) -> int | None:
        """Outputs of the classifier or segmenter; None where the classifier was dropped."""
        return self.model.num_classes

    @property
    def options(self) -> dict[str, Any]:
        """The plain values from which `build` or `build_deeplab` makes the model again.

        Raises:
          UsageError: no name stands for the network's rows.
        """
        model, backbone = self.model, self.backbone
        specs = SPECS
        if isinstance(model, DeepLabV3):
            specs = {name: spec._replace(last=None) for name, spec in SPECS.items()}
        spec = next((name for name, spec in specs.items() if spec == backbone.spec), None)
        if spec is None:
            raise UsageError(
                f"{self.source!r} is a network with its own channels or depths, which no "
                f"configuration names ({', '.join(SPECS)} have names): use its model from Python."
            )
        options = {
            "num_classes": model.num_classes,
            "width": backbone.width,
            "spec": spec,
            "in_channels": backbone.in_channels,
            "dropout": model.dropout,
            "dialect": self.dialect.name,
        }
        if isinstance(model, DeepLabV3):
            return options | {"output_stride": backbone.output_stride, "channels": model.channels}
        return options | {"class_offset": model.class_offset}


def load_weights(
    source: str,
    sha256: str | None = None,
    drop_head: bool = False,
    drop_background: bool = False,
    ema: bool = True,
    output_stride: int | None = None,
) -> Loaded:
    """Loads all published weights of a classifier or a segmenter (Sec. 6.3), or none of them.

    To fine-tune on other classes, drop the head and put the rest into fresh variables, whose names
    are the same: `fresh["params"] | loaded.variables["params"]`, and `batch_stats` likewise.

    Args:
      source: `ecosystem:path`, such as `torchvision:mobilenet_v2-b0353104.pth`; the ecosystem is
        one of `ECOSYSTEMS`, the format one of `readers.READERS`.
      sha256: the expected sha256 of the file; safetensors and pickles have no checksum inside.
      drop_head: leave the classifier out, whatever its classes; the model gives features only.
      drop_background: drop class 0 of a classifier whose class 0 is "background", 1001 to 1000.
      ema: where the file has moving averages of the weights, load them (the published accuracy is
        theirs); False loads the raw weights.
      output_stride: 8, 16 or 32, of a segmenter: its weights fit all three. None takes the one in
        a `config.json` beside the file, else 16.

    Raises:
      UsageError: the file cannot be read, is not of this ecosystem, or does not fit MobileNetV2;
        then a diff lists what is missing (-), unexpected (+) and of another shape (~).
    """
    ecosystem, path = parse_source(source)
    contents = read_tensors(path, ema, sha256)
    check_ecosystem(ecosystem, contents.tensors, path)
    shapes = {name: array.shape for name, array in contents.tensors.items()}
    architecture = find_architecture(ecosystem, shapes)
    if architecture.head is None:
        if output_stride is not None:
            raise UsageError(f"{path!r} is a classifier: load it without output_stride.")
        return _classifier(ecosystem, architecture, contents, path, drop_head, drop_background)
    if drop_head or drop_background:
        raise UsageError(
            f"{path!r} is a segmenter: load it without drop_head or drop_background; its "
            "backbone's variables are under 'backbone'."
        )
    return _segmenter(ecosystem, architecture, contents, path, output_stride)


def _classifier(
    ecosystem: Ecosystem,
    architecture: Architecture,
    contents: Contents,
    path: str,
    drop_head: bool,
    drop_background: bool,
) -> Loaded:
    head = classifier_names(ecosystem)
    if drop_head:
        architecture = architecture._replace(classes=None)
    tensors = contents.tensors
    variables = merge(ecosystem, architecture, tensors, path, head if drop_head else ())
    classes = architecture.classes
    if classes is None and not drop_head:
        raise UsageError(
            f"{path!r} has no classifier ({head[0]}): load it with drop_head=True for its features."
        )
    offset = ecosystem.class_offset if classes == IMAGENET_CLASSES + ecosystem.class_offset else 0
    if drop_background:
        if not offset:
            raise UsageError(
                f"{path!r} has {classes or 'no'} classes, and none is background: load it without "
                "drop_background."
            )
        classifier = variables["params"]["classifier"]
        for name, leaf in classifier.items():
            classifier[name] = np.ascontiguousarray(leaf[..., offset:])
        classes, offset = IMAGENET_CLASSES, 0
    model = MobileNetV2(
        num_classes=classes,
        width=architecture.width,
        spec=architecture.spec,
        in_channels=architecture.in_channels,
        dropout=ecosystem.dropout,
        dialect=ecosystem.dialect,
        class_offset=offset,
    )
    prepared = preprocessing_of(ecosystem.name, model.dialect, path, contents.sha256)
    return Loaded(model, variables, prepared, contents.sha256, f"{ecosystem.name}:{path}")


def _segmenter(
    ecosystem: Ecosystem,
    architecture: Architecture,
    contents: Contents,
    path: str,
    output_stride: int | None,
) -> Loaded:
    spec, width, in_channels, classes, channels = architecture
    idle = {tensor.theirs for tensor in unused(ecosystem, spec, width)}
    variables = merge(ecosystem, architecture, contents.tensors, path, idle)
    if classes is None or channels is None:
        kernel, _ = classifier_names(ecosystem, segmenter=True)
        raise UsageError(f"{path!r} has no {kernel}, the last layer of a segmenter: use another.")
    described_stride, names = describe_segmenter(path, classes)
    stride = output_stride or described_stride or OUTPUT_STRIDE
    backbone = MobileNetV2(
        None, width, stride, spec=spec, in_channels=in_channels, dialect=ecosystem.dialect
    )
    model = DeepLabV3(classes, backbone, channels=channels)  # its head has its own batch norm
    prepared = segmenter_preprocessing(ecosystem.dialect, path)
    source = f"{ecosystem.name}:{path}"
    return Loaded(model, variables, prepared, contents.sha256, source, names)


def describe_segmenter(path: str, classes: int) -> tuple[int | None, tuple[str, ...]]:
    """Reads what Hugging Face's `config.json` beside a segmenter's weights adds to them.

    Returns:
      The output stride, None where it is not given, and the names of the classes, which are empty
      unless every class has one.

    Raises:
      UsageError: the description is there and cannot be read.
    """
    file = Path(path).with_name("config.json")
    if not file.is_file():
        return None, ()
    text = read_file(file, MAX_CONFIG)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{str(file)!r}, which describes the weights beside it, cannot be read: "
            f"{first_line(error)}. Correct it, or move the weights elsewhere."
        ) from error
    content = content if isinstance(content, dict) else {}
    stride, table = content.get("output_stride"), content.get("id2label")
    table = table if isinstance(table, dict) else {}
    names = [name for i in range(classes) if isinstance(name := table.get(str(i)), str) and name]
    return stride if type(stride) is int else None, tuple(names) if len(names) == classes else ()


def parse_source(source: str) -> tuple[Ecosystem, str]:
    """Splits `ecosystem:path`.

    >>> parse_source("timm:model.safetensors")[1]
    'model.safetensors'

    Raises:
      UsageError: the colon is missing, or the ecosystem is unknown.
    """
    name, colon, path = str(source).partition(":")
    if not colon or not path or "/" in name:
        raise UsageError(
            f"{str(source)!r} names no ecosystem: write ecosystem:path, where the ecosystem is one "
            f"of {', '.join(ECOSYSTEMS)}."
        )
    if name not in ECOSYSTEMS:
        raise unknown("ecosystem", name, ECOSYSTEMS)
    return ECOSYSTEMS[name], path
