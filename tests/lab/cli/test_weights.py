"""The verbs for weights: what comes in can be used, saved, described and taken out again."""

import json
import os
import pickle
import re

import jax
import numpy as np
import pytest
from PIL import Image

from mnv2_jax import load_weights, normalize
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.data import ArraySource, eval_transform
from mnv2_jax.lab.model_folder import load_model
from mnv2_jax.lab.predict import evaluate, predict
from mnv2_jax.models.spec import SPECS
from mnv2_jax.weights import ECOSYSTEMS, export_weights
from tests.weights.networks import network, same
from tests.weights.test_hostile import Payload, archive

WIDTH = 0.35


@pytest.fixture(scope="module")
def slim(tmp_path_factory):
    """A file of slim's with 1001 classes, and the folder that import makes of it."""
    place = tmp_path_factory.mktemp("slim")
    model, variables = network("slim", 1001, SPECS["imagenet"], WIDTH)
    path = place / "mobilenet_v2_0.35_96.npz"
    export_weights(model, variables, "slim", path)
    names = ["background", *(f"name {i}" for i in range(1000))]
    (place / "names.txt").write_text("\n".join(names) + "\n")
    argv = ["import", f"slim:{path}", str(place / "model")]
    assert main([*argv, "--classes-file", str(place / "names.txt")]) == 0
    assert main([*argv[:2], str(place / "kept"), "--keep-background"]) == 0
    return place


@pytest.mark.slow
def test_import_keeps_what_belongs_to_the_weights(slim):
    path = slim / "mobilenet_v2_0.35_96.npz"
    loaded = load_weights(f"slim:{path}", drop_background=True)
    saved = load_model(slim / "model")
    assert saved.model == loaded.model and same(saved.variables, loaded.variables)
    assert saved.model.num_classes == 1000 and saved.resolution == 96
    assert saved.classes[:2] == ("name 0", "name 1")
    # slim's preprocess_for_eval
    assert saved.description["eval"] == {
        "crop": "stretch", "fraction": 0.875, "method": "bilinear", "antialias": False,
    }  # fmt: skip
    assert saved.description["source"] == {
        "ecosystem": "slim", "file": path.name, "sha256": loaded.sha256,
    }  # fmt: skip
    card = (slim / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mnv2_jax\n") and loaded.sha256 in card


def test_import_says_that_weights_were_never_trained(tmp_path, capsys):
    model, variables = network("torchvision", 3, SPECS["imagenet"], 0.1)
    fresh = {"mean": np.zeros, "var": np.ones}
    statistics = jax.tree_util.tree_map_with_path(
        lambda path, leaf: fresh[path[-1].key](leaf.shape, np.float32), variables["batch_stats"]
    )
    variables = {**variables, "batch_stats": statistics}
    export_weights(model, variables, "torchvision", tmp_path / "fresh.safetensors")
    assert main(["import", str(tmp_path / "fresh.safetensors"), str(tmp_path / "model")]) == 0
    assert "were never trained" in capsys.readouterr().err


@pytest.mark.slow
def test_import_tells_whose_they_are_by_the_names(slim, tmp_path, capsys):
    assert main(["import", str(slim / "mobilenet_v2_0.35_96.npz"), str(tmp_path / "model")]) == 0
    assert same(load_model(tmp_path / "model").variables, load_model(slim / "model").variables)
    capsys.readouterr()
    np.savez(tmp_path / "strange.npz", kernel=np.zeros(3, np.float32))
    assert main(["import", str(tmp_path / "strange.npz"), str(tmp_path / "none")]) == 2
    assert "not known: the file has kernel; give weights of" in capsys.readouterr().err
    ours = tmp_path / "model" / "model.safetensors"
    assert main(["import", str(ours), str(tmp_path / "none")]) == 2
    assert f"this project's own; use its folder as it is: --model {ours.parent}" in (
        capsys.readouterr().err
    )


@pytest.mark.nightly
@pytest.mark.slow
def test_background_is_no_answer(slim, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 120, 100, 3)).astype(np.uint8)
    kept = load_model(slim / "kept")
    assert kept.model.num_classes == 1001 and kept.model.class_offset == 1
    transform = eval_transform(96, "stretch", 0.875, antialias=False)
    images = np.stack([transform({"image": p}, None)["image"] for p in pixels])
    logits = jax.jit(kept.model.apply)(kept.variables, normalize(images, kept.model.dialect))
    expected = np.asarray(logits)[:, 1:].argmax(1)
    Image.fromarray(pixels[0]).save(tmp_path / "one.png")
    (prediction,) = predict(kept, tmp_path / "one.png", top=1)
    assert prediction.values["classes"][0]["name"] == f"class {expected[0]}"
    source = ArraySource(pixels, expected, tuple(str(i) for i in range(1000)))
    assert evaluate(kept, source)["accuracy"] == 1.0
    # the folder without it holds the same classifier from class 1 on
    dropped = load_model(slim / "model")
    head, whole = (saved.variables["params"]["classifier"] for saved in (dropped, kept))
    assert np.array_equal(head["kernel"], whole["kernel"][:, 1:])
    assert np.array_equal(head["bias"], whole["bias"][1:])
    assert dropped.classes[int(expected[0])] == f"name {expected[0]}"


