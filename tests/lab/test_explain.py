"""Class activation maps, against numpy and against the gradient of the logit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mnv2_jax import UsageError, build
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.explain import activation_map, explain, explainer
from mnv2_jax.lab.model_folder import load_model, save_model
from mnv2_jax.lab.tasks.draw import draw_heat
from mnv2_jax.models.dialect import normalize
from mnv2_jax.models.spec import SPECS, Row, Spec

SPECS["explained"] = Spec(stem=8, stem_stride=2, rows=(Row(2, 8, 1, 2),), last=16)
OPTIONS = {"spec": "explained", "num_classes": 4, "class_offset": 1}
NAMES = ("cat", "<b>dog</b>", "bird")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, randomize):
    place = tmp_path_factory.mktemp("explain") / "model"
    description = {
        "task": "classify", "model": OPTIONS, "classes": list(NAMES), "resolution": 32,
        "eval": {"crop": "none", "fraction": 1.0},
    }  # fmt: skip
    save_model(place, randomize(build(**OPTIONS), (1, 32, 32, 3)), description)
    return place


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.mark.slow
def test_the_mean_of_a_map_and_the_bias_are_the_logit(folder, pixels):
    model = load_model(folder)
    answer = explainer(model)
    images = normalize(jnp.asarray(pixels[None]), model.model.dialect)
    logits = jax.jit(model.model.apply)(model.variables, images)
    logits = np.asarray(logits)[0, 1:]  # no background
    head = model.variables["params"]["classifier"]
    shares = np.exp(logits) / np.exp(logits).sum()
    for i, name in enumerate(NAMES):
        found = answer(pixels, name)
        assert found.map.shape == (8, 8)
        mean = found.map.mean() + head["bias"][1 + i]
        np.testing.assert_allclose(mean, logits[i], rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(found.probability, shares[i], rtol=2e-3)
    likeliest = answer(pixels)
    assert likeliest.name == NAMES[int(logits.argmax())]
    np.testing.assert_array_equal(explain(model, pixels), likeliest.map)


@pytest.mark.slow
def test_it_is_grad_cam_times_the_number_of_positions():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 3, 5, 7)).astype(np.float32)
    kernel = rng.normal(size=(7, 4)).astype(np.float32)

    def logit(features):
        return (features.mean(axis=(1, 2)) @ kernel)[0, 2]

    weights = np.asarray(jax.grad(logit)(features)).mean(axis=(1, 2))  # of Grad-CAM, one a channel
    grad_cam = (features * weights[:, None, None]).sum(axis=-1)
    found = activation_map(features, kernel[:, 2])
    np.testing.assert_allclose(found, 15 * grad_cam, rtol=1e-4, atol=1e-5)


def test_the_picture_is_gray_but_where_the_class_is_seen():
    image = np.full((8, 8, 3), (10, 20, 30), np.uint8)
    drawn = draw_heat(image, np.array([[-1.0, -1.0], [-1.0, 3.0]], np.float32))
    assert (drawn[0, 0] == 20).all()
    red, _, blue = drawn[-1, -1].astype(int)
    assert red > blue + 100
    assert (draw_heat(image[..., :1], np.full((1, 1), -2.0, np.float32)) == 10).all()


@pytest.mark.slow
def test_the_command_writes_a_picture_and_says_the_class(folder, pixels, tmp_path, capsys):
    image, out = tmp_path / "image.png", tmp_path / "new" / "map.png"
    Image.fromarray(pixels).save(image)
    words = ["explain", str(image), "--model", str(folder), "--out"]
    assert main([*words, str(out), "--class", "<b>dog</b>", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["class"] == "<b>dog</b>" and np.shape(found["map"]) == (8, 8)
    assert np.asarray(Image.open(out)).shape == (192, 192, 3)
    assert main([*words, str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    for given, more in ((image, ()), (tmp_path / "a.jpg", ()), (out, ("--class", "cow"))):
        assert main([*words, str(given), *more]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_only_classifiers_explain(folder):
    model = load_model(folder)
    other = model._replace(task=model.task._replace(name="segment", noun="segmenter"))
    with pytest.raises(UsageError, match="this is a segmenter; explain needs a classifier"):
        explainer(other)
