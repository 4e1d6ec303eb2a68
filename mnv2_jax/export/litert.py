"""A graph as a LiteRT (TFLite) flatbuffer, written without TensorFlow, in float or in int8.

Every node becomes one builtin operation with ReLU or ReLU6 fused; a convolution whose padding is
neither SAME nor VALID gets a `PAD` before it. Names of classes, and a detector's anchors, are
entries of the metadata. The layout of the file is LiteRT's published schema, whose generated
classes come with its runtime.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mnv2_jax.export.runtimes import cannot_write, need
from mnv2_jax.inference.operations import IMAGES, Graph, Node
from mnv2_jax.inference.quantize import Quantized, Scale
from mnv2_jax.models.layers import pad_same

SCHEMA_VERSION = 3
NO_PADDING = ((0, 0), (0, 0))
ACTIVATIONS = {None: "NONE", (0.0, 6.0): "RELU6", (0.0, np.inf): "RELU"}
FUSED = ("add", "sub", "mul", "div")  # an activation may follow inside of them
UNFUSED = ("pow", "tanh", "exp", "log", "sqrt", "abs", "logistic", "hard_swish")
ELEMENTWISE = {op: op.upper() for op in (*FUSED, *UNFUSED)} | {"max": "MAXIMUM", "min": "MINIMUM"}


def write_litert(
    path: Path,
    graph: Graph,
    outputs: Sequence[str],
    notes: Mapping[str, Any] = MappingProxyType({}),
    quantized: Quantized | None = None,
    integers: bool = False,
) -> None:
    """Writes a graph with names of its outputs; the `notes` go into the metadata, as JSON.

    The `quantized` form of the same graph is written with integers inside and floats at both ends,
    or `integers` there too. An operation that LiteRT lacks is refused by a `UsageError`.
    """
    schema = need("ai_edge_litert.schema_py_generated", "export")
    flatbuffers = need("flatbuffers", "export")
    model = _Writer(schema, graph, quantized).model(outputs, notes, integers)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def c_source(data: bytes, classes: Sequence[str]) -> str:
    """Returns a LiteRT file as an array in C, with what goes in and comes out in comments."""
    interpreter = need("ai_edge_litert.interpreter", "export").Interpreter(model_content=data)
    lines = ["// LiteRT model of mnv2_jax. A number is scale * (integer - zero)."]
    ends = {"input": interpreter.get_input_details(), "output": interpreter.get_output_details()}
    for kind, end in ((kind, end) for kind, every in ends.items() for end in every):
        shape, (scale, zero) = "x".join(map(str, end["shape"])), end["quantization"]
        rule = f", scale {scale!r}, zero {zero}" if scale else ""
        lines.append(f"// {kind} {end['name']}: {shape} {end['dtype'].__name__}{rule}")
    lines += [f"// classes: {json.dumps(list(classes))}"] * bool(classes)
    lines += [f"const unsigned int model_len = {len(data)};"]
    lines += ["__attribute__((aligned(16))) const unsigned char model[] = {"]
    rows = (data[i : i + 16] for i in range(0, len(data), 16))
    lines += ["  " + " ".join(f"0x{byte:02x}," for byte in row) for row in rows]
    return "\n".join([*lines, "};", ""])


class _Writer:
    """Collects tensors, buffers and operators; `index` has the tensor of each of the values."""

    def __init__(self, schema: Any, graph: Graph, quantized: Quantized | None):
        self.schema, self.graph, self.quantized = schema, graph, quantized
        self.shapes = {IMAGES: graph.input_shape} | {n.name: n.shape for n in graph.nodes}
        self.tensors: list[Any] = []
        self.buffers = [schema.BufferT()]  # the first one is empty by convention
        self.operators: list[Any] = []
        self.codes: list[int] = []
        self.index: dict[str, int] = {}

    def model(self, outputs: Sequence[str], notes: Mapping[str, Any], integers: bool) -> Any:
        schema = self.schema
        pixels = self.graph.nodes[0].op == "normalize"
        if integers and not pixels:
            given = self.value(IMAGES, self.graph.input_shape, IMAGES)
        else:
            given = self.tensor(IMAGES, self.graph.input_shape, np.uint8 if pixels else np.float32)
        self.index[IMAGES] = given
        if self.quantized is not None and not pixels and not integers:
            self.index[IMAGES] = self.rounded(given, IMAGES)
        for node in self.graph.nodes:
            self.node(node)
        results = []
        for name, value in zip(outputs, self.graph.outputs, strict=True):
            results.append(self.index[value])
            if self.quantized is not None and not integers:
                results[-1] = self.tensor(name, self.shapes[value], np.float32)
                self.operator("DEQUANTIZE", [self.index[value]], results[-1])
            self.tensors[results[-1]].name = name
        graph = schema.SubGraphT(
            tensors=self.tensors, inputs=[given], outputs=results, operators=self.operators,
            name="main",
        )  # fmt: skip
        codes = [
            schema.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=1)
            for code in self.codes
        ]
        metadata = []
        for name, note in notes.items():
            text = np.frombuffer(json.dumps(note).encode(), np.uint8)
            self.buffers.append(schema.BufferT(data=text))
            metadata.append(schema.MetadataT(name=name, buffer=len(self.buffers) - 1))
        return schema.ModelT(
            version=SCHEMA_VERSION, operatorCodes=codes, subgraphs=[graph],
            description="mnv2_jax", buffers=self.buffers, metadata=metadata,
        )  # fmt: skip

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: Any,
        scale: Any = None,
        data: np.ndarray | None = None,
        axis: int = 0,
    ) -> int:
        """Adds a tensor; `scale` is a `Scale`, or one number a channel along `axis`."""
        schema, buffer, signature = self.schema, 0, None
        if data is not None:
            array = np.ascontiguousarray(data, dtype)
            self.buffers.append(schema.BufferT(data=array.reshape(-1).view(np.uint8)))
            buffer = len(self.buffers) - 1
        else:
            signature = [-1, *shape[1:]]  # any batch
        quantization = None
        if isinstance(scale, Scale):
            quantization = schema.QuantizationParametersT(
                scale=np.array([scale.scale], np.float32), zeroPoint=np.array([scale.zero])
            )
        elif scale is not None:
            quantization = schema.QuantizationParametersT(
                scale=scale, zeroPoint=np.zeros(len(scale), np.int64), quantizedDimension=axis
            )
        made = schema.TensorT()
        made.shape, made.shapeSignature, made.hasRank = list(shape), signature, True
        made.type = getattr(schema.TensorType, np.dtype(dtype).name.upper())
        made.name, made.buffer, made.quantization = name, buffer, quantization
        self.tensors.append(made)
        return len(self.tensors) - 1

    def value(self, name: str, shape: Sequence[int], like: str) -> int:
        """Adds the tensor of an activation, in int8 at the scale of the value `like`."""
        if self.quantized is None:
            return self.tensor(name, shape, np.float32)
        return self.tensor(name, shape, np.int8, self.quantized.activations[like])

    def rounded(self, given: int, name: str) -> int:
        """Adds the step from float to the int8 of the value `name`."""
        rounded = self.value(f"{name}/int8", self.shapes[name], name)
        self.operator("QUANTIZE", [given], rounded)
        return rounded

    def integers(self, name: str, values: Any) -> int:
        array = np.asarray(values, np.int32)
        return self.tensor(name, array.shape, np.int32, data=array)

    def operator(
        self, name: str, inputs: Sequence[int], output: int, kind: str = "", **options: Any
    ) -> None:
        schema = self.schema
        code = getattr(schema.BuiltinOperator, name)
        if code not in self.codes:
            self.codes.append(code)
        operator = schema.OperatorT(
            opcodeIndex=self.codes.index(code), inputs=list(inputs), outputs=[output]
        )
        if kind:
            operator.builtinOptions = getattr(schema, f"{kind}T")(**options)
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        self.operators.append(operator)

    def result(self, node: Node) -> int:
        self.index[node.name] = self.value(node.name, node.shape, node.name)
        return self.index[node.name]

    def node(self, node: Node) -> None:
        """Adds what computes a node; bounds that cannot be fused become operations of their own."""
        op = "elementwise" if node.op in ELEMENTWISE else node.op
        write = getattr(self, f"_{op}", None)
        if write is None:
            raise cannot_write("LiteRT", node)
        if node.clip in ACTIVATIONS:
            return write(node, [self.index[name] for name in node.inputs])
        if self.quantized is not None:
            raise cannot_write("LiteRT", node._replace(op=f"a bound of {node.clip} in int8"))
        inner = node._replace(name=f"{node.name}/unbounded", clip=None)
        self.node(inner)
        value = self.index[inner.name]
        for op, end in zip(("MAXIMUM", "MINIMUM"), node.clip or (), strict=True):
            if np.isfinite(end):
                name = f"{node.name}/{op}"
                bound = self.tensor(f"{name}/end", (), np.float32, data=np.asarray(end))
                given, value = value, self.value(name, node.shape, node.name)
                self.operator(op, [given, bound], value)
        self.index[node.name] = value

    def activation(self, node: Node) -> int:
        return getattr(self.schema.ActivationFunctionType, ACTIVATIONS[node.clip])

    def weights(self, node: Node, order: Sequence[int], axis: int) -> list[int]:
        """Adds kernel and bias; `axis` is that of the output channels, once in `order`."""
        kernel, scale, bias, bias_scale = node.kernel, None, np.asarray(node.bias), None
        if self.quantized is not None:
            kernel, scale, bias, bias_scale = self.quantized.weights[node.name]
        kernel, name = np.transpose(kernel, order), node.name
        return [
            self.tensor(f"{name}/kernel", kernel.shape, kernel.dtype, scale, kernel, axis),
            self.tensor(f"{name}/bias", bias.shape, bias.dtype, bias_scale, bias),
        ]

    def _normalize(self, node: Node, inputs: list[int]) -> None:
        cast = self.tensor(f"{node.name}/cast", node.shape, np.float32)
        self.operator("CAST", inputs, cast, "CastOptions")
        value = cast
        for op, array in (("MUL", node.kernel), ("ADD", node.bias)):
            given = self.tensor(f"{node.name}/{op}", array.shape, np.float32, data=array)
            result = self.tensor(f"{node.name}/{op}/result", node.shape, np.float32)
            self.operator(op, [value, given], result, f"{op.capitalize()}Options")
            value = result
        self.index[node.name] = value if self.quantized is None else self.rounded(value, node.name)

    def _conv(self, node: Node, inputs: list[int]) -> None:
        (x,), shape, kernel = inputs, list(self.shapes[node.inputs[0]]), node.kernel.shape
        same = tuple(pad_same(shape[1 + i], kernel[i], node.stride, node.dilation) for i in (0, 1))
        if node.padding not in (same, NO_PADDING):
            pads = [(0, 0), *node.padding, (0, 0)]
            shape = [n + low + high for n, (low, high) in zip(shape, pads, strict=True)]
            padded = self.value(f"{node.name}/padded", shape, node.inputs[0])
            amounts = self.integers(f"{node.name}/pads", pads)
            self.operator("PAD", [x, amounts], padded, "PadOptions")
            x = padded
        padding = self.schema.Padding.SAME if node.padding == same else self.schema.Padding.VALID
        options = {"padding": padding, "fusedActivationFunction": self.activation(node)}
        options |= dict.fromkeys(("strideW", "strideH"), node.stride)
        options |= dict.fromkeys(("dilationWFactor", "dilationHFactor"), node.dilation)
        if node.groups == 1:
            weights = self.weights(node, (3, 0, 1, 2), 0)
            self.operator("CONV_2D", [x, *weights], self.result(node), "Conv2DOptions", **options)
            return
        if node.groups != kernel[3] or kernel[2] != 1:
            raise cannot_write("LiteRT", node._replace(op=f"a convolution of {node.groups} groups"))
        inputs, options["depthMultiplier"] = [x, *self.weights(node, (2, 0, 1, 3), 3)], 1
        kind = "DepthwiseConv2DOptions"
        self.operator("DEPTHWISE_CONV_2D", inputs, self.result(node), kind, **options)

    def _dense(self, node: Node, inputs: list[int]) -> None:
        inputs, fused = [*inputs, *self.weights(node, (1, 0), 0)], self.activation(node)
        options = {"fusedActivationFunction": fused}
        self.operator(
            "FULLY_CONNECTED", inputs, self.result(node), "FullyConnectedOptions", **options
        )

    def _elementwise(self, node: Node, inputs: list[int]) -> None:
        if node.kernel is not None:
            array = np.asarray(node.kernel, np.float32)
            inputs.append(self.tensor(f"{node.name}/kernel", array.shape, np.float32, data=array))
        kind, options = "", {}
        if node.op in FUSED:
            kind = f"{node.op.capitalize()}Options"
            options = {"fusedActivationFunction": self.activation(node)}
        self.operator(ELEMENTWISE[node.op], inputs, self.result(node), kind, **options)

    def _clip(self, node: Node, inputs: list[int]) -> None:
        if node.clip is None:
            self.index[node.name] = inputs[0]
        else:
            self.operator(ACTIVATIONS[node.clip], inputs, self.result(node))

    def _mean(self, node: Node, inputs: list[int]) -> None:
        axes = self.integers(f"{node.name}/axes", [1, 2])
        self.operator("MEAN", [*inputs, axes], self.result(node), "ReducerOptions")

    def _reshape(self, node: Node, inputs: list[int]) -> None:
        shape = [-1, *node.shape[1:]]
        to = self.integers(f"{node.name}/shape", shape)
        self.operator("RESHAPE", [*inputs, to], self.result(node), "ReshapeOptions", newShape=shape)

    def _concat(self, node: Node, inputs: list[int]) -> None:
        axis = node.axis % len(node.shape)
        self.operator("CONCATENATION", inputs, self.result(node), "ConcatenationOptions", axis=axis)

    def _resize(self, node: Node, inputs: list[int]) -> None:
        size = self.integers(f"{node.name}/size", node.shape[1:3])
        self.operator(
            "RESIZE_BILINEAR", [*inputs, size], self.result(node), "ResizeBilinearOptions",
            alignCorners=True,
        )  # fmt: skip

    _expand = _resize  # one pixel interpolated is that pixel repeated, for any batch