@pytest.mark.slow
def test_weights_leave_as_they_came(slim, tmp_path):
    source, again = slim / "mobilenet_v2_0.35_96.npz", tmp_path / "again.npz"
    argv = ["export-weights", "--model", str(slim / "kept"), "--to", "slim", str(again)]
    assert main(argv) == 0
    assert again.read_bytes() == source.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["timm_110d", "timm_120d"])
def test_deeper_networks_of_timm_are_saved_by_name(tmp_path, spec):
    model, variables = network("timm", 5, SPECS[spec])
    export_weights(model, variables, "timm", tmp_path / "a.safetensors")
    assert main(["import", f"timm:{tmp_path / 'a.safetensors'}", str(tmp_path / "model")]) == 0
    saved = load_model(tmp_path / "model")
    assert saved.model.spec == SPECS[spec] and same(saved.variables, variables)


@pytest.mark.slow
def test_features_without_a_head(slim, tmp_path, capsys):
    folder = tmp_path / "features"
    source = f"slim:{slim / 'mobilenet_v2_0.35_96.npz'}"
    assert main(["import", source, str(folder), "--drop-head"]) == 0
    assert load_model(folder).model.num_classes is None
    assert f"--config.init.model={folder}" in capsys.readouterr().err
    assert main(["evaluate", "--model", str(folder), "--data", "digits"]) == 2
    assert "this model gives features only" in capsys.readouterr().err


