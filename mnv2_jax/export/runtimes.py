"""The runtimes of exported files: what they need, what they lack, and how they run a file."""

import importlib
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.inference.operations import Node

C = (".h", ".c", ".cc")  # files that hold a LiteRT model as an array


def need(module: str, extra: str) -> Any:
    """Imports a module of a package that only an export needs, or says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"this export needs the package {module.partition('.')[0]}, which is not installed: "
            f"pip install 'mnv2_jax[{extra}]'."
        ) from error


def cannot_write(name: str, node: Node) -> UsageError:
    """Builds the error for a node that a format has no operation for."""
    return UsageError(
        f"{name} export cannot write {node.op!r} (layer {node.layer}): replace it in the "
        "network, or export to stablehlo, which holds every operation."
    )


class Opened(NamedTuple):
    """An exported file, ready to run."""

    call: Callable[[np.ndarray], list[np.ndarray]]  # images -> outputs, in the file's order
    operations: Counter[str]  # how often it has each
    runtime: str


def open_stablehlo(path: Path, threads: int) -> Opened:
    """Opens a file of `write_stablehlo` in JAX, which uses the threads that it has."""
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    call = jax.jit(exported.call)
    operations = Counter(re.findall(r'[\s"]stablehlo\.(\w+)', exported.mlir_module()))
    del operations["return"]  # the end of a region
    return Opened(
        lambda images: [np.asarray(x) for x in call(images)],
        operations,
        f"JAX {jax.__version__}",
    )


def open_onnx(path: Path, threads: int) -> Opened:
    """Opens an ONNX file in ONNX Runtime."""
    onnx, runtime = need("onnx", "export"), need("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    # Without it, processors that lack VNNI cut sums of int8 products off at 16 bits.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    operations = Counter(node.op_type for node in onnx.load(path).graph.node)
    title = f"ONNX Runtime {runtime.__version__}"
    return Opened(lambda images: session.run(None, {name: images}), operations, title)


def open_litert(path: Path, threads: int) -> Opened:
    """Opens a LiteRT file, or the C of one, in its interpreter; integers are given as numbers."""
    module = need("ai_edge_litert.interpreter", "export")
    schema = need("ai_edge_litert.schema_py_generated", "export")
    data = path.read_bytes()
    if path.suffix in C:
        text = re.sub("//.*", "", data.decode())
        data = bytes.fromhex("".join(re.findall(r"0x(\w\w)", text)))
    interpreter = module.Interpreter(model_content=data, num_threads=threads)
    given, results = interpreter.get_input_details()[0], interpreter.get_output_details()
    ready: Any = None

    def call(images: np.ndarray) -> list[np.ndarray]:
        nonlocal ready
        if ready != images.shape:
            interpreter.resize_tensor_input(given["index"], images.shape)
            interpreter.allocate_tensors()
            ready = images.shape
        if given["dtype"] == np.int8:
            scale, zero = given["quantization"]
            images = np.clip(np.rint(images / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        return [number(end) for end in results]

    def number(end: Any) -> np.ndarray:
        found, (scale, zero) = interpreter.get_tensor(end["index"]), end["quantization"]
        return scale * (found.astype(np.float32) - zero) if scale else found

    model = schema.ModelT.InitFromPackedBuf(data)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
    codes = [names[code.builtinCode] for code in model.operatorCodes]
    operations = Counter(codes[op.opcodeIndex] for op in model.subgraphs[0].operators)
    return Opened(call, operations, "LiteRT")
