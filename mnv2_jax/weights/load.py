"""Loads published weights: file, names, architecture, strict merge, and what belongs to them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.files import user_path
from mnv2_jax.models.build import PARTS, look_up
from mnv2_jax.models.deeplab import DeepLabV3
from mnv2_jax.models.dialect import DIALECTS, Dialect
from mnv2_jax.models.mobilenet import MobileNetV2
from mnv2_jax.models.spec import SPECS
from mnv2_jax.models.ssdlite import DETECTION, SSDLite
from mnv2_jax.weights import coco, merge
from mnv2_jax.weights.architecture import Architecture, find_architecture
from mnv2_jax.weights.beside import Beside, choose, read_beside
from mnv2_jax.weights.names import ECOSYSTEMS, Ecosystem
from mnv2_jax.weights.preprocessing import (
    Preprocessing,
    detector_preprocessing,
    preprocessing_of,
    segmenter_preprocessing,
)
from mnv2_jax.weights.readers import Contents, read_tensors
from mnv2_jax.weights.tensors import classifier_names

IMAGENET_CLASSES = 1000
OUTPUT_STRIDE = 16  # of a segmenter whose files do not say; the paper's recommendation
CLASSIFIER_STRIDE = 32
# What a part of a larger model has to share with its weights; a decay belongs to the training.
MATCHING = ("padding", "bn_epsilon", "mean", "std")


class Loaded(NamedTuple):
    """Weights and what is needed to use them."""

    model: MobileNetV2 | DeepLabV3 | SSDLite  # in the dialect of its weights
    variables: dict[str, Any]  # params and batch_stats, float32
    preprocessing: Preprocessing
    sha256: str
    source: str  # what was loaded, as ecosystem:path
    names: tuple[str, ...] = ()  # of the classes, background included, where they lie beside
    left_out: tuple[str, ...] = ()  # tensors of the file that are no part of the network

    @property
    def task(self) -> str:
        """What the network does: "classify", "segment" or "detect"."""
        if isinstance(self.model, SSDLite):
            return "detect"
        return "segment" if isinstance(self.model, DeepLabV3) else "classify"

    @property
    def backbone(self) -> MobileNetV2:
        """The `MobileNetV2` in the model."""
        return self.model if isinstance(self.model, MobileNetV2) else self.model.backbone

    @property
    def dialect(self) -> Dialect:
        """The dialect of the weights."""
        return self.backbone.dialect

    @property
    def classes(self) -> int | None:
        """Classes of the network, a detector's without background; None without a classifier."""
        return self.model.num_classes

    @property
    def nameless(self) -> tuple[int, ...]:
        """Numbers of the classes that stand for nothing, which `drop_background` drops.

        They are a classifier's background, and the ids of COCO without a name.
        """
        if isinstance(self.model, MobileNetV2):
            return tuple(range(self.model.class_offset))
        if isinstance(self.model, SSDLite) and self.classes == len(coco.IDS) and not self.names:
            return tuple(i for i, name in enumerate(coco.IDS) if not name)
        return ()

    @property
    def options(self) -> dict[str, Any]:
        """The plain values from which its builder makes the model again: see `models.build`.

        `UsageError` if no name stands for the network's rows.
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
        usual, dialect = DIALECTS[self.dialect.name], self.dialect._asdict()
        changed = {k: v for k, v in dialect.items() if v != getattr(usual, k)}
        options = {
            "num_classes": model.num_classes,
            "width": backbone.width,
            "spec": spec,
            "in_channels": backbone.in_channels,
            "dialect": {"name": usual.name, **changed} if changed else usual.name,
        }
        if backbone.output_stride is not None:
            options["output_stride"] = backbone.output_stride
        expand = next(name for name, map in PARTS["expand"].items() if map is backbone.expand)
        if expand != "standard":
            options["expand"] = expand
        if isinstance(model, SSDLite):
            return options
        options["dropout"] = model.dropout
        if isinstance(model, DeepLabV3):
            return options | {"channels": model.channels}
        return options | {"class_offset": model.class_offset}

    def into(self, variables: Mapping[str, Any], path: str, model: Any = None) -> dict[str, Any]:
        """Returns a larger model's variables with these weights at a path: all of them, or none.

        Args:
          variables: of the larger model, its `params` and `batch_stats` among them.
          path: the part that takes the weights, such as "backbone" or "encoder/net".
          model: the larger model. Where its attributes lead to the part, that has to be of these
            weights' dialect.

        Raises:
          UsageError: there is no such part, or its names, shapes or dialect are others.
        """
        part, keys = model, tuple(path.split("/"))
        for key in keys:
            part = getattr(part, key, None)
        theirs = getattr(getattr(part, "backbone", part), "dialect", self.dialect)
        if differ := [f for f in MATCHING if getattr(theirs, f) != getattr(self.dialect, f)]:
            raise UsageError(
                f"{path!r} is of another dialect than {self.source!r}, in {', '.join(differ)}: "
                f"make it with dialect={self.dialect.name!r}, or of the loaded model."
            )
        flat = flatten_dict(variables, keep_empty_nodes=True)
        put = {(k[0], *keys, *k[1:]): leaf for k, leaf in flatten_dict(self.variables).items()}
        there = {k for k in flat if k[0] in self.variables and k[1 : 1 + len(keys)] == keys}
        if not there:
            parts = {"/".join(k[1 : 1 + len(keys)]) for k in flat if len(k) > 1 + len(keys)}
            raise unknown("part of the variables", path, parts)
        differ = sorted(there ^ put.keys())
        differ = differ or [k for k in put if np.shape(put[k]) != np.shape(flat[k])]
        if differ:
            named = ", ".join("/".join(key) for key in differ[:3])
            raise UsageError(
                f"{self.source!r} does not fit {path!r}, and nothing was put there: {len(differ)} "
                f"tensors are missing, left over or of another shape, such as {named}. Load with "
                "drop_head=True for a part without classifier, and make it of the loaded model."
            )
        return unflatten_dict(flat | put)


def load_weights(
    source: str | os.PathLike[str],
    sha256: str | None = None,
    drop_head: bool = False,
    drop_background: bool = False,
    ema: bool = True,
    output_stride: int | None = None,
    resolution: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Loaded:
    """Loads all published weights of a classifier, segmenter or detector, or none of them.

    To fine-tune on other classes, drop the head and put the rest into fresh variables, whose names
    are the same: `fresh["params"] | loaded.variables["params"]`, and `batch_stats` likewise.

    Args:
      source: a path, or `ecosystem:path`, such as `torchvision:mobilenet_v2-b0353104.pth`; the
        ecosystem is one of `ECOSYSTEMS` and otherwise inferred from the names of the tensors, the
        format one of `readers.READERS`.
      sha256: the expected sha256 of the file; safetensors and pickles have no checksum inside.
      drop_head: leave out whatever follows the backbone; the model gives features only.
      drop_background: drop class 0 of a classifier whose class 0 is "background", 1001 to 1000; of
        a detector of COCO's 90 ids those that name nothing, which leaves 80.
      ema: where the file has moving averages of the weights, load them (the published accuracy is
        theirs); False loads the raw weights.
      output_stride: 8, 16 or 32, of a segmenter or its backbone: the weights fit all three.
      resolution: height and width of the images.
      mean, std: the network was trained on (pixel / 255 - mean) / std; one value or one a channel.
        The last four replace what lies beside the weights (see `beside`) and the ecosystem's own.

    Raises:
      UsageError: the file cannot be read, is not of this ecosystem, or does not fit MobileNetV2;
        then a diff lists what is missing (-), unexpected (+) and of another shape (~).
    """
    named, path = split_source(str(source))
    contents = read_tensors(path, ema, sha256)
    if named is None and (named := merge.infer_ecosystem(contents.tensors)) is None:
        described, change = merge.describe_unknown(path, contents.tensors)
        raise UsageError(f"{path!r} is not loaded. Its ecosystem is {described}; {change}.")
    ecosystem = ECOSYSTEMS[named]
    merge.check_ecosystem(ecosystem, contents.tensors, path)
    shapes = {name: array.shape for name, array in contents.tensors.items()}
    found = find_architecture(ecosystem, shapes)
    if found.head is None and output_stride is not None and ecosystem.head:
        what = "detector" if found.detects else "classifier"
        raise UsageError(f"{path!r} is a {what}: load it without output_stride.")
    if found.head is not None and (drop_head or drop_background):
        raise UsageError(
            f"{path!r} is a segmenter: load it without drop_head or drop_background; its "
            "backbone's variables are under 'backbone'."
        )
    beside = read_beside(ecosystem.name, path, contents.graph)
    beside = choose(beside, found.in_channels, output_stride, resolution, mean, std)
    try:
        if found.detects and not drop_head:
            loaded = _detector(ecosystem, found, contents, path, beside)
        elif found.head is None:
            found = found._replace(detects=False)
            loaded = _classifier(ecosystem, found, contents, path, beside, drop_head)
        else:
            loaded = _segmenter(ecosystem, found, contents, path, beside)
    except UsageError as error:
        if contents.averages != "used":
            raise
        why = f"{error} These are the moving averages: ema=False takes the raw weights."
        raise UsageError(why) from error
    if loaded.classes and loaded.names and len(loaded.names) != loaded.classes:
        raise UsageError(
            f"{path!r} has {loaded.classes} classes, and what lies beside it names "
            f"{len(loaded.names)}: correct it, or move the weights elsewhere."
        )
    return _without_background(loaded, path) if drop_background else loaded


def _classifier(
    ecosystem: Ecosystem,
    found: Architecture,
    contents: Contents,
    path: str,
    beside: Beside,
    drop_head: bool,
) -> Loaded:
    stored, classes, why = contents.tensors, None, ""
    drop_head = drop_head or not ecosystem.head
    if not drop_head:
        stored, classes, why = merge.find_head(ecosystem, found, stored)
        why = why or beside.head
    variables, left_out = merge.merge(ecosystem, found._replace(classes=classes), stored, path)
    if why or (classes is None and not drop_head):
        missing = f"no classifier ({classifier_names(ecosystem)[0]})"
        has = f"another head than one linear layer: {why}" if why else missing
        raise UsageError(f"{path!r} has {has}; load it with drop_head=True for its features.")
    offset = ecosystem.class_offset if classes == IMAGENET_CLASSES + ecosystem.class_offset else 0
    dialect = ecosystem.dialect._replace(**beside.dialect)
    stride = beside.output_stride or ecosystem.output_stride
    model = MobileNetV2(
        classes,
        found.width,
        None if stride == CLASSIFIER_STRIDE else stride,
        spec=found.spec,
        expand=ecosystem.expand,
        in_channels=found.in_channels,
        dropout=ecosystem.dropout,
        dialect=dialect,
        class_offset=offset,
    )
    prepared = preprocessing_of(ecosystem.name, dialect, path, contents.sha256, beside.size)
    source, names = f"{ecosystem.name}:{path}", beside.names if classes else ()
    prepared = prepared._replace(**beside.rule)
    return Loaded(model, variables, prepared, contents.sha256, source, names, left_out)


def _without_background(loaded: Loaded, path: str) -> Loaded:
    model, variables = loaded.model, loaded.variables
    if not loaded.nameless:
        raise UsageError(
            f"{path!r} has {loaded.classes or 'no'} classes, and none is background: load it "
            "without drop_background."
        )
    if isinstance(model, SSDLite):
        return _with_names_of_coco(loaded, model)
    offset = len(loaded.nameless)
    head = variables["params"]["classifier"].items()
    head = {name: np.ascontiguousarray(leaf[..., offset:]) for name, leaf in head}
    variables = variables | {"params": variables["params"] | {"classifier": head}}
    model = model.clone(num_classes=IMAGENET_CLASSES, class_offset=0)
    return loaded._replace(model=model, variables=variables, names=loaded.names[offset:])


def _with_names_of_coco(loaded: Loaded, model: SSDLite) -> Loaded:
    """Keeps the slots of the background and of the ids with names.

    A slot's score is the sigmoid of its own logit, so those that stay are what they were.
    """
    slots = [0, *(1 + i for i in range(model.num_classes) if i not in loaded.nameless)]
    params = dict(loaded.variables["params"])
    for name in [name for name in params if name.startswith("classes_")]:
        each = {
            key: leaf.reshape(*leaf.shape[:-1], -1, model.num_classes + 1)[..., slots]
            for key, leaf in params[name]["project"].items()
        }
        project = {key: leaf.reshape(*leaf.shape[:-2], -1) for key, leaf in each.items()}
        params[name] = params[name] | {"project": project}
    variables = loaded.variables | {"params": params}
    model = model.clone(num_classes=len(coco.NAMES))
    return loaded._replace(model=model, variables=variables, names=coco.NAMES)


def _detector(
    ecosystem: Ecosystem, found: Architecture, contents: Contents, path: str, beside: Beside
) -> Loaded:
    variables, left_out = merge.merge(ecosystem, found, contents.tensors, path)
    assert found.classes is not None
    dialect = ecosystem.dialect._replace(bn_decay=DETECTION.bn_decay)._replace(**beside.dialect)
    backbone = MobileNetV2(
        None, found.width, spec=found.spec, in_channels=found.in_channels, dialect=dialect
    )
    model = SSDLite(found.classes, backbone)
    prepared = detector_preprocessing(dialect, path, beside.size)
    source = f"{ecosystem.name}:{path}"
    return Loaded(model, variables, prepared, contents.sha256, source, beside.names, left_out)


def _segmenter(
    ecosystem: Ecosystem, found: Architecture, contents: Contents, path: str, beside: Beside
) -> Loaded:
    spec, width, in_channels, classes, channels, _ = found
    variables, left_out = merge.merge(ecosystem, found, contents.tensors, path)
    if classes is None or channels is None:
        kernel = classifier_names(ecosystem, segmenter=True)[0]
        raise UsageError(f"{path!r} has no {kernel}, the last layer of a segmenter: use another.")
    stride, dialect = beside.output_stride or OUTPUT_STRIDE, ecosystem.dialect
    dialect = dialect._replace(**beside.dialect)
    backbone = MobileNetV2(None, width, stride, spec=spec, in_channels=in_channels, dialect=dialect)
    model = DeepLabV3(classes, backbone, channels=channels)  # its head has its own batch norm
    prepared = segmenter_preprocessing(dialect, path, beside.size)
    source = f"{ecosystem.name}:{path}"
    return Loaded(model, variables, prepared, contents.sha256, source, beside.names, left_out)


def split_source(source: str) -> tuple[str | None, str]:
    """Splits a source whose ecosystem, None here, may be left out; a path may hold a colon."""
    prefix, colon, _ = source.partition(":")
    if colon and (prefix in ECOSYSTEMS or not Path(source).exists()):
        ecosystem, path = parse_source(source)
        return ecosystem.name, path
    return None, str(user_path(source, "path of the weights"))


def parse_source(source: str) -> tuple[Ecosystem, str]:
    """Splits `ecosystem:path`; `UsageError` if there is no colon, or no such ecosystem.

    >>> parse_source("timm:model.safetensors")[1]
    'model.safetensors'
    """
    name, colon, path = str(source).partition(":")
    if not colon or not path or "/" in name:
        raise UsageError(
            f"{str(source)!r} names no ecosystem: write ecosystem:path, where the ecosystem is one "
            f"of {', '.join(ECOSYSTEMS)}."
        )
    ecosystem = look_up("ecosystem", name, ECOSYSTEMS)
    return ecosystem, str(user_path(path, "path of the weights"))
