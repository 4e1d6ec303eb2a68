"""Reads MobileNetV2 from an ONNX file, without running it."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mnv2_jax.weights.limits import DamagedError, check_claim, shown
from mnv2_jax.weights.readers.exported import (
    ARITHMETIC,
    IMAGE,
    NO_PADS,
    Trace,
    count,
    differs,
    load_package,
    named,
    optional_weight,
    weight,
)

TO_NCHW = [0, 3, 1, 2]
GEMM = {"alpha": 1, "beta": 1, "transA": 0}
SHAPES = ("Shape", "Gather", "Unsqueeze", "Squeeze", "Concat", "Slice", "Cast")
"""What computes a shape to bring features into; the features are checked, so it does not matter."""
AFTER = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose")
"""What changes only the axes of features that are one pixel."""


def read_onnx(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the tensors of a file under a library's names, and what it says of its images."""
    onnx = load_package("onnx")
    model = onnx.load_model_from_string(data)
    graph, trace = model.graph, Trace(axis=-3)
    count("nodes", len(graph.node))
    count("tensors", len(graph.initializer))
    env: dict[str, Any] = {tensor.name: _array(onnx, tensor) for tensor in graph.initializer}
    images = [given for given in graph.input if given.name not in env]
    if len(images) != 1 or len(graph.output) != 1:
        raise differs(f"it has {len(images)} inputs and {len(graph.output)} outputs, not 1 each")
    env[images[0].name] = IMAGE
    kind = images[0].type.tensor_type
    last = False  # channels are the last axis of the image
    for node in graph.node:
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        given = [env[name] if name else None for name in node.input]
        if node.op_type == "Transpose" and given[0] == IMAGE and options.get("perm") == TO_NCHW:
            last, env[node.output[0]] = True, IMAGE
        elif node.op_type == "Constant":
            env[node.output[0]] = _array(onnx, options["value"]) if "value" in options else None
        else:
            env[node.output[0]] = _follow(trace, node, given, options)
    sides = [axis.dim_value for axis in kind.shape.dim][1 if last else 2 :][:2]
    names: Any = next((p.value for p in model.metadata_props if p.key == "classes"), "[]")
    with contextlib.suppress(ValueError, RecursionError):
        names = json.loads(names)
    pixels = kind.elem_type == onnx.TensorProto.UINT8
    size = (sides[0], sides[1]) if len(sides) == 2 else (0, 0)
    return named(trace, env[graph.output[0].name], size, pixels, names)


def _array(onnx: Any, tensor: Any) -> np.ndarray:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise DamagedError(f"{shown(tensor.name)} keeps its data in other files; save it in one")
    check_claim(tensor.name, tuple(tensor.dims), 1, tensor.ByteSize())
    return onnx.numpy_helper.to_array(tensor)


def _follow(trace: Trace, node: Any, given: list[Any], options: Mapping[str, Any]) -> Any:
    """Returns the value or the constant that a node makes."""
    op, name = node.op_type, node.name or node.op_type
    x: Any = given[0] if given else None
    constants = [v for v in given if isinstance(v, np.ndarray)]
    rest = given[1:]
    if node.domain not in ("", "ai.onnx"):
        raise differs(f"{shown(name)} is of another domain, {shown(node.domain)}")
    if op in ("Identity", "Dropout") or (op == "Cast" and options.get("to") in (1, 10)):
        return x
    if op in SHAPES and (op == "Shape" or len(constants) == len(given)):
        return np.zeros(1, np.int64)
    if op == "Conv":
        return _conv(trace, name, given, options)
    if op.lower() in ARITHMETIC:
        return trace.arithmetic(op.lower(), *given)
    if op == "BatchNormalization":
        gamma, beta, mean, variance = (weight(name, v).astype(np.float64) for v in rest)
        scale = gamma / np.sqrt(variance + options.get("epsilon", 1e-5))
        return trace.affine(x, scale, beta - mean * scale)
    elif op == "Clip":
        ends = rest or [options.get("min"), options.get("max")]
        low, high = (np.nan if v is None else np.asarray(v).item() for v in [*ends, None, None][:2])
        return trace.relu6(x, low, high)
    elif op == "Pad" and options.get("mode", b"constant") == b"constant":
        amounts = np.reshape(rest[0] if rest else options["pads"], (2, -1)).T
        if len(amounts) == 4 and not amounts[:2].any() and not (rest[1:2] and rest[1].any()):
            return trace.pad(x, amounts[2:])
    elif op == "GlobalAveragePool":
        return trace.pool(x)
    elif op == "ReduceMean":
        axes = np.reshape(rest[0] if rest else options.get("axes", []), -1) % 4
        return trace.pool(x, sorted(axes) == [2, 3])
    elif op == "Gemm" and [options.get(k, d) for k, d in GEMM.items()] == [*GEMM.values()]:
        kernel = weight(name, rest[0])
        kernel = kernel.T if options.get("transB") else kernel
        return trace.dense(x, kernel, optional_weight(name, rest[1:]))
    elif op == "MatMul":
        return trace.dense(x, weight(name, rest[0]), None)
    elif op in ("Softmax", "Sigmoid"):
        return getattr(trace, op.lower())(x)
    elif op in AFTER and options.get("perm", [0])[0] == 0:
        return trace.reshape(x)
    what = "quantized: give the float model" if "antize" in op else "not one of its operations"
    raise differs(f"{shown(name)} of type {shown(op)} is {what}")


def _conv(trace: Trace, name: str, given: list[Any], options: Mapping[str, Any]) -> Any:
    kernel = weight(name, given[1])  # (out, in, h, w)
    strides, groups = options.get("strides", [1, 1]), options.get("group", 1)
    depthwise = groups > 1 and kernel.shape[:2] == (groups, 1)
    if kernel.ndim != 4 or len(set(strides)) != 1 or set(options.get("dilations", [1])) != {1}:
        raise differs(f"{shown(name)} is not a plain convolution of maps")
    if groups > 1 and not depthwise:
        raise differs(f"{shown(name)} has {groups} groups")
    top, left, bottom, right = options.get("pads", [0] * 4)
    auto = options.get("auto_pad", b"NOTSET")
    pads: Any = ((top, bottom), (left, right))
    if auto == b"SAME_UPPER":
        pads = "same"
    elif auto != b"NOTSET":
        pads = NO_PADS if auto == b"VALID" else auto.decode()
    bias = optional_weight(name, given[2:])
    return trace.conv(given[0], kernel.transpose(2, 3, 1, 0), bias, strides[0], pads, depthwise)
