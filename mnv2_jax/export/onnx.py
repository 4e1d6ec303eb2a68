"""A graph as an ONNX file: grouped convolutions, `Clip`, any batch, int8 as QDQ.

Images enter as (b, h, w, c) and one `Transpose` makes them ONNX's (b, c, h, w). Inside, nothing is
transposed; an output of a detector or segmenter, whose last axis is channels, is once at its end.
The metadata has the names of classes, and a detector's anchors.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mnv2_jax.export.runtimes import cannot_write, need
from mnv2_jax.inference.operations import BINARY, IMAGES, UNARY, Graph, Node, only
from mnv2_jax.inference.quantize import Quantized

OPSET = 17  # the oldest with all that is used here
IR_VERSION = 8  # what runtimes of that opset's time read
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
ELEMENTWISE = {op: op.capitalize() for op in (*BINARY, *UNARY)}
ELEMENTWISE |= {"logistic": "Sigmoid", "hard_swish": "HardSwish"}


def write_onnx(
    path: Path,
    graph: Graph,
    outputs: Sequence[str],
    notes: Mapping[str, Any] = MappingProxyType({}),
    quantized: Quantized | None = None,
) -> None:
    """Writes a graph with names of its outputs; the `notes` go into the metadata, as JSON.

    The `quantized` form of the same graph is written in int8, with `QuantizeLinear` and
    `DequantizeLinear`. An operation that ONNX lacks is refused by a `UsageError`.
    """
    onnx = need("onnx", "export")
    model = _Writer(onnx, graph, quantized).model(outputs)
    if notes:
        written = {name: json.dumps(note) for name, note in notes.items()}
        onnx.helper.set_model_props(model, written)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def joined_rows(graph: Graph) -> dict[str, list[tuple[Node, Node]]]:
    """Finds where maps are cut into rows of values and joined, as SSDLite's predictions are.

    Returns the (convolution, reshape) pairs, which nothing else uses, by the concatenation's name.
    """
    nodes = {node.name: node for node in graph.nodes}
    uses, joined = graph.uses(), {}
    for node in graph.nodes:
        if node.op == "concat" and len(node.shape) == 3 and node.axis == 1:
            reshapes = [only(name, nodes, uses, "reshape") for name in node.inputs]
            pairs = [(r and only(r.inputs[0], nodes, uses, "conv"), r) for r in reshapes]
            if all(conv is not None for conv, _ in pairs):
                joined[node.name] = pairs
    return joined


class _Writer:
    """Collects the file's nodes and constants; values keep the names of the graph's nodes.

    Rows that are joined (`joined_rows`) stay channels first until they are together: a convolution
    gives a row's first values for all rows, then their second ones, and the names of such
    convolutions and reshapes are in `rows` with how many rows a pixel has.
    """

    def __init__(self, onnx: Any, graph: Graph, quantized: Quantized | None):
        self.onnx, self.graph, self.quantized = onnx, graph, quantized
        self.joined = joined_rows(graph)
        self.rows = {
            node.name: conv.shape[3] // reshape.shape[2]
            for pairs in self.joined.values()
            for conv, reshape in pairs
            for node in (conv, reshape)
        }
        self.shapes = {IMAGES: graph.input_shape} | {n.name: n.shape for n in graph.nodes}
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def model(self, outputs: Sequence[str]) -> Any:
        helper, types = self.onnx.helper, self.onnx.TensorProto
        first = self.graph.nodes[0]
        pixels = first.op == "normalize"
        self.values = {IMAGES: self.rounded(IMAGES, self.emit("Transpose", [IMAGES], perm=TO_NCHW))}
        for node in self.graph.nodes:
            op = "elementwise" if node.op in ELEMENTWISE else node.op
            write = getattr(self, f"_{op}", None)
            if write is None:
                raise cannot_write("ONNX", node)
            value = self.clipped(node, write(node, [self.values[name] for name in node.inputs]))
            self.values[node.name] = self.rounded(node.name, value)
        for name, value in zip(outputs, self.graph.outputs, strict=True):
            image = len(self.shapes[value]) == 4
            op, options = ("Transpose", {"perm": TO_NHWC}) if image else ("Identity", {})
            self.emit(op, [self.values[value]], name, **options)

        def info(name: str, kind: int, shape: Sequence[int]) -> Any:
            return helper.make_tensor_value_info(name, kind, ["batch", *shape[1:]])

        shapes = [self.shapes[name] for name in self.graph.outputs]
        graph = helper.make_graph(
            self.nodes,
            "mnv2_jax",
            [info(IMAGES, types.UINT8 if pixels else types.FLOAT, self.graph.input_shape)],
            [info(n, types.FLOAT, s) for n, s in zip(outputs, shapes, strict=True)],
            list(self.constants.values()),
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, producer_name="mnv2_jax")
        model.ir_version = IR_VERSION
        return model

    def emit(self, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{op}_{len(self.nodes)}"
        node = self.onnx.helper.make_node(op, list(inputs), [output], output, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: Any) -> str:
        if name not in self.constants:
            array = np.ascontiguousarray(value)
            self.constants[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def rounded(self, name: str, value: str) -> str:
        """Passes a value through int8."""
        if self.quantized is None or name not in self.quantized.activations:
            return value
        scale, zero = self.quantized.activations[name]
        ends = [self.constant(f"{name}/scale", np.float32(scale))]
        ends.append(self.constant(f"{name}/zero", np.int8(zero)))
        integers = self.emit("QuantizeLinear", [value, *ends], f"{name}/int8")
        return self.emit("DequantizeLinear", [integers, *ends], f"{name}/float")

    def weights(self, node: Node, order: Sequence[int]) -> list[str]:
        """Adds kernel and bias, the output channels first."""
        channels = np.arange(node.shape[-1]).reshape(self.rows.get(node.name, 1), -1).T.ravel()
        if self.quantized is None:
            parts = {"kernel": np.transpose(node.kernel, order), "bias": node.bias}
            return [self.constant(f"{node.name}/{part}", v[channels]) for part, v in parts.items()]
        weights, values = self.quantized.weights[node.name], []
        for part, array, scale in (
            ("kernel", np.transpose(weights.kernel, order), weights.scale),
            ("bias", weights.bias, weights.bias_scale),
        ):
            name = f"{node.name}/{part}"
            inputs = [
                self.constant(f"{name}/int", array[channels]),
                self.constant(f"{name}/scale", scale[channels]),
                self.constant(f"{name}/zero", np.zeros(len(scale), array.dtype)),
            ]
            values.append(self.emit("DequantizeLinear", inputs, name, axis=0))
        return values

    def clipped(self, node: Node, value: str) -> str:
        if node.clip is None:
            return value
        low, high = node.clip
        if (low, high) == (0, np.inf):
            return self.emit("Relu", [value], f"{node.name}/relu")
        ends = [
            self.constant(f"clip/{end:g}", np.float32(end)) if np.isfinite(end) else ""
            for end in (low, high)
        ]
        return self.emit("Clip", [value, *ends], f"{node.name}/clip")

    def _normalize(self, node: Node, inputs: list[str]) -> str:
        image = self.emit("Cast", inputs, to=self.onnx.TensorProto.FLOAT)
        for op, array in (("Mul", node.kernel), ("Add", node.bias)):
            name = self.constant(f"{node.name}/{op}", array.reshape(1, -1, 1, 1))
            image = self.emit(op, [image, name])
        return image

    def _conv(self, node: Node, inputs: list[str]) -> str:
        (top, bottom), (left, right) = node.padding
        return self.emit(
            "Conv",
            [*inputs, *self.weights(node, (3, 2, 0, 1))],
            node.name,
            kernel_shape=node.kernel.shape[:2],
            strides=[node.stride] * 2,
            pads=[top, left, bottom, right],
            dilations=[node.dilation] * 2,
            group=node.groups,
        )

    def _dense(self, node: Node, inputs: list[str]) -> str:
        return self.emit("Gemm", [*inputs, *self.weights(node, (1, 0))], node.name, transB=1)

    def _elementwise(self, node: Node, inputs: list[str]) -> str:
        if node.kernel is not None:
            array = np.asarray(node.kernel, np.float32)
            array = array.transpose(TO_NCHW) if array.ndim == 4 else array
            inputs.append(self.constant(f"{node.name}/kernel", array))
        return self.emit(ELEMENTWISE[node.op], inputs, node.name)

    def _clip(self, node: Node, inputs: list[str]) -> str:
        return inputs[0]

    def _mean(self, node: Node, inputs: list[str]) -> str:
        return self.emit("Flatten", [self.emit("GlobalAveragePool", inputs)], node.name)

    def _reshape(self, node: Node, inputs: list[str]) -> str:
        value, old, new = inputs[0], self.shapes[node.inputs[0]], list(node.shape)
        if node.name in self.rows:
            new[1:] = reversed(new[1:])  # (b, values, rows), the rows as yet in another order
        elif len(old) == 4 and old[1] * old[2] > 1:
            value = self.emit("Transpose", [value], perm=TO_NHWC)
        image = len(new) == 4 and new[1] * new[2] > 1
        if len(new) == 4 and not image:
            new = [new[i] for i in TO_NCHW]
        shape = self.constant(f"{node.name}/shape", np.array([-1, *new[1:]], np.int64))
        value = self.emit("Reshape", [value, shape], node.name)
        return self.emit("Transpose", [value], perm=TO_NCHW) if image else value

    def _expand(self, node: Node, inputs: list[str]) -> str:
        shape = np.array([node.shape[i] for i in TO_NCHW], np.int64)
        return self.emit("Expand", [*inputs, self.constant(f"{node.name}/shape", shape)], node.name)

    def _concat(self, node: Node, inputs: list[str]) -> str:
        if node.name in self.joined:
            return self.ordered(node, self.emit("Concat", inputs, node.name, axis=2))
        axis = node.axis % len(node.shape)
        axis = TO_NCHW.index(axis) if len(node.shape) == 4 else axis
        return self.emit("Concat", inputs, node.name, axis=axis)

    def ordered(self, node: Node, joined: str) -> str:
        """Brings (b, values, rows) into (b, rows, values), all rows of a pixel after each other."""
        order, start = [], 0
        for conv, reshape in self.joined[node.name]:
            count, rows = reshape.shape[1], self.rows[conv.name]
            order.append(start + np.arange(count).reshape(rows, -1).T.ravel())
            start += count
        places = self.constant(f"{node.name}/order", np.concatenate(order))
        transposed = self.emit("Transpose", [joined], perm=(0, 2, 1))
        return self.emit("Gather", [transposed, places], axis=1)

    def _resize(self, node: Node, inputs: list[str]) -> str:
        # Sizes of the last axes alone would do by the standard; ONNX Runtime fails on them in int8.
        batch = self.emit("Shape", inputs, f"{node.name}/batch", start=0, end=1)
        rest = np.array([node.shape[i] for i in TO_NCHW[1:]], np.int64)
        sizes = [batch, self.constant(f"{node.name}/size", rest)]
        return self.emit(
            "Resize",
            [*inputs, "", "", self.emit("Concat", sizes, f"{node.name}/sizes", axis=0)],
            node.name,
            mode="linear",
            coordinate_transformation_mode="align_corners",
        )
