"""MobileNetV2 out of ONNX and LiteRT files, whose own runtimes say what they compute."""

import contextlib

import jax
import numpy as np
import pytest

from mnv2_jax import UsageError, build, inspect_weights, load_weights, normalize
from mnv2_jax.export.litert import write_litert
from mnv2_jax.export.onnx import write_onnx
from mnv2_jax.export.runtimes import open_litert, open_onnx
from mnv2_jax.inference.graph import trace
from mnv2_jax.inference.quantize import quantize

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
interpreter = pytest.importorskip("ai_edge_litert.interpreter")
flatbuffers = pytest.importorskip("flatbuffers")

WRITE = {".onnx": write_onnx, ".tflite": write_litert}
OPEN = {".onnx": open_onnx, ".tflite": open_litert}
SIZE = 64
NIGHT = pytest.mark.nightly


def save(
    path, dialect="slim", width=0.1, classes=6, pixels=True, size=(SIZE, SIZE), int8=(), **options
):
    """Writes a network of random numbers of a usual size; `int8` calibrates it to integers."""
    rng = np.random.default_rng(0)
    model = build(num_classes=classes, width=width, dialect=dialect, **options)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), "f4")
    )

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype("f4") * 1.4
        spread = 0.3 if name in ("bias", "mean") else 0.1
        return (rng.normal(0, spread, leaf.shape) + (name in ("scale", "var"))).astype("f4")

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    graph = trace(model, variables, size, model.dialect if pixels else None)
    names = [f"kind {i}" for i in range(classes - model.class_offset)]
    rounded = [quantize(graph, int8), not pixels] if len(int8) else []
    WRITE[path.suffix](path, graph, ("logits",), {"classes": names}, *rounded)
    return path


def logits(path, images):
    return OPEN[path.suffix](path, 1).call(images)[0]


def pictures(size=SIZE):
    return np.random.default_rng(1).integers(0, 256, (2, size, size, 3)).astype(np.uint8)


def again(path, images=None, **options):
    """Returns a file's logits, and those of what is loaded from it, through a new ONNX file."""
    loaded = load_weights(str(path), **options)
    images = pictures() if images is None else images
    new = path.with_name("again.onnx")
    graph = trace(loaded.model, loaded.variables, images.shape[1:3], loaded.dialect)
    write_onnx(new, graph, ("logits",))
    return logits(path, images), logits(new, images), loaded


def assert_same(theirs, ours, tolerance=1e-5):
    assert np.ptp(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max(), rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", WRITE)
def test_logits_are_those_of_the_files_own_runtime(tmp_path, suffix):
    path = save(tmp_path / f"m{suffix}", width=0.35, classes=1001, class_offset=1)
    loaded = load_weights(str(path))
    assert loaded.source == f"slim:{path}" and loaded.backbone.width == 0.35
    assert loaded.names[:2] == ("background", "kind 0") and loaded.preprocessing.size == SIZE
    assert (loaded.dialect.mean, loaded.dialect.std) == ((0.5,), (0.5,))
    ours = jax.jit(loaded.model.apply)(loaded.variables, normalize(pictures(), loaded.dialect))
    assert_same(logits(path, pictures()), ours)
    found = {finding.topic: finding.found for finding in inspect_weights(path)}
    assert "folded" in found["statistics"] and found["architecture"] == "width 0.35, 17 blocks"


def as_unsigned(model):
    """Stores an int8 file in uint8, as older converters do, one scale for all channels or not."""
    types = schema.TensorType
    for tensor in model.subgraphs[0].tensors:
        if tensor.type != types.INT8:
            continue
        tensor.type = types.UINT8
        tensor.quantization.zeroPoint = [128 + zero for zero in tensor.quantization.zeroPoint]
        buffer = model.buffers[tensor.buffer]
        if buffer.data is not None:
            buffer.data = np.asarray(buffer.data, np.uint8) ^ 128


def constants(path):
    """The integers that LiteRT finds in a file, as the floats that they stand for, in order."""
    found, opened = [], interpreter.Interpreter(str(path))
    for tensor in opened.get_tensor_details():
        scales, zeros, axis, *_ = tensor["quantization_parameters"].values()
        with contextlib.suppress(ValueError):  # of what operations make, and is not there yet
            stored = np.moveaxis(opened.get_tensor(tensor["index"]), axis, -1)
            found += [((stored - zeros) * scales).ravel()] if scales.size else []
    return np.sort(np.concatenate(found))


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [True, False])
def test_int8_becomes_float(tmp_path, pixels):
    batches = [pictures() if pixels else np.asarray(normalize(pictures(), build().dialect))]
    path = save(tmp_path / "m.tflite", pixels=pixels, int8=batches)
    loaded = load_weights(str(path))
    assert loaded.dialect.mean == pytest.approx((0.5,), abs=0.01)
    assert loaded.dialect.std == pytest.approx((0.5,), abs=0.01)
    ours = jax.jit(loaded.model.apply)(loaded.variables, normalize(pictures(), loaded.dialect))
    theirs = logits(path, batches[0])
    assert np.abs(theirs - ours).mean() < 0.1 * np.ptp(theirs)  # int8 rounds between layers
    params = jax.tree.leaves(loaded.variables["params"])
    stored = [leaf.ravel() for leaf in params if not (leaf == 1).all() and leaf.any()]
    np.testing.assert_allclose(np.sort(np.concatenate(stored)), constants(path), rtol=1e-6)
    unsigned = load_weights(str(rewritten(path, as_unsigned)))
    assert unsigned.dialect == loaded.dialect
    jax.tree.map(np.testing.assert_array_equal, unsigned.variables, loaded.variables)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [pytest.param(".onnx", marks=NIGHT), ".tflite"])
