"""Reads TensorFlow.js' layers models: `model.json` and the binary files beside it that it names.

The manifest in model.json lists groups of weights. The files of a group, one after the other, hold
the numbers of its weights in little endian, without gaps. A weight may be quantized: stored in half
precision, or in 8 or 16 bits that times `scale`, plus `min`, are its numbers. The format is that of
tensorflow/tfjs, in tfjs-core/src/io/types.ts and io_utils.ts.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.weights.limits import MAX_BYTES, MAX_MEMBERS, DamagedError, shown
from mnv2_jax.weights.readers.hdf5 import layer_variable

MAX_MODEL = 1 << 24  # bytes of model.json; the layers of MobileNetV2 take some 200 kB

DTYPES = {
    "float32": "<f4", "float16": "<f2", "int32": "<i4", "uint16": "<u2", "uint8": "u1", "bool": "u1"
}  # fmt: skip


class Stored(NamedTuple):
    """A weight as the manifest describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype  # as it lies in the file
    scale: float = 1.0
    offset: float = 0.0
    is_network: bool = True  # and not part of an optimizer's state

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def tfjs_files(path: Path, model: bytes) -> list[Path]:
    """Returns the binary files that a model.json names, once their places and sizes are checked."""
    groups = list(_groups(_parse(model)))
    names = [name for files, _ in groups for name in files]
    if len(names) > MAX_MEMBERS or len(set(names)) < len(names):
        raise DamagedError(f"its manifest names {len(names)} files, {len(set(names))} different")
    declared = sum(weight.size for _, weights in groups for weight in weights)
    if declared > MAX_BYTES:
        raise DamagedError(f"its manifest declares {declared} bytes, more than weights have")
    found = []
    for files, weights in groups:
        paths = [path.parent / _inside(name) for name in files]
        try:
            stored = sum(file.stat().st_size for file in paths)
        except FileNotFoundError as error:
            missing = Path(error.filename).name
            raise DamagedError(f"{shown(missing)}, which it names, is not beside it") from None
        if stored != (needed := sum(weight.size for weight in weights)):
            listed = shown(", ".join(files))
            raise DamagedError(f"{listed} has {stored} bytes, and the manifest declares {needed}")
        found += paths
    return found


def read_tfjs(model: bytes, *files: bytes) -> dict[str, np.ndarray]:
    """Reads the weights of the network as `layer/variable`, such as `Conv1/kernel`, in float32."""
    arrays: dict[str, np.ndarray] = {}
    at = 0
    for names, weights in _groups(_parse(model)):
        data = b"".join(files[at : at + len(names)])
        at, start = at + len(names), 0
        for weight in weights:
            stored = data[start : start + weight.size]
            start += weight.size
            if not weight.is_network:
                continue
            name = layer_variable(weight.name)
            if name in arrays:
                raise DamagedError(f"it holds {shown(name)} twice")
            array = np.frombuffer(stored, weight.dtype).reshape(weight.shape)
            if weight.dtype.kind == "u":  # computed in 64 bits, as JavaScript does
                array = (array * weight.scale + weight.offset).astype(np.float32)
            arrays[name] = array
        if start != len(data):
            raise DamagedError(f"a group has {len(data)} bytes, and the manifest declares {start}")
    return arrays


def read_layers(model: bytes, *_: bytes) -> str:
    """Reads the JSON in which Keras describes its layers; empty where only weights are stored."""
    topology = _parse(model).get("modelTopology") or {}
    described = topology.get("model_config", topology)
    return json.dumps(described) if described else ""


def _parse(data: bytes) -> Mapping[str, Any]:
    if len(data) > MAX_MODEL:
        raise DamagedError(f"it has {len(data)} bytes, more than a description of a network")
    model = json.loads(data)
    topology = model.get("modelTopology") if isinstance(model, Mapping) else None
    if topology is not None and (model.get("format") == "graph-model" or "node" in topology):
        raise DamagedError(
            "it is a graph model of TensorFlow.js, which has operations in place of layers; give "
            "the .h5, .keras or .tflite file that it was made of"
        )
    if not isinstance(model, Mapping) or not isinstance(model.get("weightsManifest"), list):
        raise DamagedError(
            "it has no weightsManifest, so it is not the model.json of TensorFlow.js; give the "
            "weights themselves"
        )
    return model


def _groups(model: Mapping[str, Any]) -> Iterator[tuple[list[str], list[Stored]]]:
    """Yields the names of a group's files, and its weights in their order."""
    for group in model["weightsManifest"]:
        files = [str(file) for file in group["paths"]]
        yield files, [_stored(weight) for weight in group["weights"]]


def _stored(entry: Mapping[str, Any]) -> Stored:
    name, shape = str(entry["name"]), tuple(entry["shape"])
    if not all(type(side) is int and side >= 0 for side in shape):
        raise DamagedError(f"{shown(name)} has the shape {shown(str(list(shape)))}")
    quantized = entry.get("quantization") or {}
    kind = quantized.get("dtype", entry["dtype"])
    if kind not in DTYPES:
        raise DamagedError(f"{shown(name)} is stored as {shown(str(kind))}, which is not read")
    is_network = entry.get("group", "model") != "optimizer"
    stored = Stored(name, shape, np.dtype(DTYPES[kind]), is_network=is_network)
    if not quantized or kind == "float16":
        return stored
    scale, offset = (quantized.get(key) for key in ("scale", "min"))
    if not isinstance(scale, int | float) or not isinstance(offset, int | float):
        raise DamagedError(f"{shown(name)} is quantized without a scale and a min")
    return stored._replace(scale=float(scale), offset=float(offset))


def _inside(name: str) -> PurePosixPath:
    """Returns a relative path that stays in the folder of the model."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or set(name) & set("\\:\0"):
        raise DamagedError(f"its file {shown(name)} does not lie beside it or below")
    return path
