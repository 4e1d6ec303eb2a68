"""A trained model of any task on images and data sets, from Python and from the command line."""

import json
import os
import re
import signal
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from scipy.special import softmax

from mnv2_jax import MobileNetV2, UsageError, build, normalize
from mnv2_jax.inference.graph import trace
from mnv2_jax.inference.stream import cost, schedule
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.data import ArraySource, detection_eval, open_source, segmentation_eval
from mnv2_jax.lab.data.scenes import Scenes
from mnv2_jax.lab.data.video import open_video
from mnv2_jax.lab.devices import process as host
from mnv2_jax.lab.model_folder import load_model, save_model
from mnv2_jax.lab.paper.results import cell, find_evaluations
from mnv2_jax.lab.predict import evaluate, find_images, image_transform, predict, predictor
from mnv2_jax.lab.tasks import TASKS, detect, segment
from mnv2_jax.lab.tasks import task as contract
from mnv2_jax.lab.tasks.draw import (
    draw_boxes,
    draw_labels,
    enlarge,
    grid,
    label_colors,
    write_picture,
)
from mnv2_jax.models.build import build_deeplab, build_ssdlite
from mnv2_jax.models.deeplab import resize_aligned
from mnv2_jax.models.spec import SPECS, Row, Spec
from tests.lab.data.pictures import film, photo

MODEL = {"spec": "one_strided", "num_classes": 10, "in_channels": 1, "dialect": "torchvision"}
SPECS["one_strided"] = Spec(stem=8, stem_stride=2, rows=(Row(2, 8, 1, 2),), last=16)
EARLY = Spec(6, 1, (Row(1, 4, 1, 1), Row(6, 6, 1, 2), Row(2, 6, 1, 2)), 8, 2)  # most of its memory
TWICE = contract.TestTimeAugmentation((0.5, 1.0), flip=True)


@pytest.fixture(scope="module")
def scenes():
    return Scenes(open_source("fashion_mnist_small", "test"), 5, (32, 32), max_objects=2)


def save(place, task, options, classes, size, variables, crop="none"):
    description = {
        "task": task, "model": options, "classes": list(classes), "resolution": size,
        "eval": {"crop": crop, "fraction": 1.0},
    }  # fmt: skip
    save_model(place, variables, description)
    return place


@pytest.fixture(scope="module")
def kept(tmp_path_factory, randomize):
    """A classifier of digits."""
    names, variables = [str(i) for i in range(10)], randomize(build(**MODEL), (1, 8, 8, 1))
    return save(tmp_path_factory.mktemp("c") / "model", "classify", MODEL, names, 8, variables)


@pytest.fixture
def folder(kept, tmp_path):
    """A copy of the classifier, to damage."""
    (tmp_path / "model").mkdir()
    for file in kept.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "model"


@pytest.fixture(scope="module", params=["detect", "segment"])
def drawing(request, tmp_path_factory, randomize, scenes):
    """A detector or a segmenter of scenes."""
    task, place = TASKS[request.param], tmp_path_factory.mktemp(request.param) / "model"
    classes = task.classes(scenes)
    options = {"num_classes": len(classes), "spec": "one_strided"}
    options |= {"output_stride": 4, "channels": 8} if task.name == "segment" else {}
    variables = randomize(task.build(**options), (1, 32, 32, 3))
    return save(place, task.name, options, classes, 32, variables)


@pytest.fixture(scope="module")
def trained(drawing):
    return load_model(drawing)


def logits_of(model, images):
    return np.asarray(
        jax.jit(model.model.apply)(model.variables, normalize(images, model.model.dialect))
    )


