"""Exported files in their own runtimes: the same numbers, the operations stated, int8 as simulated.

The reference is the network itself, run by Flax. Thin networks keep this fast: one of every kind,
and one of every kind of block of one's own. By day every kind meets every format and both ways to
take images, though not in every combination; those are proved at night.
"""

import itertools
import json
import re
import zipfile
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import UsageError, build, normalize
from mnv2_jax.export import FORMATS, export
from mnv2_jax.export.litert import write_litert
from mnv2_jax.export.onnx import write_onnx
from mnv2_jax.export.runtimes import open_litert, open_onnx
from mnv2_jax.export.stablehlo import PLATFORMS
from mnv2_jax.inference.graph import trace
from mnv2_jax.inference.operations import run
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.model_folder import load_model, save_model
from mnv2_jax.models.boxes import detections
from mnv2_jax.models.build import build_deeplab, build_ssdlite
from mnv2_jax.models.spec import SPECS, Row, Spec
from tests.test_docs import ROOT, blocks

THIN = {"spec": Spec(6, 1, (Row(1, 4, 1, 1), Row(6, 4, 1, 1), Row(6, 6, 2, 2)), 16, 2)}
NETWORKS = {
    "classifier": (build(**THIN, num_classes=7), 16),
    "ablated": (
        build(
            **THIN, num_classes=7, shortcut="between_expansions", bottleneck="relu6",
            dialect="torchvision",
        ),
        12,
    ),
    "relu": (build(**THIN, num_classes=7, activation="relu", shortcut="none", split=2), 9),
    "detector": (build_ssdlite(num_classes=2, **THIN).clone(extras=(64,)), 32),
    "segmenter": (build_deeplab(num_classes=3, output_stride=2, **THIN), 17),
    "pyramid": (
        build_deeplab(num_classes=3, output_stride=2, decoder=True, **THIN).clone(
            rates=(1, 2), decoder_tap="block_1/expansion"
        ),
        17,
    ),
}  # fmt: skip
PACKAGES = {"stablehlo": "jax", "onnx": "onnxruntime", "litert": "ai_edge_litert"}


DAY = ("classifier", "detector", "segmenter")
PAIRS = [*itertools.product((*DAY, "ablated"), ("onnx", "litert"))]


def by_day(pairs=PAIRS):
    """(network, format, preprocessing): all, of which `pairs` once by day and the rest at night."""
    for i, network in enumerate(NETWORKS):
        for j, to in enumerate(("onnx", "litert")):
            for preprocessing in (False, True):
                day = (network, to) in pairs and preprocessing == bool((i + j) % 2)
                marks = () if day else pytest.mark.nightly
                yield pytest.param(network, to, preprocessing, marks=marks)


def pixels(size, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def dialect_of(model):
    return getattr(model, "backbone", model).dialect


@pytest.fixture(scope="module")
def networks(randomize):
    """Name -> (model, variables, pixels, outputs of the network as Flax computes it)."""
    made = {}

    def get(name):
        if name not in made:
            model, size = (NETWORKS | OWN)[name]
            variables, images = randomize(model, (1, size, size, 3)), pixels(size)
            outputs = jax.jit(model.apply)(variables, normalize(images, dialect_of(model)))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            made[name] = model, variables, images, outputs
        return made[name]

    return get


def assert_same(found, expected, tolerance=1e-5):
    assert len(found) == len(expected)
    for theirs, ours in zip(found, expected, strict=True):
        assert theirs.shape == ours.shape
        assert np.abs(theirs - ours).max() <= tolerance * np.abs(ours).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.nightly] * (n not in DAY)) for n in NETWORKS],
)
def test_a_graph_computes_what_its_network_does(networks, name):
    model, variables, images, expected = networks(name)
    graph = trace(model, variables, images.shape[1:3], dialect_of(model))
    assert_same(jax.jit(lambda x: run(graph, x))(images), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "to", "preprocessing"), [*by_day()])
def test_a_file_computes_what_its_network_does_for_any_batch(
    tmp_path, networks, name, to, preprocessing
):
    pytest.importorskip(PACKAGES[to])
    model, variables, images, expected = networks(name)
    path = tmp_path / "model"
    report = export(
        model, variables, images.shape[1:3], to, path, ("a", "b"), preprocessing=preprocessing
    )
    assert max(report.difference.values()) <= 1e-5 and report.bytes == path.stat().st_size
    if to == "onnx":  # of the images, and of an output that has its channels last
        assert report.operations["Transpose"] == 1 + sum(x.ndim > 2 for x in expected)
    given = images if preprocessing else np.asarray(normalize(images, dialect_of(model)))
    assert_same(FORMATS[to].open(path, 1).call(given), expected)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "classifier" else pytest.mark.nightly) for n in NETWORKS],
)
def test_stablehlo_is_for_every_platform_and_changes_nothing(tmp_path, networks, name):
    model, variables, images, expected = networks(name)
    given = np.asarray(normalize(images, dialect_of(model)))
    path = tmp_path / "model.stablehlo"
    report = export(model, variables, images.shape[1:3], "stablehlo", path)
    assert max(report.difference.values()) <= 1e-5
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == PLATFORMS
    graph = trace(model, variables, images.shape[1:3])
    results = jax.jit(exported.call)(given)
    assert_same(results, expected)
    for left, right in zip(results, jax.jit(lambda x: run(graph, x))(given), strict=True):
        np.testing.assert_array_equal(left, right)


