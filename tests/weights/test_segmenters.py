"""Segmenters in files: names, output stride, round trips, refusals. No other package is needed."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from mnv2_jax import DIALECTS, DeepLabV3, UsageError, export_weights, inspect_weights, load_weights
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.model_folder import load_model, save_model
from mnv2_jax.models.build import build_deeplab
from mnv2_jax.weights import ECOSYSTEMS, infer_ecosystem
from tests.weights.networks import network, same

WIDTH = 0.35
# As the two publishers' files have them; written down from their sources, not from our tables.
LISTED = {
    "slim": {
        "MobilenetV2/expanded_conv_16/project/weights": (1, 1, 336, 112),
        "image_pooling/weights": (1, 1, 112, 256),
        "aspp0/BatchNorm/moving_mean": (256,),
        "concat_projection/weights": (1, 1, 512, 256),
        "logits/semantic/weights": (1, 1, 256, 4),
        "logits/semantic/biases": (4,),
    },
    "hf": {
        "mobilenet_v2.layer.15.reduce_1x1.convolution.weight": (112, 336, 1, 1),
        "mobilenet_v2.conv_1x1.convolution.weight": (1280, 112, 1, 1),
        "mobilenet_v2.conv_1x1.normalization.num_batches_tracked": (),
        "segmentation_head.conv_pool.convolution.weight": (256, 112, 1, 1),
        "segmentation_head.conv_aspp.normalization.running_mean": (256,),
        "segmentation_head.conv_projection.convolution.weight": (256, 512, 1, 1),
        "segmentation_head.classifier.convolution.weight": (4, 256, 1, 1),
        "segmentation_head.classifier.convolution.bias": (4,),
    },
}
LAYERS = {"slim": 51 + 3, "hf": 52 + 3}


def deeplab(ecosystem):
    """A segmenter of four classes, and random variables for it."""
    model = build_deeplab(4, width=WIDTH, dialect=ecosystem)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 33, 33, 3), np.float32)
    )
    rng = np.random.default_rng(0)
    flat = {
        name: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        for name, leaf in flatten_dict(shapes).items()
    }
    return model, unflatten_dict(flat)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Exported files by ecosystem, and the variables that are in all of them."""
    folder, paths = tmp_path_factory.mktemp("segmenters"), {}
    model, variables = deeplab("slim")
    for ecosystem in LISTED:
        paths[ecosystem] = folder / f"{ecosystem}_513x513.safetensors"
        backbone = model.backbone.clone(dialect=DIALECTS[ecosystem])
        export_weights(model.clone(backbone=backbone), variables, ecosystem, paths[ecosystem])
    return paths, variables


def test_all_with_segmenters_are_listed():
    assert LISTED.keys() == {name for name, e in ECOSYSTEMS.items() if e.segmenter is not None}


@pytest.mark.slow
@pytest.mark.parametrize("ecosystem", LISTED)
def test_names_and_shapes(files, ecosystem):
    found = {name: array.shape for name, array in load_file(files[0][ecosystem]).items()}
    assert LISTED[ecosystem].items() <= found.items()
    assert infer_ecosystem(found) == ecosystem
    per_layer = 6 if ecosystem == "hf" else 5
    assert len(found) == LAYERS[ecosystem] * per_layer + 2


@pytest.mark.parametrize("ecosystem", LISTED)
def test_round_trip_is_bit_equal(files, tmp_path, ecosystem):
    path, again = files[0][ecosystem], tmp_path / "again.safetensors"
    loaded = load_weights(f"{ecosystem}:{path}")
    assert isinstance(loaded.model, DeepLabV3) and loaded.task == "segment"
    assert loaded.model == build_deeplab(4, width=WIDTH, dialect=ecosystem)
    assert same(loaded.variables, files[1])
    export_weights(loaded.model, loaded.variables, ecosystem, again)
    assert again.read_bytes() == path.read_bytes()
    assert same(load_weights(f"{ecosystem}:{again}").variables, files[1])


def test_what_their_file_holds_in_vain_is_left_out(files, tmp_path):
    """Hugging Face's network computes nothing from its last convolution, whatever is in it."""
    theirs = load_file(files[0]["hf"])
    last = [name for name in theirs if ".conv_1x1." in name]
    rng = np.random.default_rng(0)
    theirs |= {name: rng.normal(size=theirs[name].shape) for name in last}
    save_file(theirs, tmp_path / "whole.safetensors")
    assert same(load_weights(f"hf:{tmp_path / 'whole.safetensors'}").variables, files[1])
    save_file({k: v for k, v in theirs.items() if k not in last}, tmp_path / "bare.safetensors")
    assert same(load_weights(f"hf:{tmp_path / 'bare.safetensors'}").variables, files[1])


def described(files, tmp_path, text):
    path = tmp_path / "model.safetensors"
    path.write_bytes(files[0]["hf"].read_bytes())
    (tmp_path / "config.json").write_text(text)
    return f"hf:{path}"