@pytest.mark.slow
def test_a_saved_model_comes_back_bit_for_bit(kept, randomize):
    model = load_model(kept)
    assert model.model == build(**MODEL) and model.task is TASKS["classify"]
    jax.tree.map(
        np.testing.assert_array_equal, model.variables, randomize(build(**MODEL), (1, 8, 8, 1))
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


@pytest.mark.slow
def test_evaluation_counts_every_image_once(kept):
    model, source = load_model(kept), open_source("digits", "test")
    arrays = source.arrays()
    logits = logits_of(model, arrays["image"])
    hits = logits.argmax(1) == arrays["label"]
    order = (logits >= np.take_along_axis(logits, arrays["label"][:, None], 1)).sum(1)
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - np.take_along_axis(
        shifted, arrays["label"][:, None], 1
    ).squeeze(1)
    for batch_size in (112, 1000):
        scores = evaluate(model, source, batch_size)
        np.testing.assert_allclose(scores["accuracy"], hits.mean(), rtol=1e-6)
        np.testing.assert_allclose(scores["top5"], (order <= 5).mean(), rtol=1e-6)
        np.testing.assert_allclose(scores["loss"], losses.mean(), rtol=1e-4)


@pytest.mark.slow
def test_classes_of_files_and_arrays(kept, tmp_path):
    pixels = open_source("digits", "test")[3]["image"]
    path = tmp_path / "three.png"
    Image.fromarray(pixels[..., 0]).save(path)
    model = load_model(kept)
    logits = logits_of(model, pixels[None])[0]
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    color = np.repeat(pixels, 3, axis=2)  # of gray pixels, which weights of colors leave as it is
    several = [str(path), path, pixels, pixels[..., 0], color]
    found = [p.values for p in predict(model, several, top=3)]
    found += [p.values for p in predict(model, path, top=3)]
    found += [p.values for p in predict(model, np.stack([pixels, pixels]), top=3)]
    assert len(found) == 8 and all(values == found[0] for values in found)
    names, shares = zip(*(c.values() for c in found[0]["classes"]), strict=True)
    assert list(names) == [str(i) for i in np.argsort(-logits)[:3]]
    np.testing.assert_allclose(shares, np.sort(expected)[::-1][:3], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8)), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8), np.uint8), None],
    ids=["floats", "four channels", "empty", "nothing"],
)
def test_an_array_that_is_no_image_is_one_line(kept, image):
    with pytest.raises(UsageError, match=r"image 0 is .*give the path of a file, or an array"):
        list(predict(load_model(kept), [image]))