@pytest.mark.parametrize(
    ("dialect", "width", "ecosystem"),
    [
        ("torchvision", 0.5, "torchvision"),
        pytest.param("keras", 1.0, "keras", marks=NIGHT),
        pytest.param("timm", 1.4, "torchvision", marks=NIGHT),
    ],
)
def test_widths_and_paddings(tmp_path, suffix, dialect, width, ecosystem):
    theirs, ours, loaded = again(save(tmp_path / f"m{suffix}", dialect, width))
    assert_same(theirs, ours)
    assert loaded.source.startswith(f"{ecosystem}:") and loaded.backbone.width == width
    assert loaded.names == tuple(f"kind {i}" for i in range(6))
    assert loaded.dialect.mean == pytest.approx(normal(dialect))


def normal(dialect):
    return (0.485, 0.456, 0.406) if dialect in ("torchvision", "timm") else (0.5,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dialect", "mean"), [("slim", 0.5), pytest.param("torchvision", 0.485, marks=NIGHT)]
)
def test_a_range_that_no_file_says_is_the_librarys_that_pads_so(tmp_path, dialect, mean):
    path = save(tmp_path / "m.onnx", dialect, pixels=False)
    assert load_weights(str(path)).dialect.mean[0] == mean
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 96
    onnx.save(model, path)
    with pytest.raises(UsageError, match=r"the input is \[96, 64\], and one size .* is needed"):
        load_weights(str(path))


# Changes of an ONNX file, as other exporters write it. Each takes nodes by type and constants.


def edited(path, change):
    """Changes the nodes of an ONNX file, {output: node}, and its constants, {name: array}."""
    model = onnx.load(path)
    nodes = list(model.graph.node)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = change(nodes, constants) or nodes
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    arrays = (onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    model.graph.initializer.extend(arrays)
    onnx.save(model, path)
    return path


def make(op, inputs, output, **options):
    return onnx.helper.make_node(op, inputs, [output], output, **options)


def with_batch_norm(nodes, constants):
    """As PyTorch exports a network in training mode."""
    for node in nodes:
        if node.op_type == "Conv":
            channels = constants[node.input[2]].shape
            for part, value in (("g", 0.9), ("m", 0.2), ("v", 0.8)):
                constants[f"{node.name}/{part}"] = np.full(channels, value, np.float32)
            yield make("Conv", node.input[:2], f"{node.name}/raw", **options_of(node))
            parts = [f"{node.name}/g", node.input[2], f"{node.name}/m", f"{node.name}/v"]
            yield make("BatchNormalization", [f"{node.name}/raw", *parts], node.output[0])
        else:
            yield node


def with_other_ends(nodes, constants):
    """As tf2onnx exports Keras: SAME by name, a mean, a product, a sum and a softmax."""
    constants["axes"] = np.array([2, 3])
    kernel = next(node.input[1] for node in nodes if node.op_type == "Gemm")
    constants[kernel] = constants[kernel].T
    for node in nodes:
        if node.op_type == "Conv":
            options = {**options_of(node), "auto_pad": "SAME_UPPER"}
            del options["pads"]
            yield make("Conv", node.input, node.output[0], **options)
        elif node.op_type == "GlobalAveragePool":
            yield make("ReduceMean", node.input, node.output[0], keepdims=0, axes=[2, 3])
        elif node.op_type == "Flatten":
            yield make("Identity", node.input, node.output[0])
        elif node.op_type == "Gemm":
            yield make("MatMul", node.input[:2], "product")
            yield make("Add", [node.input[2], "product"], "sum")
            yield make("Softmax", ["sum"], node.output[0])
        else:
            yield node


def with_halves(nodes, constants):
    """With kernels of half precision, which are widened in the file."""
    for name in [name for name in constants if name.endswith("/kernel")]:
        constants[f"{name}/half"] = constants.pop(name).astype(np.float16)
        yield make("Cast", [f"{name}/half"], name, to=onnx.TensorProto.FLOAT)
    yield from nodes


def options_of(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        with_other_ends,
        pytest.param(with_batch_norm, marks=NIGHT),
        pytest.param(with_halves, marks=NIGHT),
    ],
)
def test_files_as_others_write_them(tmp_path, base, change):
    path = tmp_path / "m.onnx"
    path.write_bytes(base(".onnx"))
    edited(path, lambda nodes, constants: list(change(nodes, constants)))
    theirs, ours, _ = again(path)
    if change is with_other_ends:
        ours = np.asarray(jax.nn.softmax(ours))
    assert_same(theirs, ours)


