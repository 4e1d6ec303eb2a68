"""A saved model used on images and data sets, from Python and from the command line."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from mnv2_jax import UsageError, build, normalize
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.data import ArraySource, open_source
from mnv2_jax.lab.devices import process as host
from mnv2_jax.lab.model_folder import load_model, save_model
from mnv2_jax.lab.paper.results import cell, find_evaluations
from mnv2_jax.lab.predict import evaluate, predict

MODEL = {"spec": "tiny_8", "num_classes": 10, "in_channels": 1, "dialect": "torchvision"}


@pytest.fixture
def folder(tmp_path, randomize):
    description = {
        "model": MODEL,
        "classes": [f"digit {i}" for i in range(10)],
        "resolution": 8,
        "eval": {"crop": "none", "fraction": 1.0},
    }
    save_model(tmp_path / "model", randomize(build(**MODEL), (1, 8, 8, 1)), description)
    return tmp_path / "model"


def logits_of(saved, images):
    return np.asarray(
        jax.jit(saved.model.apply)(saved.variables, normalize(images, saved.model.dialect))
    )


def test_a_saved_model_comes_back_bit_for_bit(folder, randomize):
    saved = load_model(folder)
    assert saved.model == build(**MODEL)
    jax.tree.map(
        np.testing.assert_array_equal, saved.variables, randomize(build(**MODEL), (1, 8, 8, 1))
    )


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    jit = jax.jit
    assert jit(lambda x: x + 1, compiler_options=host.prediction_options())(1) == 2

    def older(function, compiler_options):
        return jit(
            function, compiler_options={"xla_cpu_of_another_release": "", **compiler_options}
        )

    monkeypatch.setattr(jax, "jit", older)
    assert host.prediction_options.__wrapped__() == {}


def test_evaluation_counts_every_image_once(folder):
    saved, source = load_model(folder), open_source("digits", "test")
    arrays = source.arrays()
    logits = logits_of(saved, arrays["image"])
    hits = logits.argmax(1) == arrays["label"]
    order = (logits >= np.take_along_axis(logits, arrays["label"][:, None], 1)).sum(1)
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - np.take_along_axis(
        shifted, arrays["label"][:, None], 1
    ).squeeze(1)
    for batch_size in (7, 360, 1000):
        scores = evaluate(saved, source, batch_size)
        np.testing.assert_allclose(scores["accuracy"], hits.mean(), rtol=1e-6)
        np.testing.assert_allclose(scores["top5"], (order <= 5).mean(), rtol=1e-6)
        np.testing.assert_allclose(scores["loss"], losses.mean(), rtol=1e-4)


def test_prediction_of_an_image_file(folder, tmp_path):
    pixels = open_source("digits", "test")[3]["image"]
    path = tmp_path / "three.png"
    Image.fromarray(pixels[..., 0]).save(path)
    saved = load_model(folder)
    logits = logits_of(saved, pixels[None])[0]
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    ((given, guesses),) = predict(saved, [str(path)], top=3)
    assert given == str(path)
    assert [g.name for g in guesses] == [f"digit {i}" for i in np.argsort(-logits)[:3]]
    np.testing.assert_allclose(
        [g.probability for g in guesses], np.sort(expected)[::-1][:3], rtol=1e-4
    )


def test_the_verbs(folder, tmp_path, capsys):
    path = tmp_path / "digit.png"
    Image.fromarray(open_source("digits", "test")[0]["image"][..., 0]).save(path)
    assert main(["predict", "--model", str(folder), str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["image"] == str(path) and len(printed["classes"]) == 5
    assert main(["predict", "--model", str(folder), str(path), "--top", "2"]) == 0
    assert capsys.readouterr().out.count("%") == 2
    assert main(["evaluate", "--model", str(folder), "--data", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 360
    words = [
        "evaluate",
        "--model",
        str(folder),
        "--data",
        "digits",
        "--out",
        str(tmp_path / "kept"),
    ]
    assert main(words) == 0
    assert "accuracy" in capsys.readouterr().out
    (kept,) = find_evaluations((tmp_path,), "digits", "accuracy")
    assert (kept.images, kept.network.width_and_size, kept.several) == (360, (1.0, 8), False)
    assert cell([], [kept]) == f"{100 * kept.score:.1f}" and str(folder) in kept.weights
    assert kept.command.startswith("python main.py evaluate --model")
    assert find_evaluations((tmp_path / "kept",), "imagenet2012", "accuracy") == []


def test_data_of_more_classes_than_the_model_is_refused(folder):
    many = ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 11]), ("x",) * 12)
    with pytest.raises(UsageError, match="12 classes and the model knows 10"):
        evaluate(load_model(folder), many)
    # Fewer are right only if they are the first that the model knows.
    few = ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]), ("bag", "sandal"))
    with pytest.raises(UsageError, match="2 classes and the model knows 10"):
        evaluate(load_model(folder), few)


def damage_json(folder):
    (folder / "config.json").write_text("{")


def damage_tensors(folder):
    (folder / "model.safetensors").write_bytes(b"\x10" * 50)


def nested_json(folder):
    (folder / "config.json").write_text("[" * 100_000)


def another_project(folder):
    (folder / "config.json").write_text('{"model_type": "mobilenet_v2", "depth_multiplier": 1.0}')


def described(part=None, **changes):
    def damage(folder):
        description = json.loads((folder / "config.json").read_text())
        (description[part] if part else description).update(changes)
        (folder / "config.json").write_text(json.dumps(description))

    return damage


def stored(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        name = "params/stem/conv/kernel"
        save_file(tensors | {name: change(tensors[name])}, folder / "model.safetensors")

    return damage


def no_tensors(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_json, "cannot be read"),
        (damage_tensors, "cannot be read"),
        (nested_json, "maximum recursion depth"),
        (another_project, "has no 'model' entry"),
        (described("model", spec="small_32"), "do not fit the network"),
        (described("model", depth=3), "unknown model option 'depth'"),
        (described(resolution=10**9), "resolution is 1000000000, not from 1 to 8192"),
        (described(resolution=-8), "resolution is -8"),
        (described("eval", zoom=2), "which no image can be prepared by"),
        (described(eval=[]), "which no image can be prepared by"),
        (stored(lambda kernel: kernel.astype(np.int8)), "do not fit the network"),
        (stored(lambda kernel: kernel * np.nan), "NaN or infinite numbers in params/stem/conv"),
        (no_tensors, "no model.safetensors"),
    ],
)
def test_a_damaged_model_is_one_line(folder, capsys, damage, message):
    damage(folder)
    assert main(["evaluate", "--model", str(folder), "--data", "digits"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "the file is empty"),
        (b"no image at all", "not an image of a known format"),
        (b"\xff\xd8\xff\xe0 cut", "cannot be decoded|not an image"),
    ],
)
def test_a_useless_image_is_one_line(folder, tmp_path, content, message):
    path = tmp_path / "image.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        list(predict(load_model(folder), [str(path)]))
    assert "\n" not in str(caught.value)
