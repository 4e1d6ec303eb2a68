"""Saved detectors and segmenters on images and data sets, from Python and from the command line."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from mnv2_jax import UsageError
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.data import detection_eval, open_source, segmentation_eval
from mnv2_jax.lab.data.scenes import Scenes
from mnv2_jax.lab.model_folder import load_model, save_model
from mnv2_jax.lab.predict import transform_of
from mnv2_jax.lab.regions import evaluate, examples, look
from mnv2_jax.lab.tasks import detect, segment
from mnv2_jax.lab.tasks.draw import draw_boxes, draw_labels, enlarge, grid
from mnv2_jax.models.build import build_deeplab, build_ssdlite
from mnv2_jax.models.spec import SPECS, Row, Spec

SPEC = Spec(stem=8, stem_stride=2, rows=(Row(2, 8, 1, 2),), last=16)
BUILDERS = {"detect": build_ssdlite, "segment": build_deeplab}


@pytest.fixture(scope="module")
def scenes():
    return Scenes(open_source("fashion_mnist_small", "test"), 5, (32, 32), max_objects=2)


@pytest.fixture(scope="module", params=["detect", "segment"])
def folder(request, tmp_path_factory, randomize, scenes):
    SPECS["one_strided"] = SPEC
    task = request.param
    classes = scenes.classes if task == "detect" else scenes.pixel_classes
    options = {"num_classes": len(classes), "spec": "one_strided"}
    options |= {"output_stride": 4, "channels": 8} if task == "segment" else {}
    place = tmp_path_factory.mktemp(task) / "model"
    description = {
        "task": task, "model": options, "classes": list(classes), "resolution": 32,
        "eval": {"crop": "none", "fraction": 0.875},
    }  # fmt: skip
    save_model(place, randomize(BUILDERS[task](**options), (1, 32, 32, 3)), description)
    return place


@pytest.mark.slow
def test_evaluation_is_the_tasks_own_over_all_images_at_once(folder, scenes):
    saved = load_model(folder)
    module = detect if saved.task.name == "detect" else segment
    build = detect.detect if saved.task.name == "detect" else segment.segment
    records = [scenes[i] for i in range(len(scenes))]
    batch = {name: np.stack([r[name] for r in records]) for name in records[0]}
    batch["mask"] = np.ones(len(records), np.float32)
    sums = jax.jit(build(saved.model, (32, 32, 3)).metrics)(saved.variables, batch)
    expected = module.summarize(jax.device_get(sums))
    for batch_size in (2, 5):
        found = evaluate(saved, scenes, batch_size)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)


def test_an_image_file_gives_a_picture_and_values(folder, scenes, tmp_path, capsys):
    path = tmp_path / "scene.png"
    Image.fromarray(scenes[0]["image"][:, :24]).save(path)
    arguments = ["predict", "--model", str(folder), str(path), "--threshold", "0.2", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out/scene.json").read_text())
    with Image.open(tmp_path / "out/scene.png") as file:
        picture = np.asarray(file)
    times = 6  # 32 to at least 192 pixels
    assert picture.shape == (32 * times, 24 * times, 3)
    saved = load_model(folder)
    if saved.task.name == "segment":
        ((_, seen),) = look(saved, [str(path)], 0.2)
        np.testing.assert_array_equal(seen.picture, picture)
        np.testing.assert_allclose(sum(printed["shares"].values()), 1, atol=1e-2)
        assert set(printed["shares"]) <= set(saved.classes)
        return
    with Image.open(path) as file:
        stretched = np.asarray(file.resize((32, 32), Image.Resampling.BILINEAR))
    find = jax.jit(lambda images: detect.predict(saved.model, saved.variables, images))
    found = jax.device_get(find(stretched[None]))
    assert 0 < len(printed["objects"]) <= 100
    best = printed["objects"][0]
    assert abs(best["score"] - found.scores[0, 0]) < 0.05
    assert all(
        0 <= v <= (24, 32, 24, 32)[i] for o in printed["objects"] for i, v in enumerate(o["box"])
    )
    assert min(o["score"] for o in printed["objects"]) >= 0.2


@pytest.mark.parametrize("crop", ["none", "pad"])
def test_images_alone_are_prepared_as_for_evaluation(folder, scenes, crop):
    """What int8 files are calibrated on; an oblong image shows how it is fitted."""
    saved = load_model(folder)
    if saved.task.name == "detect" and crop == "pad":
        return  # detectors stretch only
    saved = saved._replace(description=saved.description | {"eval": {"crop": crop}})
    record = dict(scenes[0]) | {"image": scenes[0]["image"][:20], "label": scenes[0]["label"][:20]}
    for size in (24, 32):
        found = transform_of(saved, size)(record, None)
        assert found.keys() == {"image"}
        if saved.task.name == "detect":
            expected = detection_eval(size, 5)(record, None)
        else:
            expected = segmentation_eval(size, crop)(record, None)
        np.testing.assert_array_equal(found["image"], expected["image"])


@pytest.mark.slow
def test_evaluate_draws_examples(folder, tmp_path, capsys, monkeypatch, scenes):
    monkeypatch.setattr("mnv2_jax.lab.data.open_source", lambda *_: scenes)
    picture = tmp_path / "examples.png"
    command = ["evaluate", "--model", str(folder), "--data", "scenes", "--examples", str(picture)]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["images"] == 5 and ({"map", "miou"} & printed.keys())
    # Five scenes in rows of four, what is true above what is predicted.
    with Image.open(picture) as sheet:
        assert sheet.size == (4 * 192 + 3 * 4, 4 * 192 + 3 * 4)


def test_several_looks_at_an_image(folder, capsys, monkeypatch, scenes):
    """Table 7's setting at the command line; the probabilities are averaged, not the labels."""
    monkeypatch.setattr("mnv2_jax.lab.data.open_source", lambda *_: scenes)
    saved = load_model(folder)
    command = ["evaluate", "--model", str(folder), "--data", "scenes", "--json"]
    several = ["--scales", "0.5", "1", "--flip"]
    if saved.task.name == "detect":
        assert main([*command, *several]) == 2
        error = capsys.readouterr().err
        assert "only a segmenter averages" in error and error.count("\n") == 1
        return
    for scales in (["0"], ["1", "-2"], ["5"], ["nan"]):
        assert main([*command, "--scales", *scales]) == 2
        error = capsys.readouterr().err
        assert "above 0 and at most 4" in error and error.count("\n") == 1
    assert main(command) == 0
    once = json.loads(capsys.readouterr().out)
    assert main([*command, *several]) == 0
    found = json.loads(capsys.readouterr().out)
    records = [scenes[i] for i in range(len(scenes))]
    images, labels = (np.stack([r[name] for r in records]) for name in ("image", "label"))
    averaged = jax.jit(
        lambda images: segment.probabilities(
            saved.model, saved.variables, images, scales=(0.5, 1.0), flip=True
        )
    )(images)
    guesses, counted = np.asarray(averaged).argmax(-1), labels != 255
    right = (guesses == labels)[counted].mean()
    assert found["accuracy"] == pytest.approx(right, abs=1e-3)
    of_truth = np.take_along_axis(
        np.asarray(averaged), np.where(counted, labels, 0)[..., None].astype(int), -1
    )[..., 0]
    assert found["loss"] == pytest.approx(-np.log(of_truth[counted]).mean(), rel=1e-3)
    assert abs(found["loss"] - once["loss"]) > 1e-3


