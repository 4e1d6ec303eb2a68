"""Loads published weights: file, names, architecture, strict merge, and what belongs to them."""

from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.models.dialect import Dialect
from mnv2_jax.models.mobilenet import MobileNetV2
from mnv2_jax.models.spec import SPECS
from mnv2_jax.weights.architecture import find_architecture
from mnv2_jax.weights.files import read_tensors
from mnv2_jax.weights.merge import check_ecosystem, head_names, merge
from mnv2_jax.weights.names import ECOSYSTEMS, Ecosystem
from mnv2_jax.weights.preprocessing import Preprocessing, preprocessing_of

IMAGENET_CLASSES = 1000


class Loaded(NamedTuple):
    """Weights and all that gives them their meaning.

    Attributes:
      model: the network they are of, in their dialect.
      variables: `params` and `batch_stats`, float32.
      dialect: as in the model; its class offset is what the classifier has.
      classes: outputs of the classifier; None where it was dropped.
      preprocessing: how images are to be prepared.
      sha256: of the file.
      source: what was loaded, as `ecosystem:path`.
    """

    model: MobileNetV2
    variables: dict[str, Any]
    dialect: Dialect
    classes: int | None
    preprocessing: Preprocessing
    sha256: str
    source: str

    @property
    def options(self) -> dict[str, Any]:
        """What `build` takes to build the model again, as plain values.

        Raises:
          UsageError: the network's rows are in no table, so that no name stands for them.
        """
        spec = next((name for name, spec in SPECS.items() if spec == self.model.spec), None)
        if spec is None:
            raise UsageError(
                f"{self.source!r} is a network with channels or depths of its own, which no "
                f"configuration names ({', '.join(SPECS)} are named): use its model from Python."
            )
        return {
            "num_classes": self.model.num_classes,
            "width": self.model.width,
            "spec": spec,
            "in_channels": self.model.in_channels,
            "dropout": self.model.dropout,
            "dialect": self.dialect.name,
            "class_offset": self.dialect.class_offset,
        }


def load_weights(
    source: str,
    sha256: str | None = None,
    drop_head: bool = False,
    drop_background: bool = False,
    ema: bool = True,
) -> Loaded:
    """Loads published weights, all of them or none.

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

    Raises:
      UsageError: the file cannot be read, is not of this ecosystem, or does not fit MobileNetV2;
        then a diff says what is missing (-), unexpected (+) and of another shape (~).
    """
    ecosystem, path = parse_source(source)
    contents = read_tensors(path, ema, sha256)
    found = contents.tensors
    check_ecosystem(ecosystem, found, path)
    architecture = find_architecture(ecosystem, {name: a.shape for name, a in found.items()})
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