# Maps of one's own, as they would be written in an experiment.


def five_wide(conv, x, block):
    window = {"kernel": 5, "stride": block.stride, "dilation": block.dilation}
    return conv(x, x.shape[-1], depthwise=True, name="filter", **window)


def linear_expansion(conv, x, block):
    return conv(x, block.expanded, activation=lambda x: x, name="expand")


def excited(conv, x, block):
    s = conv(x.mean((1, 2), keepdims=True), 4, name="squeeze", norm=False, activation=nn.relu)
    s = conv(s, x.shape[-1], name="excite", norm=False, activation=nn.hard_sigmoid)
    return conv(x * s, block.channels, activation=block.bottleneck, name="project")


def bent(conv, x, block):
    return conv(x, block.expanded, activation=lambda x: nn.gelu(x, approximate=False), name="e")


ONE = {"spec": Spec(6, 2, (Row(1, 6, 1, 1), Row(3, 6, 2, 2)), 8, 2), "num_classes": 5}
OWN = {
    "five_wide": (build(**ONE, filter=five_wide, dialect="torchvision"), 14),
    "hard_swish": (build(**ONE, activation=jax.nn.hard_swish), 11),
    "excited": (build(**ONE, project=excited, activation=jax.nn.silu), 11),
    "linear_expansion": (build(**ONE, expand=linear_expansion, activation=jnp.tanh), 11),
    "t=4": (build(**ONE, expansion=4), 11),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "to"),
    [
        pytest.param(
            name, to, marks=[pytest.mark.nightly] * (name != "hard_swish" or to == "stablehlo")
        )
        for name in OWN
        for to in FORMATS
    ],
)
def test_blocks_of_ones_own(tmp_path, networks, name, to):
    pytest.importorskip(PACKAGES[to])
    model, variables, images, _ = networks(name)
    report = export(model, variables, images.shape[1:3], to, tmp_path / "model")
    assert report.difference["logits"] <= 1e-5
    if name == "hard_swish" and to != "stablehlo":
        kinds = {kind.upper().replace("_", ""): n for kind, n in report.operations.items()}
        assert kinds["HARDSWISH"] == 7 and "MUL" not in kinds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "calibration", "message"),
    [
        ("litert", (), r"LiteRT export cannot write 'erfc' \(layer block_0/e\): .*stablehlo"),
        ("onnx", (), r"ONNX export cannot write 'erfc' \(layer block_0/e\): .*stablehlo"),
        ("litert", [pixels(8)], r"int8 cannot hold 'mul' \(layer block_0/e\): .*without int8"),
    ],
)
def test_what_a_format_lacks_is_refused_by_name(tmp_path, randomize, to, calibration, message):
    model = build(**ONE, expand=bent)
    variables = randomize(model, (1, 8, 8, 3))
    with pytest.raises(UsageError, match=message):
        export(model, variables, (8, 8), to, tmp_path / "a", calibration=calibration)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_operations_of_a_classifier(tmp_path, randomize):
    """Of the paper's depth: 17 depthwise, 16 expansions, 17 projections, stem and last."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")
    model = build(width=0.35, num_classes=7)
    graph = trace(model, randomize(model, (1, 32, 32, 3)), (32, 32))
    write_onnx(tmp_path / "a.onnx", graph, ["logits"])
    assert open_onnx(tmp_path / "a.onnx", 1).operations == {
        "Conv": 52, "Clip": 35, "Add": 10, "Transpose": 1, "GlobalAveragePool": 1, "Flatten": 1,
        "Gemm": 1, "Identity": 1,
    }  # fmt: skip
    write_litert(tmp_path / "a.tflite", graph, ["logits"])
    assert open_litert(tmp_path / "a.tflite", 1).operations == {
        "CONV_2D": 35, "DEPTHWISE_CONV_2D": 17, "ADD": 10, "MEAN": 1, "FULLY_CONNECTED": 1,
    }  # fmt: skip


@pytest.mark.slow
def test_files_name_their_classes(tmp_path, randomize):
    onnx = pytest.importorskip("onnx")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    model, size = NETWORKS["relu"]
    variables, names = randomize(model, (1, size, size, 3)), [f"name {i}" for i in range(7)]
    export(model, variables, (size, size), "onnx", tmp_path / "a.onnx", names)
    stored = {p.key: p.value for p in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert json.loads(stored["classes"]) == names
    export(model, variables, (size, size), "litert", tmp_path / "a.tflite", names)
    read = schema.ModelT.InitFromPackedBuf((tmp_path / "a.tflite").read_bytes())
    (entry,) = read.metadata
    assert entry.name == b"classes"
    assert json.loads(bytes(read.buffers[entry.buffer].data)) == names


@pytest.mark.slow
def test_a_detectors_file_has_what_its_boxes_are_made_of(tmp_path, networks):
    """By the lines of the guide, in numpy, from the file alone."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model, variables, images, outputs = networks("detector")
    size, path = images.shape[1:3], tmp_path / "a.onnx"
    export(model, variables, size, "onnx", path, ["left", "right"])
    (guide,) = [b for b in blocks(ROOT / "docs/how-to/export.md", "python") if "boxes_of" in b]
    exec(guide, names := {})
    session = onnxruntime.InferenceSession(path)
    notes = session.get_modelmeta().custom_metadata_map
    assert json.loads(notes["classes"]) == ["left", "right"]
    given = np.asarray(normalize(images, dialect_of(model)))
    codes, logits = session.run(["codes", "logits"], {session.get_inputs()[0].name: given})
    expected = jax.device_get(detections(*outputs, model.anchors(size)))
    for i, (of_codes, of_logits) in enumerate(zip(codes, logits, strict=True)):
        least = float(expected.scores[i][20:22].mean())  # between two detections
        found = names["boxes_of"](of_codes, of_logits, json.loads(notes["anchors"]), least)
        np.testing.assert_allclose(found[0], expected.boxes[i][:21], atol=1e-4)
        np.testing.assert_allclose(found[1], expected.scores[i][:21], atol=1e-4)
        assert found[2] == expected.classes[i][:21].tolist()