def test_data_that_does_not_fit_is_refused(folder, scenes):
    saved = load_model(folder)
    with pytest.raises(UsageError, match=r"has no (boxes|label)"):
        evaluate(saved, open_source("digits", "test"))
    fewer = saved._replace(classes=saved.classes[:3])
    with pytest.raises(UsageError, match="the model knows 3"):
        examples(fewer, scenes, 1)


def test_mistakes_on_the_command_line(folder, tmp_path, capsys):
    model = ["--model", str(folder)]
    for arguments, message in (
        (["predict", *model, "gone.png"], "'gone.png' cannot be read: No such file"),
        (["predict", *model, "a/x.png", "b/x.png"], "several images are called 'x'"),
        (["predict", *model, "x.png", "--threshold", "2"], "--threshold is 2.0"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_boxes_and_labels_are_drawn_where_they_are():
    image = np.full((40, 60, 1), 100, np.uint8)
    drawn = draw_boxes(image, np.array([[0.25, 0.5, 0.75, 1.0]]), [0], [""])
    changed = (drawn != 100).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (10, 29, 30, 59)
    labels = np.zeros((40, 60), np.uint8)
    labels[:10], labels[10:20] = 3, 255
    shown = draw_labels(image, labels)
    assert (shown[20:] == 100).all() and (shown[10:20] == 45).all()
    assert len(np.unique(shown[:10].reshape(-1, 3), axis=0)) == 1 and (shown[:10] != 100).any()


def test_pictures_are_enlarged_and_laid_out():
    dot = np.zeros((2, 3, 3), np.uint8)
    assert enlarge(dot, 7).shape == (6, 9, 3)
    sheet = grid([[dot, dot + 9], [dot]])
    assert sheet.shape == (2 * 2 + 4, 2 * 3 + 4, 3)
    assert (sheet[:2, 7:] == 9).all() and (sheet[6:, 7:] == 255).all()