@pytest.mark.slow
def test_the_verbs(kept, tmp_path, capsys):
    path = tmp_path / "digit.png"
    Image.fromarray(open_source("digits", "test")[0]["image"][..., 0]).save(path)
    assert main(["predict", "--model", str(kept), str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["image"] == str(path) and len(printed["classes"]) == 5
    assert main(["predict", "--model", str(kept), str(path), "--top", "2"]) == 0
    assert capsys.readouterr().out.count("%") == 2
    assert main(["predict", "--model", str(kept), str(path), "--memory", "0MB"]) == 2
    assert re.search(r"take \S+ MB at least: give that\.\n$", capsys.readouterr().err)
    words = ["evaluate", "--model", str(kept), "--data", "digits"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 360
    assert main([*words, "--out", str(tmp_path / "kept")]) == 0
    assert "accuracy" in capsys.readouterr().out
    (evaluation,) = find_evaluations((tmp_path,), "digits", "accuracy")
    assert (evaluation.images, evaluation.several) == (360, False)
    assert evaluation.network.width_and_size == (1.0, 8)
    assert cell([], [evaluation]) == f"{100 * evaluation.score:.1f}"
    assert str(kept) in evaluation.weights
    assert evaluation.command.startswith("python main.py evaluate --model")
    assert find_evaluations((tmp_path / "kept",), "imagenet2012", "accuracy") == []


@pytest.mark.slow
def test_folders_are_searched_and_what_cannot_be_read_is_passed_over(
    kept, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(tmp_path))
    pixels, root = open_source("digits", "test"), tmp_path / "pictures"
    for number, name in enumerate(("b/2.PNG", "a.png", "b/10.jpeg", "single.png")):
        place = root / name if "single" not in name else tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]["image"][..., 0]).save(place)
    (root / "b/1.png").write_bytes(b"no image")
    (root / "c.png").symlink_to("gone.png")
    (root / "notes.txt").write_text("no image either")
    (root / ".hidden.png").write_bytes(b"")
    (root / "b/loop").symlink_to(root)
    single, gone = str(tmp_path / "single.png"), str(tmp_path / "gone.png")
    argv = ["predict", "--model", str(kept), "--json", single, gone, "~/pictures"]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    good = [single, *(str(root / name) for name in ("a.png", "b/10.jpeg", "b/2.PNG"))]
    assert [json.loads(line)["image"] for line in out.splitlines()] == good
    bad = (gone, str(root / "b/1.png"), str(root / "c.png"))
    *lines, last = err.splitlines()
    assert all(name in line for name, line in zip(bad, lines, strict=True))
    assert last == "mnv2: 3 of 7 images could not be read."
    assert find_images(["~/pictures"])[0] == ("~/pictures/a.png", "a.png")
    (one,) = predict(load_model(kept), "~/single.png")
    assert one.values == {k: v for k, v in json.loads(out.splitlines()[0]).items() if k != "image"}
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.heic").touch()
    assert main([*argv, str(tmp_path / "empty")]) == 2
    out, err = capsys.readouterr()
    assert not out and "empty' has no images" in err and err.count("\n") == 1


@pytest.mark.slow
def test_drawings_of_a_folder_lie_as_its_images_do_and_replace_none(
    drawing, scenes, tmp_path, monkeypatch, capsys
):
    seen = contract.Prediction({}, np.zeros((2, 2, 3), np.uint8))  # of no concern here
    monkeypatch.setattr("mnv2_jax.lab.predict.predictor", lambda *_, **__: lambda pixels: seen)
    monkeypatch.chdir(tmp_path)
    for name in ("left/a.png", "right/a.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(scenes[0]["image"]).save(name)
    before = (tmp_path / "left/a.png").read_bytes()
    argv = ["predict", "--model", str(drawing), "."]
    for _ in range(2):  # the second time, it finds what it has drawn
        assert main(argv) == 0
        assert capsys.readouterr().out.count("\n") == 2
    drawn = sorted(str(p.relative_to("predictions")) for p in Path("predictions").rglob("*.*"))
    assert drawn == ["left/a.json", "left/a.png", "right/a.json", "right/a.png"]
    assert main([*argv, "--out", "."]) == 2
    assert "left/a.png is itself to be predicted" in capsys.readouterr().err
    assert main([*argv[:-1], "left", "--out", "left"]) == 2
    assert main([*argv, "--out", "left/a.png"]) == 2
    assert "the --out 'left/a.png' cannot be written" in capsys.readouterr().err
    assert (tmp_path / "left/a.png").read_bytes() == before
    assert main([*argv[:-1], "left", "--out", "."]) == 0 and Path("a.json").exists()


def test_a_drawing_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    write_picture(np.zeros((2, 2, 3), np.uint8), tmp_path / "new/a.png")
    before = (tmp_path / "new/a.png").read_bytes()

    def full(image, place, form):
        Path(place).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.png"):
        write_picture(np.ones((2, 2, 3), np.uint8), tmp_path / "new/a.png")
    assert [p.read_bytes() for p in (tmp_path / "new").iterdir()] == [before]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("classify", MobileNetV2(7, spec=EARLY)),
        pytest.param(
            "detect",
            build_ssdlite(num_classes=2, spec=EARLY).clone(extras=(64,)),
            marks=pytest.mark.nightly,
        ),
        ("segment", build_deeplab(num_classes=3, spec=EARLY, output_stride=4, channels=8)),
    ],
)
def test_answers_within_a_budget_of_memory_are_those_without(randomize, task, model):
    variables, whole = randomize(model, (1, 20, 20, 3)), lambda _, outputs, *__, **___: outputs
    graph, task = trace(model, variables, (20, 20)), TASKS[task]._replace(decode=whole, show=whole)
    memory = 0.5 * cost(graph, [])[0]
    assert schedule(graph, memory)  # has something to compute in rows
    trained = contract.TrainedModel(task, model, variables, (), 20, {})
    pixels = np.random.default_rng(3).integers(0, 256, (30, 40, 3), np.uint8)
    answers = [predictor(trained, memory=m)(pixels) for m in (memory, None)]
    for ours, theirs in zip(*map(jax.tree.leaves, answers), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


# What stands after `mnv2`, for a model of which task, and what is answered.
MISTAKES = [
    ("classify", ["predict", "--threshold", "0.5", "x.png"], "threshold needs a detector."),
    ("classify", ["predict", "--top", "0", "x.png"], "--top is 0"),
    ("classify", ["evaluate", "--examples", "x.png"], "needs a detector or a segmenter."),
    ("classify", ["evaluate", "--scales", "inf"], "above 0 and at most 4"),
    ("detect", ["predict", "--top", "5", "x.png"], "this is a detector; --top needs a classifier."),
    ("detect", ["predict", "gone.png"], "'gone.png' cannot be read: No such file"),
    ("detect", ["predict", "a/x.png", "b/x.png"], "several images are called 'x'"),
    ("detect", ["predict", "x.png", "--threshold", "2"], "--threshold is 2.0"),
    ("detect", ["evaluate", "--scales", "0.5"], "and --flip need a classifier or a segmenter."),
    ("segment", ["evaluate", "--scales", "0"], "above 0 and at most 4"),
    ("segment", ["evaluate", "--scales", "1", "-2"], "above 0 and at most 4"),
    ("segment", ["evaluate", "--scales", "5"], "above 0 and at most 4"),
    ("segment", ["evaluate", "--scales", "nan"], "above 0 and at most 4"),
]


def refused(place, task, capsys):
    """Each mistake for a model of this task is answered in one line."""
    for _, arguments, message in (row for row in MISTAKES if row[0] == task):
        data = ["--data", "digits"] if arguments[0] == "evaluate" else []
        assert main([*arguments, *data, "--model", str(place)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.slow
def test_mistakes_with_a_classifier(kept, capsys):
    refused(kept, "classify", capsys)


@pytest.mark.slow
def test_mistakes_with_a_detector_or_segmenter(drawing, trained, scenes, capsys, monkeypatch):
    monkeypatch.setattr("mnv2_jax.lab.data.open_source", lambda *_: scenes)
    refused(drawing, trained.task.name, capsys)


PART = """
from mnv2_jax.models.block import between_bottlenecks

PARTS = {"shortcut": {"mine_of_a_test": between_bottlenecks}}
"""


@pytest.mark.slow
def test_a_model_with_a_part_of_ones_own_needs_its_code(folder, tmp_path, capsys):
    described("model", shortcut="mine_of_a_test")(folder)
    words = ["evaluate", "--model", str(folder), "--data", "digits", "--json"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "'mine_of_a_test'" in error and "--code FILE" in error and error.count("\n") == 1
    assert main([*words, "--code", str(tmp_path / "gone.py")]) == 2
    assert "gone.py" in capsys.readouterr().err
    (tmp_path / "parts.py").write_text(PART)
    assert main([*words, "--code", str(tmp_path / "parts.py")]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 360


@pytest.mark.slow
def test_data_of_other_classes_than_the_model_is_refused(kept):
    many = ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 11]), ("x",) * 12)
    with pytest.raises(UsageError, match=r"12 classes of another name .*\+ 'x', .* - '0', '1'"):
        evaluate(load_model(kept), many)
    few = ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]), ("bag", "7"))
    with pytest.raises(UsageError, match=r"a class of another name .*\+ 'bag', - '0'"):
        evaluate(load_model(kept), few)