@pytest.mark.slow
def test_stablehlo_names_its_classes_behind_its_end(tmp_path, randomize):
    model, size = NETWORKS["relu"]
    variables, path = randomize(model, (1, size, size, 3)), tmp_path / "a.stablehlo"
    report = export(model, variables, (size, size), "stablehlo", path, ["left", "right"])
    assert report.difference["logits"] <= 1e-5  # of the file as it is, with the names
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("classes.json")) == ["left", "right"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "to", "preprocessing"),
    [*by_day(pairs=(("classifier", "litert"), ("relu", "onnx")))],
)
def test_int8_files_round_as_simulated(tmp_path, networks, name, to, preprocessing):
    """Rounding of a half and the width of sums differ between runtimes, hence steps."""
    pytest.importorskip(PACKAGES[to])
    model, variables, images, _ = networks(name)
    report = export(
        model, variables, images.shape[1:3], to, tmp_path / "a", calibration=[images],
        preprocessing=preprocessing,
    )  # fmt: skip
    for largest, mean in report.simulated.values():
        assert largest <= 8 and mean <= 1
    assert max(report.difference.values()) < 0.2
    assert Counter(report.operations)["QuantizeLinear" if to == "onnx" else "QUANTIZE"] >= 1


@pytest.mark.slow
def test_int8_files_have_a_scale_for_every_channel_and_signed_bottlenecks(tmp_path, randomize):
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    model, size = NETWORKS["classifier"]
    variables = randomize(model, (1, size, size, 3))
    images = pixels(size)
    export(model, variables, (size, size), "litert", tmp_path / "a", calibration=[images])
    graph = schema.ModelT.InitFromPackedBuf((tmp_path / "a").read_bytes()).subgraphs[0]
    tensors = {tensor.name.decode(): tensor for tensor in graph.tensors}
    kernel = tensors["block_3/filter/kernel"]
    assert kernel.type == schema.TensorType.INT8
    assert len(kernel.quantization.scale) == kernel.shape[3]
    assert kernel.quantization.quantizedDimension == 3
    assert tensors["block_3/filter/bias"].type == schema.TensorType.INT32
    # ReLU6 uses integers from the lowest on; a linear bottleneck has its zero inside
    assert tensors["block_3/filter"].quantization.zeroPoint[0] == -128
    assert -100 < tensors["block_3/project"].quantization.zeroPoint[0] < 100


