"""What lies beside weights, or with them in a file, and belongs to them: obeyed or refused.

Hugging Face's `config.json` and `preprocessor_config.json`, timm's `config.json`, the layers of
a Keras model that was saved whole, and what an exported graph does to its images.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import read_json

FILES = ("config.json", "preprocessor_config.json")
MAX_CONFIG = 1 << 20  # bytes; a config.json with the names of a thousand classes takes 70 kB
METHODS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
SETTINGS = {"in_chans", "num_classes", "drop_rate", "drop_path_rate", "global_pool"}  # of timm
# Layers of Keras: those that do nothing in evaluation, by how their names begin; the backbone's;
# and those after it that leave a single linear layer what it is.
IDLE = ("InputLayer", "Rand", "Dropout", "SpatialDropout", "Gaussian", "ActivityRegularization")
BACKBONE = ["Conv2D", "DepthwiseConv2D", "BatchNormalization", "ReLU", "ZeroPadding2D", "Add"]
HEAD = ["Dense", "Activation", "Softmax", "Flatten", "Reshape"]
HEAD += ["AveragePooling2D", "GlobalAveragePooling2D"]
# What a layer of arithmetic adds to the pixels (times its number), or the power that scales them.
ADDS = {"subtract": -1, "sub": -1, "add": 1}
SCALES = {"truediv": -1, "truedivide": -1, "divide": -1, "multiply": 1, "mul": 1}


class Beside(NamedTuple):
    """What belongs to weights and their tensors do not say; None or empty where nothing does."""

    size: int | None = None  # height and width of the network's input
    dialect: Mapping[str, Any] = {}  # fields of Dialect
    rule: Mapping[str, Any] = {}  # fields of Preprocessing
    names: tuple[str, ...] = ()  # of the classes
    output_stride: int | None = None
    head: str = ""  # why the softmax of the classifier is not the probabilities


def read_beside(ecosystem: str, path: str, graph: str) -> Beside:
    """Reads what accompanies a file of weights, whose Keras layers are `graph`.

    `UsageError` if it cannot be read, or says something that this network cannot follow.
    """
    try:
        if graph:
            layers = json.loads(graph)
            return _exported(layers) if "padding" in layers else _keras(layers)
        if ecosystem not in ("hf", "timm"):
            return Beside()
        files = (Path(path).with_name(name) for name in FILES)
        found = [read_json(file, MAX_CONFIG) if os.path.lexists(file) else {} for file in files]
        config, processor = (content if isinstance(content, dict) else {} for content in found)
        return _hugging_face(config, processor) if ecosystem == "hf" else _timm(config)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"what belongs to the weights in {path!r} and is described "
            f"{'there' if graph else 'beside them'} cannot be followed: {first_line(error)}. "
            "Correct it, or move the weights elsewhere."
        ) from error


def choose(
    beside: Beside,
    channels: int,
    output_stride: int | None,
    resolution: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Beside:
    """Puts what a user chose in place of what lies beside weights; `UsageError` if it cannot be."""
    dialect, size = dict(beside.dialect), beside.size
    if (mean is None) != (std is None):
        raise UsageError("mean and std belong together: give both, or neither.")
    try:
        if resolution is not None:
            size = _side("resolution", resolution)
        if mean is not None:
            dialect |= input_range(mean, std)
        for key in ("mean", "std"):
            if len(dialect.get(key, (0,))) not in (1, channels):
                raise ValueError(f"{key} has {len(dialect[key])} values for {channels} channels")
    except ValueError as error:
        raise UsageError(f"{error}: give another.") from error
    stride = output_stride or beside.output_stride
    return beside._replace(size=size, dialect=dialect, output_stride=stride)


def _need(key: str, value: Any, *allowed: Any) -> Any:
    if value not in allowed:
        listed = " or ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{key} is {value!r}, and only {listed} is computed here")
    return value


def _side(key: str, value: Any) -> int:
    sides = list(value.values()) if isinstance(value, Mapping) else value
    sides = sides if isinstance(sides, list) else [sides]
    if len(set(sides)) != 1 or type(sides[0]) is not int or not 1 <= sides[0] <= 2**13:
        raise ValueError(f"{key} is {value!r}, and one size for height and width is needed")
    return sides[0]


def _numbers(key: str, values: Any) -> np.ndarray:
    numbers = np.asarray(values, np.float64).reshape(-1)
    if not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(f"{key} is {values!r}, and finite numbers are needed")
    return numbers


def input_range(mean: Any, std: Any, scale: float = 1 / 255) -> dict[str, tuple[float, ...]]:
    """The fields of a dialect for inputs of (pixel · scale - mean) / std; one value where all are.

    >>> input_range([1, 1, 1], [1, 1, 1], 1 / 127.5)
    {'mean': (0.5,), 'std': (0.5,)}
    """
    fields = {}
    for key, given in (("mean", mean), ("std", std)):
        values = [round(float(v), 9) for v in _numbers(key, given) / (255 * scale)]
        if key == "std" and min(values) <= 0:
            raise ValueError(f"std is {given}, and numbers above 0 are needed")
        fields[key] = tuple(values[:1] if len(set(values)) == 1 else values)
    return fields


def _names(table: Any) -> tuple[str, ...]:
    """The names of classes from a list or from a table by number; LABEL_3 and the like are none."""
    if isinstance(table, Mapping):
        table = [table.get(str(i)) for i in range(len(table))]
    if not all(isinstance(name, str) and name for name in table or ()):
        raise ValueError("its names of classes are not one text for every number from 0")
    names = tuple(table or ())
    return () if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def _hugging_face(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Beside:
    _need("model_type", config.get("model_type", "mobilenet_v2"), "mobilenet_v2")
    _need("hidden_act", config.get("hidden_act", "relu6"), "relu6")
    padded = _need("tf_padding", config.get("tf_padding", True), True, False)
    dialect: dict[str, Any] = {"padding": "same" if padded else "symmetric"}
    if "layer_norm_eps" in config:
        dialect["bn_epsilon"] = float(config["layer_norm_eps"])
    size = _side("image_size", config["image_size"]) if "image_size" in config else None
    stride = _need("output_stride", config.get("output_stride"), None, 8, 16, 32)
    rule: dict[str, Any] = {}
    if processor:
        scale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
        mean, std = processor.get("image_mean", 0.5), processor.get("image_std", 0.5)
        mean, std = (mean, std) if processor.get("do_normalize", True) else (0.0, 1.0)
        dialect |= input_range(mean, std, scale)
        _need("do_resize", processor.get("do_resize", True), True)
        rule["method"] = METHODS[_need("resample", processor.get("resample", 2), *METHODS)]
        given = processor.get("size", 256)
        size = edge = _side("size", given)
        if processor.get("do_center_crop", "crop_size" in processor):
            size = _side("crop_size", processor.get("crop_size", 224))
            rule |= {"crop": "center", "fraction": min(size / edge, 1.0)}
        elif isinstance(given, Mapping) and "height" in given:
            rule |= {"crop": "none", "fraction": 1.0}
    return Beside(size, dialect, rule, _names(config.get("id2label")), stride)


def _timm(config: Mapping[str, Any]) -> Beside:
    stated = config.get("pretrained_cfg", config)
    _need("global_pool", config.get("global_pool", "avg"), "avg", "")
    if changed := set(config.get("model_args") or {}) - SETTINGS:
        raise ValueError(
            f"model_args sets {', '.join(sorted(changed))}, which is not followed here"
        )
    size, rule = None, {}
    if "input_size" in stated:
        size = _side("input_size", stated["input_size"][1:])
    if "interpolation" in stated:
        rule["method"] = _need("interpolation", stated["interpolation"], *METHODS.values())
    if "crop_pct" in stated:
        mode = _need("crop_mode", stated.get("crop_mode", "center"), "center", "squash")
        rule |= {"crop": {"center": "center", "squash": "stretch"}[mode]}
        rule["fraction"] = share = float(stated["crop_pct"])
        if not 0 < share <= 1:
            raise ValueError(f"crop_pct is {share}, and a number above 0, at most 1 is needed")
    dialect = input_range(stated["mean"], stated["std"]) if {"mean", "std"} & set(stated) else {}
    names = config.get("label_names") or stated.get("label_names")
    return Beside(size, dialect, rule, _names(names))


def _layers(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """Yields the class, the settings and the inputs of every layer, nested models unfolded."""
    for layer in config["layers"]:
        if "layers" in layer["config"]:
            yield from _layers(layer["config"])
        else:
            yield layer["class_name"], layer["config"], layer.get("inbound_nodes")


def _keras(graph: Mapping[str, Any]) -> Beside:
    size, epsilons, head, stem = None, set(), "", False
    scale, offset = np.ones(1), np.zeros(1)
    for kind, layer, inputs in _layers(graph["config"]):
        named = f"layer {layer.get('name')!r} of class {kind}"
        stem = stem or kind == "Conv2D"
        if kind in ("InputLayer", "Resizing") and not stem:
            shape = layer.get("batch_shape") or layer.get("batch_input_shape") or [None] * 4
            sides = [layer["height"], layer["width"]] if kind == "Resizing" else shape[1:3]
            size = size if None in sides else _side(f"the input of {named}", list(sides))
        elif kind.startswith(IDLE):
            continue
        elif kind == "ZeroPadding2D" and not stem:  # and a stem without padding: together, SAME
            before = 1 if size and size % 2 else 0
            padding = [list(sides) for sides in layer["padding"]]
            _need(f"padding of {named}", padding, [[before, 1], [before, 1]])
        elif not stem:
            factor, shift = _scaling(kind, layer, inputs, named)
            scale, offset = scale * factor, offset * factor + shift
        elif kind == "BatchNormalization":
            epsilons.add(float(layer["epsilon"]))
        elif kind == "ReLU" and not head:
            _need(f"max_value of {named}", layer.get("max_value"), 6)
        elif kind not in BACKBONE:
            plain = ("softmax", "linear", None, *(["sigmoid"] if layer.get("units") == 1 else []))
            if kind not in HEAD or layer.get("activation") not in plain:
                head = f"its {named} computes more than the softmax of linear logits"
    if len(epsilons) > 1:
        raise ValueError(f"its batch norms have different epsilons, {sorted(epsilons)}")
    dialect: dict[str, Any] = {"bn_epsilon": epsilons.pop()} if epsilons else {}
    if np.any(scale != 1) or np.any(offset != 0):
        dialect |= input_range(-offset / scale, 1 / scale, 1.0)
    return Beside(size, dialect, head=head)


def _exported(facts: Mapping[str, Any]) -> Beside:
    """Follows what `readers.exported.named` says of a graph."""
    size = _side("the input", facts["size"]) if "size" in facts else None
    dialect: dict[str, Any] = {}
    if facts["scale"] is not None:
        scale, shift = _numbers("scale", facts["scale"]), _numbers("shift", facts["shift"])
        dialect = input_range(-shift / scale, 1 / scale, 1.0)
        # What was a float32 in the file has seven digits.
        dialect = {key: tuple(float(f"{v:.7g}") for v in dialect[key]) for key in dialect}
    return Beside(size, dialect, names=tuple(facts["names"]))


def _scaling(kind: str, layer: Mapping[str, Any], inputs: Any, named: str) -> tuple[Any, Any]:
    """The factor and the summand of a layer that scales the pixels."""
    if kind == "Rescaling":
        return _numbers("scale", layer["scale"]), _numbers("offset", layer.get("offset", 0))
    if kind == "Normalization" and layer.get("mean") is not None:
        std = np.sqrt(_numbers("variance", layer["variance"]))
        return 1 / std, -_numbers("mean", layer["mean"]) / std
    what = str(layer.get("function", kind)).rpartition(".")[2].lower()
    if kind == "TFOpLambda":  # of Keras 2: [[name, node, tensor, arguments]]
        values = list(inputs[0][3].values())
    else:
        values = [*inputs[0]["args"], *inputs[0]["kwargs"].values()] if inputs else []
    numbers = [float(value) for value in values if type(value) in (int, float)]
    if len(numbers) != 1 or what not in ADDS | SCALES:
        raise ValueError(f"its {named} changes the pixels in a way that is not followed here")
    return numbers[0] ** SCALES.get(what, 0), ADDS.get(what, 0) * numbers[0]