@pytest.mark.slow
def test_data_whose_classes_are_listed_in_another_order_has_the_same_score(kept):
    digits = open_source("digits", "test")
    arrays, order = digits.arrays(), np.random.default_rng(0).permutation(10)
    labels, names = np.argsort(order)[arrays["label"]], tuple(digits.classes[i] for i in order)
    model = load_model(kept)
    turned = evaluate(model, ArraySource(arrays["image"], labels, names))
    assert turned == evaluate(model, digits)
    few = [i for i, label in enumerate(arrays["label"]) if label in (3, 8)]
    own = ArraySource(arrays["image"][few], arrays["label"][few] // 8, ("3", "8"))
    part = ArraySource(arrays["image"][few], arrays["label"][few], digits.classes)
    assert evaluate(model, own) == evaluate(model, part)


@pytest.mark.slow
def test_data_without_annotations_is_refused(trained, scenes):
    with pytest.raises(UsageError, match=r"needs '(boxes|label)' with 2 axes"):
        evaluate(trained, open_source("digits", "test"))
    with pytest.raises(UsageError, match="needs 'label' with 0 axes"):
        evaluate(trained._replace(task=TASKS["classify"]), scenes)


@pytest.mark.slow
def test_evaluation_is_the_tasks_own_over_all_images_at_once(trained, scenes):
    """Folded and spread over devices, in batches whose last rows are masked."""
    records = [scenes[i] for i in range(len(scenes))]
    batch = {name: np.stack([r[name] for r in records]) for name in records[0]}
    batch["mask"] = np.ones(len(records), np.float32)

    def sums(variables, batch):
        outputs = contract.eval_outputs(trained.model, variables, batch)
        return trained.task.scores(trained.model, outputs, batch)

    expected = trained.task.summarize(jax.device_get(jax.jit(sums)(trained.variables, batch)))
    found = evaluate(trained, scenes, batch_size=2)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, err_msg=name)