def rewritten(path, change):
    """Changes the object of a LiteRT file."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    change(model)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def halve(model):
    """Stores kernels in half precision, each behind an operation that widens it."""
    graph, code = model.subgraphs[0], schema.BuiltinOperator.DEQUANTIZE
    model.operatorCodes.append(schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code))
    for number, tensor in enumerate(list(graph.tensors)):
        if tensor.name.endswith(b"/kernel"):
            half, tensor.name = schema.TensorT(), tensor.name + b"/wide"
            vars(half).update({**vars(tensor), "type": schema.TensorType.FLOAT16})
            data = bytes(model.buffers[tensor.buffer].data)
            values = np.frombuffer(data, np.float32).astype(np.float16)
            model.buffers[tensor.buffer].data = values.view(np.uint8)
            tensor.buffer = 0
            graph.tensors.append(half)
            widen = schema.OperatorT(len(model.operatorCodes) - 1)
            widen.inputs, widen.outputs = [len(graph.tensors) - 1], [number]
            graph.operators.insert(0, widen)


def end_as_slim(model):
    """As the authors' files end: a pooling with a window, a 1x1 convolution, and a reshape."""
    graph, codes = model.subgraphs[0], schema.BuiltinOperator
    pool, dense = graph.operators[-2:]
    kernel, logits = (graph.tensors[i] for i in (dense.inputs[1], dense.outputs[0]))
    pooled, map_ = graph.tensors[pool.outputs[0]], graph.tensors[pool.inputs[0]]
    pooled.shape, pooled.shapeSignature = [1, 1, 1, pooled.shape[1]], None
    wide = schema.TensorT()
    vars(wide).update(vars(logits) | {"shape": [1, 1, 1, logits.shape[1]], "name": b"wide"})
    wide.shapeSignature = None
    graph.tensors.append(wide)
    for tensor in graph.tensors:
        if tensor.name in (kernel.name, kernel.name.removesuffix(b"/wide")):
            tensor.shape = [tensor.shape[0], 1, 1, tensor.shape[1]]
    for name in ("AVERAGE_POOL_2D", "CONV_2D", "RESHAPE"):
        code = getattr(codes, name)
        model.operatorCodes.append(schema.OperatorCodeT(min(code, 127), None, 1, code))
    first = len(model.operatorCodes) - 3
    height, width = map_.shape[1:3]
    options = schema.Pool2DOptionsT(1, 1, 1, width, height)
    pool.opcodeIndex, pool.inputs, pool.builtinOptions = first, pool.inputs[:1], options
    pool.builtinOptionsType = schema.BuiltinOptions.Pool2DOptions
    dense.opcodeIndex, dense.builtinOptions = first + 1, schema.Conv2DOptionsT(1, 1, 1)
    dense.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
    dense.outputs = [len(graph.tensors) - 1]
    reshape = schema.OperatorT(first + 2, dense.outputs, graph.outputs)
    reshape.builtinOptions = schema.ReshapeOptionsT([-1, logits.shape[1]])
    reshape.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
    graph.operators.append(reshape)


@pytest.mark.slow
def test_files_of_litert_as_others_write_them(tmp_path, base):
    path = tmp_path / "m.tflite"
    path.write_bytes(base(".tflite"))
    rewritten(rewritten(path, halve), end_as_slim)
    assert_same(*again(path)[:2])


