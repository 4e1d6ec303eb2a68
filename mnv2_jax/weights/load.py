"""Loads published weights: file, names, architecture, strict merge, and what belongs to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.models.deeplab import DeepLabV3
from mnv2_jax.models.dialect import DIALECTS, Dialect
from mnv2_jax.models.mobilenet import MobileNetV2
from mnv2_jax.models.spec import SPECS
from mnv2_jax.weights.architecture import Architecture, find_architecture
from mnv2_jax.weights.beside import Beside, input_range, read_beside
from mnv2_jax.weights.merge import (
    check_ecosystem,
    describe_unknown,
    find_head,
    infer_ecosystem,
    merge,
)
from mnv2_jax.weights.names import ECOSYSTEMS, Ecosystem
from mnv2_jax.weights.preprocessing import Preprocessing, preprocessing_of, segmenter_preprocessing
from mnv2_jax.weights.readers import Contents, read_tensors
from mnv2_jax.weights.tensors import classifier_names

IMAGENET_CLASSES = 1000
OUTPUT_STRIDE = 16  # of a segmenter whose files do not say; the paper's recommendation
CLASSIFIER_STRIDE = 32
MAX_RESOLUTION = 2**13


class Loaded(NamedTuple):
    """Weights and what is needed to use them.

    Attributes:
      model: the network, in the dialect of its weights: a classifier or a segmenter.
      variables: `params` and `batch_stats`, float32.
      preprocessing: how images are to be prepared.
      sha256: of the file.
      source: what was loaded, as `ecosystem:path`.
      names: of the classes, background included, where they lie beside the file.
      left_out: names of the tensors in the file that are no part of the network.
    """

    model: MobileNetV2 | DeepLabV3
    variables: dict[str, Any]
    preprocessing: Preprocessing
    sha256: str
    source: str
    names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

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
            "dialect": _dialect_option(self.dialect),
        }
        if backbone.output_stride is not None:
            options["output_stride"] = backbone.output_stride
        if isinstance(model, DeepLabV3):
            return options | {"channels": model.channels}
        return options | {"class_offset": model.class_offset}


def _dialect_option(dialect: Dialect) -> str | dict[str, Any]:
    """The name of a dialect, with the fields in which weights differ from it, if they do."""
    named = DIALECTS[dialect.name]
    fields = zip(dialect._fields, dialect, named, strict=True)
    changed = {field: value for field, value, usual in fields if value != usual}
    return {"name": dialect.name, **changed} if changed else dialect.name


def load_weights(
    source: str,
    sha256: str | None = None,
    drop_head: bool = False,
    drop_background: bool = False,
    ema: bool = True,
    output_stride: int | None = None,
    resolution: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Loaded:
    """Loads all published weights of a classifier or a segmenter (Sec. 6.3), or none of them.

    To fine-tune on other classes, drop the head and put the rest into fresh variables, whose names
    are the same: `fresh["params"] | loaded.variables["params"]`, and `batch_stats` likewise.

    Args:
      source: `ecosystem:path`, such as `torchvision:mobilenet_v2-b0353104.pth`; the ecosystem is
        one of `ECOSYSTEMS`, the format one of `readers.READERS`.
      sha256: the expected sha256 of the file; safetensors and pickles have no checksum inside.
      drop_head: leave out whatever follows the backbone; the model gives features only.
      drop_background: drop class 0 of a classifier whose class 0 is "background", 1001 to 1000.
      ema: where the file has moving averages of the weights, load them (the published accuracy is
        theirs); False loads the raw weights.
      output_stride: 8, 16 or 32, of a segmenter: its weights fit all three.
      resolution: height and width of the images.
      mean, std: the network was trained on (pixel / 255 - mean) / std; one value or one a channel.
        The last four replace what lies beside the weights (see `beside`) and the ecosystem's own.

    Raises:
      UsageError: the file cannot be read, is not of this ecosystem, or does not fit MobileNetV2;
        then a diff lists what is missing (-), unexpected (+) and of another shape (~).
    """
    ecosystem, path = parse_source(source)
    contents = read_tensors(path, ema, sha256)
    check_ecosystem(ecosystem, contents.tensors, path)
    shapes = {name: array.shape for name, array in contents.tensors.items()}
    architecture = find_architecture(ecosystem, shapes)
    beside = _with_choices(
        read_beside(ecosystem.name, path, contents.graph), output_stride, resolution, mean, std
    )
    ecosystem = ecosystem._replace(dialect=_changed(ecosystem.dialect, beside, architecture))
    try:
        if architecture.head is not None:
            if drop_head or drop_background:
                raise UsageError(
                    f"{path!r} is a segmenter: load it without drop_head or drop_background; its "
                    "backbone's variables are under 'backbone'."
                )
            return _segmenter(ecosystem, architecture, contents, path, beside)
        if output_stride is not None:
            raise UsageError(f"{path!r} is a classifier: load it without output_stride.")
        return _classifier(
            ecosystem, architecture, contents, path, beside, drop_head, drop_background
        )
    except UsageError as error:
        if contents.averages != "used":
            raise
        raise UsageError(
            f"{error} These are the moving averages: ema=False takes the raw weights."
        ) from error


def _with_choices(
    beside: Beside, output_stride: int | None, resolution: int | None, mean: Any, std: Any
) -> Beside:
    """Puts what was chosen in place of what lies beside the weights."""
    if resolution is not None and not (
        type(resolution) is int and 1 <= resolution <= MAX_RESOLUTION
    ):
        raise UsageError(f"resolution is {resolution!r}: give 1 to {MAX_RESOLUTION}.")
    if (mean is None) != (std is None):
        raise UsageError("mean and std belong together: give both, or neither.")
    dialect = dict(beside.dialect)
    if mean is not None:
        try:
            dialect |= input_range(mean, std)
        except ValueError as error:
            raise UsageError(f"{error}: one value, or one for every channel.") from error
    return beside._replace(
        size=resolution or beside.size,
        dialect=dialect,
        output_stride=output_stride or beside.output_stride,
    )


def _changed(dialect: Dialect, beside: Beside, architecture: Architecture) -> Dialect:
    for key in ("mean", "std"):
        count = len(beside.dialect.get(key, (0,)))
        if count not in (1, architecture.in_channels):
            raise UsageError(
                f"{key} has {count} values and the network {architecture.in_channels} input "
                "channels: give one value, or one for every channel."
            )
    usual = dialect._asdict()
    # three equal values are the one of a dialect
    return dialect._replace(**{k: v for k, v in beside.dialect.items() if usual[k] != v})


def _classifier(
    ecosystem: Ecosystem,
    architecture: Architecture,
    contents: Contents,
    path: str,
    beside: Beside,
    drop_head: bool,
    drop_background: bool,
) -> Loaded:
    stored, head, why = find_head(ecosystem, architecture, contents.tensors)
    classes = None if drop_head or head is None else head
    variables, left_out = merge(ecosystem, architecture._replace(classes=classes), stored, path)
    if not drop_head and (why := why or beside.head):
        raise UsageError(
            f"{path!r} has another head than one linear layer: {why}. Load it with drop_head=True "
            "for its features, and fine-tune them."
        )
    if classes is None and not drop_head:
        raise UsageError(
            f"{path!r} has no classifier ({classifier_names(ecosystem)[0]}): load it with "
            "drop_head=True for its features."
        )
    names = _names_for(beside, classes, path)
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
        classes, offset, names = IMAGENET_CLASSES, 0, names[offset:]
    stride = beside.output_stride
    model = MobileNetV2(
        classes,
        architecture.width,
        None if stride == CLASSIFIER_STRIDE else stride,
        spec=architecture.spec,
        in_channels=architecture.in_channels,
        dropout=ecosystem.dropout,
        dialect=ecosystem.dialect,
        class_offset=offset,
    )
    prepared = preprocessing_of(ecosystem.name, model.dialect, path, contents.sha256)
    if beside.size is not None and ecosystem.name == "hf":
        prepared = prepared._replace(fraction=beside.size / (beside.size + 32))
    prepared = prepared._replace(size=beside.size or prepared.size, **beside.rule)
    source = f"{ecosystem.name}:{path}"
    return Loaded(model, variables, prepared, contents.sha256, source, names, left_out)


def _names_for(beside: Beside, classes: int | None, path: str) -> tuple[str, ...]:
    if classes is None or not beside.names or len(beside.names) == classes:
        return beside.names if classes else ()
    raise UsageError(
        f"{path!r} has {classes} classes, and what lies beside it names {len(beside.names)}: "
        "correct it, or move the weights elsewhere."
    )


def _segmenter(
    ecosystem: Ecosystem, architecture: Architecture, contents: Contents, path: str, beside: Beside
) -> Loaded:
    spec, width, in_channels, classes, channels = architecture
    variables, left_out = merge(ecosystem, architecture, contents.tensors, path)
    if classes is None or channels is None:
        kernel, _ = classifier_names(ecosystem, segmenter=True)
        raise UsageError(f"{path!r} has no {kernel}, the last layer of a segmenter: use another.")
    stride = beside.output_stride or OUTPUT_STRIDE
    backbone = MobileNetV2(
        None, width, stride, spec=spec, in_channels=in_channels, dialect=ecosystem.dialect
    )
    model = DeepLabV3(classes, backbone, channels=channels)  # its head has its own batch norm
    prepared = segmenter_preprocessing(ecosystem.dialect, path)
    prepared = prepared._replace(size=beside.size or prepared.size)
    source, names = f"{ecosystem.name}:{path}", _names_for(beside, classes, path)
    return Loaded(model, variables, prepared, contents.sha256, source, names, left_out)


def find_source(source: str, ema: bool = True) -> str:
    """Completes the path of a file by its ecosystem, as the names of the tensors tell it.

    Raises:
      UsageError: they tell none.
    """
    prefix, colon, _ = source.partition(":")
    if colon and (prefix in ECOSYSTEMS or not Path(source).exists()):
        parse_source(source)
        return source
    names = read_tensors(source, ema).tensors
    if (ecosystem := infer_ecosystem(names)) is None:
        described, change = describe_unknown(source, names)
        raise UsageError(f"{source!r} is not imported. Its ecosystem is {described}; {change}.")
    return f"{ecosystem}:{source}"


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