@pytest.mark.slow
def test_an_image_gives_a_picture_and_values(drawing, trained, scenes, tmp_path, capsys):
    path = tmp_path / "scene.png"
    pixels = scenes[0]["image"][:, :24]
    Image.fromarray(pixels).save(path)
    arguments = ["predict", "--model", str(drawing), str(path), "--json"]
    settings = {"threshold": 0.2} if trained.task.name == "detect" else {}
    arguments += ["--threshold", "0.2"] if settings else []
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out/scene.json").read_text())
    with Image.open(tmp_path / "out/scene.png") as file:
        picture = np.asarray(file)
    times = 6  # 32 to at least 192 pixels
    assert picture.shape == (32 * times, 24 * times, 3)
    (seen,) = predict(trained, pixels, **settings)
    np.testing.assert_array_equal(seen.picture, picture)
    assert printed == {"image": str(path), **seen.values}
    if trained.task.name == "segment":
        np.testing.assert_allclose(sum(printed["shares"].values()), 1, atol=1e-2)
        assert set(printed["shares"]) <= set(trained.classes)
        return
    stretched = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR))
    found = jax.jit(partial(detect.predict, trained.model))(trained.variables, stretched[None])
    assert 0 < len(printed["objects"]) <= 100
    best = printed["objects"][0]
    assert abs(best["score"] - found.scores[0, 0]) < 0.05
    assert all(
        0 <= v <= (24, 32, 24, 32)[i] for o in printed["objects"] for i, v in enumerate(o["box"])
    )
    assert min(o["score"] for o in printed["objects"]) >= 0.2


def rows_of_a_video(place, frames, folder, capsys, *options):
    """Predicts a video and its frames as pictures, whose answers are the same."""
    pytest.importorskip("cv2")
    clip, pictures = film(folder / "clip.mkv", frames), []
    for number, frame in enumerate(frames):
        pictures.append(str(folder / f"{number}.png"))
        Image.fromarray(frame).save(pictures[-1])
    words = ["predict", "--model", str(place), "--json", "--out", str(folder / "out"), *options]
    assert main([*words, *pictures]) == 0
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main([*words, str(clip)]) == 0
    text, error = capsys.readouterr()
    found = [json.loads(line) for line in text.splitlines()]
    assert not error and len(found) == len(frames)
    for number, (row, picture) in enumerate(zip(found, expected, strict=True)):
        del picture["image"]
        assert row == {"video": str(clip), "frame": number, "time": number / 25, **picture}
    return text


@pytest.mark.slow
def test_rows_of_a_video_are_those_of_its_frames(kept, tmp_path, capsys):
    frames = [photo(20, 24, seed=n) for n in range(3)]
    text = rows_of_a_video(kept, frames, tmp_path, capsys, "--top", "2")
    assert text.count("probability") == 3 * 2
    words = ["predict", "--model", str(kept), "--top", "1", str(tmp_path / "clip.mkv")]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == f"{tmp_path / 'clip.mkv'}, frame 1, 0.040 s" and len(lines) == 6
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_video_is_drawn_as_its_frames_are(drawing, scenes, tmp_path, capsys):
    frames = [np.asarray(scenes[n]["image"])[:, :24] for n in range(3)]
    text = rows_of_a_video(drawing, frames, tmp_path, capsys)
    assert (tmp_path / "out/clip.jsonl").read_text() == text
    with open_video(tmp_path / "out/clip.mp4") as video:
        drawn = list(video.frames)
    assert len(drawn) == 3
    for number, frame in enumerate(drawn):
        with Image.open(tmp_path / f"out/{number}.png") as file:
            picture = np.asarray(file)
        assert frame.pixels.shape == picture.shape == (192, 144, 3)
        # MPEG-4 blurs lines, but keeps the mean of a block.
        blocks = (p.reshape(24, 8, 18, 8, 3).mean((1, 3)) for p in (frame.pixels, picture))
        np.testing.assert_allclose(*blocks, atol=50)


@pytest.fixture
def clip(drawing, tmp_path, monkeypatch):
    """A folder with a video of 20 frames, and the command that predicts with a fake of a model.

    What `on` has for a frame is called before that is answered.
    """
    pytest.importorskip("cv2")
    on, count = {}, iter(range(99))

    def answer(pixels):
        on.get(next(count), lambda: None)()
        return contract.Prediction({"mean": int(pixels.mean())}, np.repeat(pixels, 4, axis=0))

    monkeypatch.setattr("mnv2_jax.lab.predict.predictor", lambda *_, **__: answer)
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "clip.avi", [np.full((48, 64, 3), 10 * n, np.uint8) for n in range(20)], "MJPG")
    return on, ["predict", "--model", str(drawing)]