def test_the_hubs_description_is_believed_where_it_can_be(files, tmp_path):
    names = {str(i): name for i, name in enumerate(("background", "a", "b", "c"))}
    content = {"output_stride": 8, "id2label": names}
    loaded = load_weights(described(files, tmp_path, json.dumps(content)))
    assert loaded.backbone.output_stride == 8 and loaded.names == ("background", "a", "b", "c")
    source = described(files, tmp_path, json.dumps(content))
    assert load_weights(source, output_stride=32).backbone.output_stride == 32
    labels = {str(i): f"LABEL_{i}" for i in range(4)}  # Hugging Face's numbers, which name nothing
    loaded = load_weights(described(files, tmp_path, json.dumps({"id2label": labels})))
    assert loaded.backbone.output_stride == 16 and loaded.names == ()
    assert load_weights(described(files, tmp_path, "[]")).backbone.output_stride == 16
    for text, message in (
        ("{", r"config\.json' cannot be read as JSON"),
        (json.dumps({"id2label": {"0": "a"}}), "has 4 classes, and what lies beside it names 1"),
        (f'["{"x" * (1 << 20)}"]', "larger than 1 MiB"),
        ('{"output_stride": 7}', "output_stride is 7"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            load_weights(described(files, tmp_path, text))
        assert "\n" not in str(error.value)


def test_a_file_without_its_last_layer(files, tmp_path):
    theirs = load_file(files[0]["hf"])
    save_file(
        {k: v for k, v in theirs.items() if ".classifier." not in k}, tmp_path / "a.safetensors"
    )
    with pytest.raises(UsageError, match=r"has no segmentation_head\.classifier"):
        load_weights(f"hf:{tmp_path / 'a.safetensors'}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_head": True}, "is a segmenter: load it without drop_head"),
        ({"drop_background": True}, "is a segmenter: load it without drop_head"),
        ({"output_stride": 5}, "output_stride is 5"),
    ],
)
def test_options_of_classifiers_are_refused(files, options, message):
    with pytest.raises(UsageError, match=message):
        load_weights(f"hf:{files[0]['hf']}", **options)


def test_a_classifier_takes_no_output_stride(tmp_path):
    export_weights(*network("hf"), "hf", tmp_path / "a.npz")
    with pytest.raises(UsageError, match="load it without output_stride"):
        load_weights(f"hf:{tmp_path / 'a.npz'}", output_stride=16)


def test_the_diff_names_what_is_missing(files, tmp_path):
    theirs = load_file(files[0]["hf"])
    del theirs["segmentation_head.conv_aspp.convolution.weight"]
    theirs["classifier.weight"] = np.zeros((3, 1280), np.float32)
    save_file(theirs, tmp_path / "a.safetensors")
    with pytest.raises(UsageError) as error:
        load_weights(f"hf:{tmp_path / 'a.safetensors'}")
    message = str(error.value)
    assert "does not fit the DeepLabv3 on MobileNetV2 of width 0.35" in message
    assert "- segmentation_head.conv_aspp.convolution.weight [256, 112, 1, 1]" in message
    assert "+ classifier.weight [3, 1280]" in message and "\n" not in message


def test_what_theirs_cannot_compute_is_not_exported(tmp_path):
    path = tmp_path / "a.safetensors"
    for options, ecosystem, message in (
        ({"aspp": True}, "hf", "has a pyramid or a decoder"),
        ({"decoder": True}, "slim", "has a pyramid or a decoder"),
        ({"channels": 64}, "hf", "has 64 channels, not 256"),
        ({"bottleneck": "relu6"}, "hf", "linear bottlenecks"),
        ({}, "torchvision", "it is a segmenter, which only slim, hf publish"),
    ):
        model = build_deeplab(4, width=WIDTH, dialect="hf", **options)
        with pytest.raises(UsageError, match=message):
            export_weights(model, {}, ecosystem, path)
    model = build_deeplab(4, width=WIDTH, dialect="hf")
    other = model.clone(dialect=model.dialect._replace(bn_epsilon=1e-3))
    with pytest.raises(UsageError, match="not 1e-05"):
        export_weights(other, {}, "hf", path)
    assert not path.exists()


def test_the_doctor_knows_a_segmenter(files):
    findings = {finding.topic: finding for finding in inspect_weights(files[0]["hf"])}
    assert "DeepLabv3 head of 256 channels, output stride 16" in findings["architecture"].found
    assert findings["classes"].found == "4 for every pixel, background included"
    assert "shrunk to fit 513 or padded to it" in findings["preprocessing"].found
    assert not any(finding.change for finding in findings.values())


@pytest.mark.nightly
@pytest.mark.slow
def test_import_predict_evaluate_and_back(files, tmp_path, capsys):
    """The verbs of the command line, on a segmenter from elsewhere."""
    from PIL import Image

    source = described(files, tmp_path, json.dumps({"output_stride": 8}))
    folder = tmp_path / "model"
    assert main(["import", source, str(folder)]) == 0
    saved = load_model(folder)
    assert saved.task.name == "segment" and saved.resolution == 513
    assert saved.classes == ("class 0", "class 1", "class 2", "class 3")
    assert saved.model == load_weights(source).model and same(saved.variables, files[1])
    assert saved.description["eval"] == {"crop": "pad"}
    again = tmp_path / "again.safetensors"
    argv = ["export-weights", "--model", str(folder), "--to", "hf", str(again)]
    assert main(argv) == 0
    assert again.read_bytes() == files[0]["hf"].read_bytes()
    assert "MobileNetV2Config(output_stride=8)" in capsys.readouterr().err

    save_model(folder, saved.variables, saved.description | {"resolution": 65})
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    out = ["--out", str(tmp_path / "out")]
    assert main(["predict", "--model", str(folder), str(tmp_path / "one.png"), *out]) == 0
    shares = json.loads((tmp_path / "out" / "one.json").read_text())["shares"]
    assert set(shares) <= set(saved.classes) and sum(shares.values()) == pytest.approx(1, abs=1e-3)

    root = tmp_path / "voc"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("a\nb\nc\n")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("one\n")
    Image.fromarray(pixels).save(root / "JPEGImages" / "one.jpg")
    Image.fromarray(pixels[..., 0] % 4).save(root / "SegmentationClass" / "one.png")
    capsys.readouterr()
    argv = ["evaluate", "--model", str(folder), "--data", "voc_segmentation"]
    assert main([*argv, "--root", str(root), "--split", "val", "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["miou"] <= 1