@pytest.mark.slow
def test_integers_at_both_ends_and_in_c_are_the_same_network(tmp_path, networks):
    """LiteRT's own interpreter is given the integers that the comments in C say."""
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    model, variables, images, _ = networks("classifier")
    names, options = ["0x00"] * model.num_classes, {"calibration": [images], "integers": True}
    path = tmp_path / "model.h"
    report = export(model, variables, images.shape[1:3], "litert", path, names, **options)
    assert report.simulated["logits"][0] <= 8 and report.simulated["logits"][1] <= 1
    assert report.operations.keys().isdisjoint({"QUANTIZE", "DEQUANTIZE"})
    text = path.read_text()
    data = bytes(int(byte, 16) for byte in re.findall(r"\b(0x[0-9a-f]{2}),", text))
    assert f"model_len = {len(data)};" in text and '// classes: ["0x00", ' in text
    ends = {
        kind: (float(scale), int(zero))
        for kind, scale, zero in re.findall(
            r"// (input|output) \w+: \S+ int8, scale (\S+), zero (\S+)", text
        )
    }
    interpreter = litert.Interpreter(model_content=data)
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    values = np.asarray(normalize(images, model.dialect))[:1]
    scale, zero = ends["input"]
    interpreter.allocate_tensors()
    integers = np.clip(np.round(values / scale) + zero, -128, 127).astype(np.int8)
    interpreter.set_tensor(given["index"], integers)
    interpreter.invoke()
    scale, zero = ends["output"]
    found = scale * (interpreter.get_tensor(result["index"]).astype(np.float32) - zero)
    np.testing.assert_allclose(open_litert(path, 1).call(values)[0], found, rtol=1e-6)


SPECS["exported"] = ONE["spec"]


@pytest.fixture
def folder(tmp_path, randomize):
    options = {"spec": "exported", "num_classes": 10, "in_channels": 1, "dialect": "torchvision"}
    description = {
        "model": options,
        "classes": [f"digit {i}" for i in range(10)],
        "resolution": 8,
        "eval": {"crop": "none", "fraction": 1.0},
    }
    save_model(tmp_path / "model", randomize(build(**options), (1, 8, 8, 1)), description)
    return tmp_path / "model"


@pytest.mark.slow
def test_the_verb(folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "digits.onnx"
    argv = ["export", "--model", str(folder), "--to", "onnx", "--preprocessing", str(path)]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "largest difference" in out
    assert err.startswith("compiling for images of 8x8") and err.count("\n") == 1
    saved = load_model(folder)
    images = open_source("digits", "test").arrays()["image"]
    expected = jax.jit(saved.model.apply)(saved.variables, normalize(images, saved.model.dialect))
    assert_same(open_onnx(path, 1).call(images), [np.asarray(expected)])
    assert main([*argv, "--int8", "digits", "--images", "100", "--equalize", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["operations"]["QuantizeLinear"] > 0


@pytest.mark.nightly
@pytest.mark.slow
def test_a_detector_is_exported_from_its_folder(tmp_path, randomize, capsys):
    pytest.importorskip("ai_edge_litert")
    model, size = build_ssdlite(num_classes=2, spec="tiny_8"), 32
    variables = randomize(model, (1, size, size, 3))
    description = {
        "task": "detect",
        "model": {"num_classes": 2, "spec": "tiny_8"},
        "classes": ["left", "right"],
        "resolution": size,
    }
    save_model(tmp_path / "model", variables, description)
    path = tmp_path / "a.tflite"
    assert main(["export", "--model", str(tmp_path / "model"), "--to", "litert", str(path)]) == 0
    images = np.asarray(normalize(pixels(size), model.backbone.dialect))
    assert_same(open_litert(path, 1).call(images), jax.jit(model.apply)(variables, images))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--to", "onxx"], "unknown export format 'onxx': did you mean 'onnx'"),
        (["--to", "stablehlo", "--int8", "digits"], "stablehlo is written in float"),
        (["--to", "onnx", "--equalize"], "give --int8 DATA too"),
        (["--to", "onnx", "--int8", "digitz"], "did you mean 'digits'"),
        (["--to", "onnx", "--int8", "digits", "--images", "0"], "--images is 0"),
        (["--to", "onnx", "--size", "big"], "resolution is 'big'"),
        (["--to", "onnx", "--int8", "digits", "--integers"], "--integers changes only int8"),
    ],
)
def test_what_cannot_be_exported_is_one_line(folder, tmp_path, capsys, argv, message):
    path = tmp_path / "out"
    assert main(["export", "--model", str(folder), *argv, str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not path.exists()


def test_where_no_file_can_be_nothing_is_computed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"'~/gone/a.onnx' cannot be written"):
        export(None, {}, (8, 8), "onnx", "~/gone/a.onnx")


def test_a_missing_package_is_named(monkeypatch, tmp_path, randomize):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    model, size = NETWORKS["relu"]
    with pytest.raises(UsageError, match=r"pip install 'mnv2_jax\[export\]'"):
        export(model, randomize(model, (1, size, size, 3)), (size, size), "onnx", tmp_path / "a")