def written():
    """How many rows and frames there are of a video, where nothing else is."""
    (rows,), (drawn,) = (Path("predictions").glob(f"*{e}") for e in (".jsonl", ".mp4"))
    assert len(os.listdir("predictions")) == 2
    with open_video(drawn) as video:
        assert video.count == len(list(video.frames))
    return len([json.loads(line) for line in rows.read_text().splitlines()]), video.count


@pytest.mark.slow
@pytest.mark.parametrize("drawing", ["detect"], indirect=True)
def test_what_was_predicted_of_a_video_before_a_stop_is_whole(clip, capsys):
    on, words = clip
    on[0] = on[6] = lambda: signal.raise_signal(signal.SIGINT)
    assert main([*words, "clip.avi"]) == 130  # before anything is written
    assert os.listdir("predictions") == []
    capsys.readouterr()
    assert main([*words, "clip.avi"]) == 130  # frames 1 to 6 of the fake
    out, err = capsys.readouterr()
    assert out == "clip.avi: predictions/clip.mp4\n"
    assert err == "mnv2: stopped after 6 frames of clip.avi\n"
    assert written() == (6, 6)
    assert main([*words, "clip.avi"]) == 0 and written() == (20, 20)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
@pytest.mark.parametrize("drawing", ["detect"], indirect=True)
def test_what_was_predicted_of_a_damaged_video_is_whole(clip, tmp_path, capsys):
    _, words = clip
    whole = (tmp_path / "clip.avi").read_bytes()
    (tmp_path / "clip.avi").write_bytes(whole[: int(len(whole) * 0.9)])
    assert main([*words, "clip.avi"]) == 2
    out, err = capsys.readouterr()
    rows, frames = written()
    assert 0 < rows == frames < 20 and out == "clip.avi: predictions/clip.mp4\n"
    assert f"'clip.avi' cannot be read from frame {rows} on" in err and err.count("\n") == 1
    (tmp_path / "clip.avi").unlink()
    (tmp_path / "more").mkdir()
    (tmp_path / "more/a.avi").write_bytes(whole)
    (tmp_path / "more/b.MOV").write_bytes(b"")
    Image.fromarray(photo(9, 9)).save(tmp_path / "more/c.png")
    assert main([*words, "more", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out.count("\n") == 20 + 1 and err.endswith("mnv2: 1 of 3 files could not be read.\n")
    assert "b.MOV' has no frame 0: the file is empty" in err
    assert main([*words, "more/a.avi", "a.mkv"]) == 2
    assert "several videos are called 'a'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("drawing", ["detect"], indirect=True)
def test_a_camera_is_predicted_until_ctrl_c(clip, monkeypatch, capsys):
    import cv2

    (on, words), real = clip, cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda *a: real("clip.avi") if a == (0,) else real(*a))
    on[4] = lambda: signal.raise_signal(signal.SIGINT)
    assert main([*words, "--camera", "0", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["video"], row["frame"]) for row in rows] == [("camera 0", n) for n in range(5)]
    assert (np.diff([row["time"] for row in rows]) >= 0).all()
    assert written() == (5, 5) and Path("predictions/camera_0.mp4").exists()
    assert main([*words, "--camera", "0"]) == 2  # the film ends, which a camera does not
    assert "camera 0 gives no picture from frame 20 on" in capsys.readouterr().err
    for wrong in ([], ["--camera", "0", "a.png"]):
        assert main([*words, *wrong]) == 2
        assert "give either files and folders to predict, or --camera N" in capsys.readouterr().err


@pytest.mark.parametrize("crop", ["none", "pad"])
def test_images_alone_are_prepared_as_for_evaluation(trained, scenes, crop):
    """What int8 files are calibrated on; an oblong image shows how it is fitted."""
    if trained.task.name == "detect" and crop == "pad":
        return  # detectors stretch only
    model = trained._replace(description=trained.description | {"eval": {"crop": crop}})
    record = dict(scenes[0]) | {"image": scenes[0]["image"][:20], "label": scenes[0]["label"][:20]}
    for size in (24, 32):
        found = image_transform(model, size)(record, None)
        assert found.keys() == {"image"}
        if model.task.name == "detect":
            expected = detection_eval(size, 5)(record, None)
        else:
            expected = segmentation_eval(size, crop)(record, None)
        np.testing.assert_array_equal(found["image"], expected["image"])


def test_several_looks_at_a_picture_to_classify(randomize):
    """The mean of what softmax says of each view, which numpy computes."""
    model = build(**MODEL)
    variables = randomize(model, (1, 24, 24, 1))
    names = tuple(map(str, range(10)))
    options = {"eval": {"crop": "none"}}
    trained = contract.TrainedModel(TASKS["classify"], model, variables, names, 24, options)
    images = np.random.default_rng(0).integers(0, 256, (6, 24, 24, 1), np.uint8)
    found = evaluate(trained, ArraySource(images, np.arange(6), names), augmentation=TWICE)
    pixels = np.asarray(normalize(images, model.dialect))
    views = [pixels, np.asarray(resize_aligned(pixels, (12, 12)))]
    views += [view[:, :, ::-1] for view in views]
    logits = [np.asarray(model.apply(variables, view), float) for view in views]
    chances = softmax(logits, axis=-1).mean(0)
    true = chances[np.arange(6), np.arange(6)]
    assert found["accuracy"] == pytest.approx((chances.argmax(1) == np.arange(6)).mean())
    assert found["loss"] == pytest.approx(-np.log(true).mean(), rel=1e-4)


@pytest.mark.slow
def test_several_looks_at_an_image(trained, scenes):
    """Table 7's setting; the probabilities are averaged, not the labels."""
    if trained.task.name == "detect":
        return
    found = evaluate(trained, scenes, augmentation=TWICE)
    records = [scenes[i] for i in range(len(scenes))]
    images, labels = (np.stack([r[name] for r in records]) for name in ("image", "label"))
    averaged = segment.average(trained.model.apply, TWICE)
    logs = jax.jit(averaged)(trained.variables, normalize(images, trained.backbone.dialect))
    logs, counted = np.asarray(logs), labels != 255
    assert found["accuracy"] == pytest.approx((logs.argmax(-1) == labels)[counted].mean(), abs=1e-3)
    truth = np.where(counted, labels, 0)[..., None].astype(int)
    losses = -np.take_along_axis(logs, truth, -1)[..., 0][counted]
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-3)