def test_doctor_tells_what_to_change(slim, capsys):
    path = str(slim / "mobilenet_v2_0.35_96.npz")
    assert main(["doctor", path]) == 0
    told = capsys.readouterr().out
    assert "1001, class 0 is background" in told and "-> add 1 to labels" in told
    assert main(["doctor", f"keras:{path}", "--json"]) == 0
    findings = {f["topic"]: f for f in json.loads(capsys.readouterr().out)}
    assert findings["ecosystem"]["change"] == "load it as slim:, not as keras:"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sha256", "00"], "has sha256"),
        (["--classes-file", "/nowhere"], "cannot be read"),
        (["--classes-file", __file__], "and the classifier has 1000"),
    ],
)
def test_import_refuses_in_one_line(slim, tmp_path, capsys, argv, message):
    source = f"slim:{slim / 'mobilenet_v2_0.35_96.npz'}"
    assert main(["import", source, str(tmp_path / "model"), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_export_refuses_what_an_ecosystem_cannot_hold(slim, tmp_path, capsys):
    argv = ["export-weights", "--model", str(slim / "model"), "--to"]
    assert main([*argv, "torchvision", str(tmp_path / "a.npz")]) == 2
    assert "its padding is same, not symmetric" in capsys.readouterr().err
    assert main([*argv, "nobody", str(tmp_path / "a.npz")]) == 2
    assert "unknown ecosystem 'nobody'" in capsys.readouterr().err
    assert set(ECOSYSTEMS) > {"slim", "torchvision"}


def hostile(slim):
    """Files that are no weights, by name: what a user may hand over, or be handed."""
    whole = (slim / "mobilenet_v2_0.35_96.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[5000] ^= 4
    made = slim / "executed"
    objects = np.empty(1, object)
    objects[0] = Payload(made)
    np.savez(slim / "objects.npz", a=objects)
    np.savez(slim / "other.npz", **{"layer1.0.conv1.weight": np.zeros((3, 3), np.float32)})
    with np.load(slim / "mobilenet_v2_0.35_96.npz") as file:
        arrays = dict(file)
    arrays["MobilenetV2/Conv/weights"][0] = np.nan
    np.savez(slim / "nan.npz", **arrays)
    archive(slim / "slip.npz", {"../executed.npy": b"x"})
    for name, content in {
        "payload.pth": pickle.dumps({"a": Payload(made)}),
        "cut.npz": whole[: len(whole) // 2],
        "flipped.npz": bytes(flipped),
        "empty.npz": b"",
    }.items():
        (slim / name).write_bytes(content)
    (slim / "folder").mkdir()
    return made


@pytest.mark.slow
def test_what_is_no_file_of_weights_ends_in_one_line(slim, tmp_path, capsys):
    made = hostile(slim)
    for name, message in {
        "payload.pth": "cannot be read|PyTorch is not installed",
        "objects.npz": "could run code",
        "slip.npz": "points outside the archive",
        "cut.npz": "cannot be read as .npz",
        "flipped.npz": "cannot be read as .npz",
        "empty.npz": "is empty",
        "folder": "is a folder",
        "nowhere.npz": "there is no file",
        "other.npz": "layer1.0.conv1.weight",
        "nan.npz": "NaN or infinite numbers in MobilenetV2/Conv/weights",
        "keras:mobilenet_v2_0.35_96.npz": "this looks like slim",
    }.items():
        ecosystem, _, file = name.rpartition(":")
        source = f"{ecosystem}:{slim / file}" if ecosystem else str(slim / file)
        assert main(["import", source, str(tmp_path / "model")]) == 2, name
        error = capsys.readouterr().err
        assert error.startswith("mnv2: ") and error.count("\n") == 1, error
        assert re.search(message, error), error
        status = main(["doctor", source])
        out, error = capsys.readouterr()
        assert (status, error.count("\n")) == (2, 1) or (status == 0 and "->" in out and not error)
    assert not made.exists() and not (slim.parent / "executed.npy").exists()
    assert not (tmp_path / "model").exists()


def small(path, ecosystem="hf", **options):
    """Writes the weights of a narrow network; returns its variables."""
    model, variables = network(ecosystem, spec=SPECS["imagenet"], width=WIDTH, **options)
    export_weights(model, variables, ecosystem, path)
    return variables


@pytest.mark.slow
def test_what_lies_beside_is_saved_with_the_model(tmp_path, monkeypatch):
    small(tmp_path / "model.safetensors")
    config = {"image_size": 96, "tf_padding": False, "id2label": {"0": "a", "1": "b", "2": "c"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    argv = ["import", str(tmp_path / "model.safetensors"), str(tmp_path / "model")]
    assert main(argv) == 0
    saved = load_model(tmp_path / "model")
    assert saved.classes == ("a", "b", "c") and saved.resolution == 96
    assert saved.model.dialect.padding == "symmetric"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_weights("hf:~/model.safetensors").preprocessing.size == 96
    umask = os.umask(0o22)
    os.umask(umask)
    assert (tmp_path / "model/model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
    argv += ["--resolution", "64", "--mean", "0.1,0.2,0.3", "--std", "0.5", "0.6", "0.7"]
    assert main(argv) == 0
    saved = load_model(tmp_path / "model")
    assert saved.resolution == 64
    assert (saved.model.dialect.mean, saved.model.dialect.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


@pytest.mark.slow
def test_one_output_is_two_classes(tmp_path):
    """The softmax of one number is 1 for every image."""
    head = small(tmp_path / "a.npz", classes=1)["params"]["classifier"]
    assert main(["import", str(tmp_path / "a.npz"), str(tmp_path / "model")]) == 0
    saved = load_model(tmp_path / "model")
    assert saved.model.num_classes == 2
    kernel = saved.variables["params"]["classifier"]["kernel"]
    assert not kernel[:, 0].any() and np.array_equal(kernel[:, 1:], head["kernel"])


@pytest.mark.slow
def test_import_speaks_of_its_own_flags(tmp_path, capsys):
    small(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        theirs = dict(file)
    stem = "mobilenet_v2.conv_stem.first_conv.convolution.weight"
    averages = {f"ema.{name}": array for name, array in theirs.items()}
    averages["ema.classifier.weight"] = np.zeros((3, 7), np.float32)
    for name, arrays, message in (
        ("deep", theirs | {"fc.weight": np.ones((3, 3))}, "load it with --drop-head for"),
        ("ema", theirs | averages, "the moving averages: --raw takes the raw weights"),
        ("rgba", theirs | {stem: np.ones((16, 4, 3, 3), np.float32)}, "of 4 channels, and the ima"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        argv = ["import", str(tmp_path / f"{name}.npz"), str(tmp_path / name)]
        assert main(argv) == 2 and not (tmp_path / name).exists()
        error = capsys.readouterr().err
        assert message in error and "=True" not in error and error.count("\n") == 1
    assert main(["import", str(tmp_path / "ema.npz"), str(tmp_path / "raw"), "--raw"]) == 0
    argv = ["import", str(tmp_path / "deep.npz"), str(tmp_path / "bare"), "--drop-head"]
    assert main(argv) == 0
    assert "left out, with their tensors: classifier (2), fc (1)\n" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path / "deep.npz")]) == 0
    assert "--drop-head" in (told := capsys.readouterr().out) and "=True" not in told