def drop_shortcut(nodes, constants):
    node = next(n for n in nodes if n.op_type == "Add" and not set(n.input) & constants.keys())
    following = [n for n in nodes if node.output[0] in n.input]
    for other in following:
        other.input[list(other.input).index(node.output[0])] = node.input[1]
    nodes.remove(node)


def change_first(op, **options):
    def change(nodes, constants):
        node = next(node for node in nodes if node.op_type == op)
        kept = options_of(node) | options
        nodes[nodes.index(node)] = make(op, node.input, node.output[0], **kept)

    return change


def change_bound(nodes, constants):
    constants["clip/6"] = np.float32(4)


def store_integers(nodes, constants):
    name = next(name for name in constants if name.endswith("/kernel"))
    constants[name] = (constants[name] * 100).astype(np.int8)


def add_along_a_line(nodes, constants):
    """A sum of as many numbers as there are channels, one for every column."""
    node = next(n for n in nodes if n.op_type == "Clip")
    constants["columns"] = np.ones(8, np.float32)
    nodes.insert(nodes.index(node), make("Add", [node.input[0], "columns"], "summed"))
    node.input[0] = "summed"


def insert(op):
    def change(nodes, constants):
        constants["one"] = np.ones(1, np.float32)
        nodes[-1].input[0], last = "inserted", nodes[-1].input[0]
        count = 1 if op == "Tanh" else 2
        nodes.insert(-1, make(op, [last, "one"][:count], "inserted"))

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_shortcut, "has no shortcut"),
        (change_first("Conv", strides=[1, 1]), "stem is another layer"),
        (change_first("Conv", dilations=[2, 2]), "not a plain convolution"),
        (change_first("Conv", pads=[2, 2, 0, 0]), r"stem pads by .* neither as TensorFlow nor as"),
        (change_bound, "clipped to 0..4 where ReLU6 is needed"),
        (store_integers, "is int8: give the float model"),
        (add_along_a_line, "add of other numbers than one a channel"),
        (insert("Tanh"), "of type Tanh is not one of its operations"),
        (insert("QuantizeLinear"), "quantized: give the float model"),
        (lambda nodes, _: nodes.clear(), "cannot be read"),
    ],
)
def test_other_graphs_are_refused_in_one_line(tmp_path, base, change, message):
    path = tmp_path / "m.onnx"
    path.write_bytes(base(".onnx"))
    refused(edited(path, change), message)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Suffix -> the bytes of a good file."""
    folder = tmp_path_factory.mktemp("exported")
    made = {suffix: save(folder / f"m{suffix}").read_bytes() for suffix in WRITE}
    return made.__getitem__


def refused(path, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_weights(str(path))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 700
    assert repr(str(path)) in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", WRITE)
def test_damaged_files_are_refused_in_one_line(tmp_path, base, suffix):
    good, path, rng = base(suffix), tmp_path / f"m{suffix}", np.random.default_rng(0)
    for data in (
        *(good[: len(good) * part // 7] for part in range(1, 7)), rng.bytes(3000),
        b"\0" * 100, b"\0\0\0\0TFL3" + rng.bytes(3000), good[:8] + b"\xff" * 64 + good[72:],
        *(good[:n] + b"\xff" * 4 + good[n + 4 :] for n in range(8, 120, 4) if suffix == ".tflite"),
    ):  # fmt: skip
        path.write_bytes(data)
        with contextlib.suppress(UsageError):  # and nothing else
            load_weights(str(path))


@pytest.mark.slow
def test_other_files_of_litert_are_refused(tmp_path, base):
    def integers(scales):
        def change(model):
            kernel = next(t for t in model.subgraphs[0].tensors if t.name.endswith(b"/kernel"))
            kernel.type = schema.TensorType.INT8
            kernel.shape = [*kernel.shape[:3], 4 * kernel.shape[3]]
            kernel.quantization = schema.QuantizationParametersT(scale=scales, zeroPoint=[0])

        return change

    def relu(model):
        for operator in model.subgraphs[0].operators:
            if hasattr(operator.builtinOptions, "fusedActivationFunction"):
                operator.builtinOptions.fusedActivationFunction = 1

    for change, message in (
        (integers([]), "give the float model"),
        (integers([0.0]), r"quantized by the scale 0\.0"),
        (integers([float("nan")]), "quantized by the scale nan"),
        (integers([0.1, 0.1, 0.1]), "another number of scales"),
        (relu, r"clipped to 0\.\.inf"),
    ):
        path = tmp_path / "m.tflite"
        path.write_bytes(base(".tflite"))
        refused(rewritten(path, change), message)