def damage_json(folder):
    (folder / "config.json").write_text("{")


def damage_tensors(folder):
    (folder / "model.safetensors").write_bytes(b"\x10" * 50)


def nested_json(folder):
    (folder / "config.json").write_text("[" * 100_000)


def another_project(folder):
    (folder / "config.json").write_text('{"model_type": "mobilenet_v2", "depth_multiplier": 1.0}')


def unsealed(folder):
    """Takes from a description what says that it is unchanged, as older releases wrote it."""
    description = json.loads((folder / "config.json").read_text())
    kept = {k: v for k, v in description.items() if k not in ("seal", "tensors_sha256")}
    (folder / "config.json").write_text(json.dumps(kept))
    return kept


def described(part=None, **changes):
    """Changes a description by hand."""

    def damage(folder):
        description = unsealed(folder)
        (description[part] if part else description).update(changes)
        (folder / "config.json").write_text(json.dumps(description))

    return damage


def stored(change):
    def damage(folder):
        unsealed(folder)
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
        (another_project, "has no 'model' entry, so it was not written by mnv2_jax"),
        (described("model", spec="small_32"), "do not fit the network"),
        (described("model", depth=3), "unknown model option 'depth'"),
        (described(resolution=10**9), "resolution is 1000000000: it must be between 1 and 8192"),
        (described(resolution=-8), "resolution is -8"),
        (described(resolution="8"), "resolution is '8': it must be an integer"),
        (described(classes="digits"), "classes is 'digits': it must be a tuple"),
        (described(classes=["a", None]), "classes is ('a', None)"),
        (described(classes=["a", "b"]), "it names 2 classes, and its network has 10"),
        (described(model=None), "model is None: it must be an object"),
        (described(eval=None), "eval is None: it must be an object"),
        (described(task=["classify"]), "unknown task ('classify',)"),
        (described("model", width=float("inf")), "Infinity is no number of JSON"),
        (described("model", num_classes=True), "model.num_classes is True: it must be an integer"),
        (described("model", spec=None), "model.spec is None"),
        (described("eval", zoom=2), "which no image can be prepared by"),
        (described(eval=[]), "eval is []: it must be an object"),
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


