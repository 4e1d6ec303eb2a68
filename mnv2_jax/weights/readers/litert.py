"""Reads MobileNetV2 from a LiteRT (TFLite) file, without running it.

Numbers that are quantized become floats: scale · (stored - zero point), as LiteRT's specification
of 8-bit quantization has it. What the file rounds between its layers is not rounded here.
"""

import contextlib
import json
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

MAX_AXES = 8
NUMBERS = {"FLOAT32": "<f4", "FLOAT16": "<f2", "INT32": "<i4", "INT64": "<i8", "INT8": "i1"}
NUMBERS |= {"UINT8": "u1"}
BOUNDS = {"RELU6": (0.0, 6.0), "RELU": (0.0, np.inf), "RELU_N1_TO_1": (-1.0, 1.0)}


def read_litert(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the tensors of a file under a library's names, and what it says of its images."""
    if data[4:8] != b"TFL3":
        raise DamagedError("it is not a LiteRT file, whose fifth to eighth bytes are TFL3")
    return _Reader(load_package("ai_edge_litert.schema_py_generated"), data).read()


class _Reader:
    """One file: its tensors by number, and the values that operators make of the image."""

    def __init__(self, schema: Any, data: bytes):
        self.schema, self.data, self.trace = schema, data, Trace(axis=-1)
        self.model = schema.Model.GetRootAs(data, 0)
        if count("graphs", self.model.SubgraphsLength()) != 1:
            raise differs(f"it has {self.model.SubgraphsLength()} graphs")
        self.graph = self.model.Subgraphs(0)
        self.env: dict[int, Any] = {}

    def read(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        graph = self.graph
        ends = graph.InputsLength(), graph.OutputsLength()
        if ends != (1, 1):
            raise differs(f"it has {ends[0]} inputs and {ends[1]} outputs, not 1 each")
        count("tensors", graph.TensorsLength())
        first = graph.Tensors(graph.Inputs(0))
        self.env[graph.Inputs(0)] = IMAGE
        shape, kind = self.shape(first), self.name_of("TensorType", first.Type())
        if scaling := self.scaling(first, 1):  # a byte of an image is 0..255 in either type
            scale, zero = (float(v[0]) for v in scaling)
            self.trace.affine(IMAGE, scale, -scale * (zero + (128 if kind == "INT8" else 0)))
        elif kind == "INT8":
            raise differs("its images are quantized without a scale")
        for i in range(count("operators", graph.OperatorsLength())):
            self.follow(graph.Operators(i))
        output, size = self.value(graph.Outputs(0)), (*shape, 0, 0, 0)[1:3]
        return named(self.trace, output, size, kind in ("INT8", "UINT8"), self.classes())

    def name_of(self, enum: str, number: int) -> str:
        names = vars(getattr(self.schema, enum)).items()
        return next((name for name, value in names if value == number), str(number))

    def shape(self, tensor: Any) -> tuple[int, ...]:
        axes = tensor.ShapeLength()
        if not 0 <= axes <= MAX_AXES:
            raise DamagedError(f"a tensor claims {axes} axes")
        return tuple(int(tensor.Shape(i)) for i in range(axes))

    def value(self, number: int) -> Any:
        """Returns what a tensor holds: a value of the trace, or an array."""
        if number in self.env:
            return self.env[number]
        tensor = self.graph.Tensors(number)
        shape, name = self.shape(tensor), shown((tensor.Name() or b"").decode("utf-8", "replace"))
        kind = self.name_of("TensorType", tensor.Type())
        if kind not in NUMBERS:
            raise DamagedError(f"{name} is stored as {kind}; give the float model")
        dtype, buffer = np.dtype(NUMBERS[kind]), self.model.Buffers(tensor.Buffer())
        stored = buffer.DataAsNumpy() if buffer.DataLength() else b""
        check_claim(name, shape, dtype.itemsize, len(stored))
        array = np.frombuffer(stored, dtype).reshape(shape)
        axis = tensor.Quantization().QuantizedDimension() if tensor.Quantization() else 0
        channels = shape[axis] if 0 <= axis < len(shape) else 1
        if dtype.kind != "f" and (scaling := self.scaling(tensor, channels)):
            along = [-1 if i == axis else 1 for i in range(array.ndim)]
            scale, zero = (v.reshape(along) if v.size > 1 else v for v in scaling)
            array = ((array - zero) * scale).astype(np.float32).reshape(shape)
        self.env[number] = array  # many may share a buffer
        return array

    def scaling(self, tensor: Any, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns scale and zero point, one or one a channel, of a tensor that is quantized."""
        table = tensor.Quantization()
        if table is None or not table.ScaleLength():
            return None
        scales, zeros = table.ScaleLength(), table.ZeroPointLength()
        if scales not in (1, channels) or zeros not in (0, 1, scales):
            raise DamagedError("a tensor is quantized by another number of scales than it has maps")
        scale = np.asarray(table.ScaleAsNumpy(), np.float64)
        zero = np.asarray(table.ZeroPointAsNumpy() if zeros else 0, np.float64)
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise DamagedError(f"a tensor is quantized by the scale {shown(str(scale.min()))}")
        return scale, np.broadcast_to(zero, scale.shape)

    def follow(self, operator: Any) -> None:
        """Notes what an operator makes."""
        code = self.model.OperatorCodes(operator.OpcodeIndex())
        op = self.name_of("BuiltinOperator", max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))
        if not 0 < operator.InputsLength() <= MAX_AXES:
            raise DamagedError(f"an operation claims {operator.InputsLength()} inputs")
        numbers = [operator.Inputs(i) for i in range(operator.InputsLength())]
        given = [self.value(n) if n >= 0 else None for n in numbers]
        made = self.made(op, operator, given, numbers)
        if made is None:
            raise differs(f"the operation {op} is not one of its own")
        self.env[operator.Outputs(0)] = made

    def options(self, kind: str, operator: Any) -> Any:
        table, found = operator.BuiltinOptions(), getattr(self.schema, kind)()
        if table is None:
            raise DamagedError(f"an operation lacks its {kind}")
        found.Init(table.Bytes, table.Pos)
        return found

    def active(self, x: Any, options: Any) -> Any:
        kind = self.name_of("ActivationFunctionType", options.FusedActivationFunction())
        return x if kind == "NONE" else self.trace.relu6(x, *BOUNDS.get(kind, (np.nan, np.nan)))

    def made(self, op: str, operator: Any, given: list[Any], numbers: list[int]) -> Any:
        x: Any = given[0]
        trace, rest = self.trace, given[1:]
        constants = [v for v in given if isinstance(v, np.ndarray)]
        if op in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            return self.conv(op, operator, x, weight(op, rest[0]), optional_weight(op, rest[1:]))
        if op.lower() in ARITHMETIC:
            options = self.options(f"{op.capitalize()}Options", operator)
            return self.active(trace.arithmetic(op.lower(), *given), options)
        if op in ("QUANTIZE", "DEQUANTIZE"):
            return weight(op, x) if constants else x  # float16 to float32, or rounded otherwise
        if op == "PAD" and constants and rest[0].shape == (4, 2) and not rest[0][[0, 3]].any():
            return trace.pad(x, rest[0][1:3])
        if op == "MEAN" and constants:
            return trace.pool(x, sorted(np.reshape(rest[0], -1) % 4) == [1, 2])
        if op == "AVERAGE_POOL_2D":
            options = self.options("Pool2DOptions", operator)
            window = (options.FilterHeight(), options.FilterWidth())
            return trace.pool(x, window == self.shape(self.graph.Tensors(numbers[0]))[1:3])
        if op == "FULLY_CONNECTED":
            options = self.options("FullyConnectedOptions", operator)
            x = trace.dense(x, weight(op, rest[0]).T, optional_weight(op, rest[1:]))
            return self.active(x, options)
        if op in BOUNDS:
            return trace.relu6(x, *BOUNDS[op])
        if op in ("SOFTMAX", "LOGISTIC"):
            return trace.softmax(x) if op == "SOFTMAX" else trace.sigmoid(x)
        if op in ("RESHAPE", "SQUEEZE"):
            return trace.reshape(x)
        kind = self.graph.Tensors(operator.Outputs(0)).Type()
        return x if op == "CAST" and kind == self.schema.TensorType.FLOAT32 else None

    def conv(self, op: str, operator: Any, x: Any, kernel: np.ndarray, bias: Any) -> Any:
        depthwise = op != "CONV_2D"
        options = self.options(f"{'Depthwise' if depthwise else ''}Conv2DOptions", operator)
        strides = {options.StrideH(), options.StrideW()}
        if kernel.ndim != 4 or len(strides) != 1 or options.DilationHFactor() != 1:
            raise differs("a convolution is dilated, or its strides differ")
        if depthwise and options.DepthMultiplier() not in (0, 1):
            raise differs("a depthwise convolution makes several maps of one")
        kernel = kernel.transpose((1, 2, 0, 3) if depthwise else (1, 2, 3, 0))
        pads: Any = "same" if options.Padding() == self.schema.Padding.SAME else NO_PADS
        return self.active(
            self.trace.conv(x, kernel, bias, strides.pop(), pads, depthwise), options
        )

    def classes(self) -> Any:
        """Returns what the metadata "classes" holds, as this project writes it."""
        for i in range(count("metadata", self.model.MetadataLength())):
            entry = self.model.Metadata(i)
            if entry.Name() == b"classes":
                data = self.model.Buffers(entry.Buffer()).DataAsNumpy()
                with contextlib.suppress(ValueError, RecursionError):
                    return json.loads(bytes(data))
        return []