def edit(**changes):
    def change(folder, _):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def another(name):
    return lambda folder, other: (folder / name).write_bytes((other / name).read_bytes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(classes=[str((i + 1) % 10) for i in range(10)]), "its seal does not fit"),
        (edit(model=MODEL | {"dialect": "slim"}), "its seal does not fit"),
        (edit(model=MODEL | {"activation": "relu"}), "its seal does not fit"),
        (edit(model=MODEL | {"shortcut": "none"}), "its seal does not fit"),
        (edit(resolution=16), "its seal does not fit"),
        (edit(eval={"crop": "stretch", "fraction": 0.5}), "its seal does not fit"),
        (another("config.json"), "are not of one model"),
        (another("model.safetensors"), "are not of one model"),
    ],
    ids=lambda value: None if isinstance(value, str) else "change",
)
def test_a_description_that_is_not_its_models_is_refused(folder, tmp_path, change, message):
    """All of these loaded, and answered wrongly."""
    model = load_model(folder)
    other = jax.tree.map(lambda leaf: leaf * 2, model.variables)
    save(tmp_path / "other", "classify", MODEL, model.classes[::-1], 8, other)
    change(folder, tmp_path / "other")
    with pytest.raises(UsageError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_description_without_a_seal_is_read_as_it_is(folder):
    described(classes=[f"digit {i}" for i in range(10)])(folder)
    assert load_model(folder).class_name(3) == "digit 3"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "the file is empty"),
        (b"no image at all", "not an image of a known format"),
        (b"\xff\xd8\xff\xe0 cut", "cannot be decoded|not an image"),
    ],
)
def test_a_useless_image_is_one_line(kept, tmp_path, content, message):
    path = tmp_path / "image.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        list(predict(load_model(kept), [str(path)]))
    assert "\n" not in str(caught.value)


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


def test_lines_and_names_are_as_large_as_the_picture_asks_for():
    boxes = np.array([[0.1, 0.1, 0.6, 0.5], [0.5, 0.4, 0.9, 0.8]])

    def ink(size, names):
        drawn = draw_boxes(np.full((*size, 1), 100, np.uint8), boxes, [0, 1], names)
        return np.abs(drawn.astype(int) - 100).mean()

    for names in (["", ""], ["cat 0.91", "dog 0.5"]):
        small, large = (ink(size, names) for size in ((560, 720), (1120, 1440)))
        assert large == pytest.approx(small, rel=0.1)


def test_the_name_of_a_box_at_an_edge_is_whole():
    image, name, dark = np.full((200, 200, 1), 100, np.uint8), "traffic light", []
    for top, left in ((0.5, 0.3), (0.5, 0.9), (0.98, 0.3), (0.98, 0.9)):
        drawn = draw_boxes(image, np.array([[top, left, 1, 1]]), [0], [name])
        dark.append((drawn.max(-1) < 80).sum())
    assert min(dark) > 0.8 * max(dark) > 20


def test_every_class_has_a_color_of_its_own():
    for background, count in ((0, 21), (0, 255), (None, 19), (None, 255)):
        labels = np.arange(count, dtype=np.uint8)[None]
        colors = label_colors(labels, background)[0].tolist()
        assert len(set(map(tuple, colors))) == count
        for gray in (60, 255):  # and over an image, where black is what is not labelled
            image = np.full((1, count + 1, 1), gray, np.uint8)
            drawn = draw_labels(image, np.append(labels, 255)[None].astype(np.uint8), background)
            assert len(np.unique(drawn[0], axis=0)) == count + 1
    # As the palette of VOC2012's label maps has them: train, tv/monitor.
    assert label_colors(np.array([19, 20])).tolist() == [[128, 192, 0], [0, 64, 128]]


def test_pictures_are_enlarged_and_laid_out():
    dot = np.zeros((2, 3, 3), np.uint8)
    assert enlarge(dot, 7).shape == (6, 9, 3)
    sheet = grid([[dot, dot + 9], [dot]])
    assert sheet.shape == (2 * 2 + 4, 2 * 3 + 4, 3)
    assert (sheet[:2, 7:] == 9).all() and (sheet[6:, 7:] == 255).all()
