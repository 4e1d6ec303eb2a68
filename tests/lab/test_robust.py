"""Other test sets for ImageNet's classifiers: their layouts, and scores against numpy."""

import json
import logging
import types

import jax
import numpy as np
import pytest

from mnv2_jax import UsageError, build, normalize
from mnv2_jax.lab import corruptions
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.corruptions import ALEXNET, PARTS, _done, evaluate_corruptions, what_is_missing
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.data.readers import imagenet, robust
from mnv2_jax.lab.model_folder import HASH, load_model, save_model
from mnv2_jax.lab.predict import evaluate, image_transform
from mnv2_jax.models.classes import imagenet as imagenet_classes
from mnv2_jax.models.spec import SPECS, Row, Spec
from tests.lab.data.pictures import encoded, photo
from tests.lab.data.readers.test_imagenet import tar_bytes, write_imagenet

IDS = tuple(imagenet_classes())
SPECS["robust"] = Spec(stem=8, stem_stride=2, rows=(Row(2, 8, 1, 2),), last=16)
SIZE = 8  # of images and networks, so that an image that is seen whole stays as it is


def save(place, randomize, classes=(), count=1000, **options):
    """A classifier that crops what it sees, unless it is told not to."""
    options = {"spec": "robust", "num_classes": count, **options}
    variables = randomize(build(**options), (1, SIZE, SIZE, 3))
    save_model(place, variables, {
        "task": "classify", "model": options, "classes": list(classes), "resolution": SIZE,
        "eval": {"crop": "center", "fraction": 0.5},
    })  # fmt: skip
    return load_model(place)


def logits_of(model, images):
    images = normalize(np.stack(images), model.model.dialect)
    return np.asarray(jax.jit(model.model.apply)(model.variables, images))


def pictures(paths):
    return {path: photo(SIZE, SIZE, seed=seed) for seed, path in enumerate(paths)}


def write(root, images):
    for path, pixels in images.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encoded(pixels, "PNG"))
    return str(root)


def refused(name, root, split="test") -> str:
    with pytest.raises(UsageError) as error:
        open_source(name, split, root if root is None else str(root))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_classes_are_imagenets():
    assert len(IDS) == 1000 and list(IDS) == sorted(IDS)
    assert (IDS[0], IDS[207], IDS[999]) == ("n01440764", "n02099601", "n15075141")


def test_folders_that_are_numbers_are_not_in_the_order_of_their_names(tmp_path, caplog):
    images = pictures([f"imagenetv2/{i}/a.png" for i in (0, 1, 2, 10, 100, 999)])
    root = write(tmp_path, images)
    with caplog.at_level(logging.WARNING):
        source = open_source("imagenet_v2", "val", root)
    found = {source[i]["label"]: source[i]["image"] for i in range(len(source))}
    assert found.keys() == {0, 1, 2, 10, 100, 999} and source.classes == IDS
    for path, pixels in images.items():
        np.testing.assert_array_equal(found[int(path.split("/")[1])], pixels)
    assert "9,994 images that are missing" in caplog.text
    assert source.asked == () and sum(source.counts) == 6


def sources_of_200_classes(name, place):
    """Eight images of each of three classes: unpacked, in the archive, and the folder of that."""
    images = pictures([f"{name}/{IDS[i]}/{j}.png" for i in (3, 500, 999) for j in range(8)])
    root = write(place / "unpacked", images)
    (place / "unpacked" / name / "README.txt").write_text("no image")
    files = {path: encoded(pixels, "PNG") for path, pixels in images.items()}
    archive = place / f"{name.replace('_', '-')}.tar"
    archive.write_bytes(tar_bytes({f"{name}/README.txt": b"no image", **files}))
    return [open_source(name, "test", str(place)) for place in (root, archive, place)], images


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_a_folder_and_its_archive_hold_the_same(tmp_path, name):
    sources, images = sources_of_200_classes(name, tmp_path)
    for source in sources:
        assert source.asked == (3, 500, 999)
        assert [source[i]["label"] for i in range(24)] == [3] * 8 + [500] * 8 + [999] * 8
        for i, pixels in enumerate(images.values()):
            np.testing.assert_array_equal(source[i]["image"], pixels)


@pytest.mark.slow
def test_where_200_classes_are_asked_for_there_is_no_other_answer(tmp_path, randomize):
    (source, *_), images = sources_of_200_classes("imagenet_a", tmp_path)
    # In the usual order, and in one's own after a background, which is no answer either.
    shuffled = np.random.default_rng(0).permutation(IDS).tolist()
    own = [1 + shuffled.index(IDS[i]) for i in source.asked]
    for folder, classes, options, places in (
        ("plain", (), {}, list(source.asked)),
        ("own", shuffled, {"count": 1001, "class_offset": 1}, own),
    ):
        model = save(tmp_path / folder, randomize, classes, **options)
        logits = logits_of(model, [image_of(model, p) for p in images.values()])[:, places]
        label = np.repeat(range(3), 8)
        hits = logits.argmax(1) == label
        losses = np.log(np.exp(logits).sum(1)) - logits[range(24), label]
        scores = evaluate(model, source)
        assert scores["accuracy"] == pytest.approx(hits.mean(), abs=1e-6)
        assert scores["loss"] == pytest.approx(losses.mean(), rel=1e-3)


def image_of(model, pixels):
    """What the model's own evaluation sees of an image."""
    return image_transform(model)({"image": pixels}, np.random.default_rng(0))["image"]


@pytest.mark.slow
def test_an_image_with_several_right_classes_is_right_with_any(tmp_path, randomize, caplog):
    write_imagenet(tmp_path)
    (tmp_path / robust.REAL).write_text(json.dumps([[0, 2], [], [1], [2, 1]]))
    with caplog.at_level(logging.WARNING):
        source = open_source("imagenet_real", "test", str(tmp_path))
    assert "1 images without a label" in caplog.text
    assert [source[i]["also"].tolist() for i in range(3)] == [[0, 2], [1, -1], [2, 1]]
    assert [source[i]["image"].shape[0] for i in range(3)] == [10, 12, 13]
    for classes in (("n03000000", "n01440764", "n02084071"),):
        model = save(tmp_path / "model", randomize, classes, count=3)
        order = [source.classes.index(name) for name in classes]
        answers = logits_of(model, [image_of(model, source[i]["image"]) for i in range(3)])
        answers = np.array(order)[answers.argmax(1)]
        hits = [
            answer in right for answer, right in zip(answers, ([0, 2], [1], [2, 1]), strict=True)
        ]
        assert evaluate(model, source)["accuracy"] == pytest.approx(np.mean(hits), abs=1e-6)


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory):
    """Some corruptions in folders, the others in an archive, two images for each severity."""
    root, labels = tmp_path_factory.mktemp("c"), (0, 999)
    parts = [f"{c}/{s}" for c in robust.CORRUPTIONS for s in robust.SEVERITIES]
    images = pictures([f"{part}/{IDS[i]}/a.png" for part in parts for i in labels])
    noise = {path: encoded(p, "PNG") for path, p in images.items() if "_noise/" in path}
    write(root / "blur", {path: p for path, p in images.items() if "_blur/" in path})
    write(
        root, {path: p for path, p in images.items() if "_blur/" not in path and path not in noise}
    )
    (root / "noise.tar").write_bytes(tar_bytes(noise))
    return root, images


@pytest.mark.slow
def test_corruption_errors_against_numpy_also_where_it_was_interrupted(
    corrupted, tmp_path, randomize
):
    (root, images), out = corrupted, tmp_path / "out"
    model = save(tmp_path / "model", randomize)
    logits = logits_of(model, list(images.values()))  # whole, though the model crops
    hits = (logits.argmax(1) == np.tile((0, 999), 75)).reshape(15, 5, 2)
    number, scores = evaluate_corruptions(model, str(root), out)
    errors = (1 - hits.mean(axis=2)).mean(axis=1) / np.array(list(ALEXNET.values()))
    assert number == 150 and list(ALEXNET) == list(scores)[2:]
    np.testing.assert_allclose(list(scores.values())[2:], errors, rtol=1e-6)
    assert scores["mce"] == pytest.approx(errors.mean(), rel=1e-6)
    assert scores["accuracy"] == pytest.approx(hits.mean(), abs=1e-6)
    kept = json.loads((out / PARTS).read_text())
    kept["done"] = dict(list(kept["done"].items())[:70])
    kept["done"]["snow/1"] = [1.0, 4]  # to see that it is taken from here
    (out / PARTS).write_text(json.dumps(kept))
    again, others = evaluate_corruptions(model, str(root), out)
    assert again == 152 and others["snow"] != scores["snow"] and others["fog"] == scores["fog"]
    for known in (json.dumps({**kept, "model": {}}), "damaged"):  # another's, or nobody's
        (out / PARTS).write_text(known)
        assert _done(out, model) == {}


def test_what_is_missing_is_told_in_one_line(corrupted, tmp_path, monkeypatch, caplog):
    seen = types.SimpleNamespace(scores={"accuracy": 0.5})
    monkeypatch.setattr(corruptions, "evaluator", lambda *_, **__: lambda source: seen)
    model = types.SimpleNamespace(description={HASH: "a"})
    lacks = robust.SETS["imagenet_c"]._replace(images=3)
    monkeypatch.setitem(robust.SETS, "imagenet_c", lacks)
    for _ in range(2):  # the second time all is taken from `out`, and nothing is opened
        evaluate_corruptions(model, str(corrupted[0]), tmp_path)
        (line,) = caplog.messages
        assert "\n" not in line and line.startswith(f"{corrupted[0]}: 75 of 225 images are missing")
        assert "of 75 of 75 sets (gaussian_noise/1 lacks 1, gaussian_noise/2 lacks 1, " in line
        assert "noise/3 lacks 1, …): mce is of those that are there, and comparable only" in line
        caplog.clear()
    assert what_is_missing({"fog/1": 3, "fog/2": 3}) == ""


@pytest.mark.slow
def test_the_verb_scores_all_corruptions(corrupted, tmp_path, randomize, capsys):
    save(tmp_path / "model", randomize)
    command = ["evaluate", "--model", str(tmp_path / "model"), "--data", "imagenet_c", "--json"]
    command += ["--root", str(corrupted[0])]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["images"] == 150 and scores["mce"] > 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["images"] == 150
    assert main([*command, "--examples", str(tmp_path / "a.png")]) == 2
    assert "not those of imagenet_c" in capsys.readouterr().err


def test_mistakes(tmp_path, corrupted):
    root = tmp_path / "a"
    write(root, pictures([f"{IDS[3]}/a.png", "tench/b.png"]))
    assert "tench/b.png, which is in no folder of a class" in refused("imagenet_a", root)
    assert "is not there" in refused("imagenet_v2", tmp_path / "nothing")
    assert "split 'train'" in refused("imagenet_r", root, "train")
    for split in ("test", "fog/6", "fog"):
        assert f"'{split}'" in refused("imagenet_c", corrupted[0], split)
    assert "has no saturate/1" in refused("imagenet_c", corrupted[0], "saturate/1")
    packed = tmp_path / "imagenetv2-matched-frequency.tar.gz"
    packed.write_bytes(b"")
    assert "unpack it, and give the folder" in refused("imagenet_v2", packed)
    assert "needs a root" in refused("imagenet_sketch", None)


def test_more_images_than_a_set_has_are_several_sets(tmp_path, monkeypatch):
    root = write(tmp_path, pictures(["one/0/a.png", "two/0/a.png"]))
    few = robust.SETS["imagenet_v2"]._replace(images=1)
    monkeypatch.setitem(robust.SETS, "imagenet_v2", few)
    assert "give the folder of one set" in refused("imagenet_v2", root)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[[0]]", "[[0], [], [1], [3]]", "[[0], [], [1], [-1]]", "[[0], [], [1], 2]"],
)
def test_labels_that_are_not_those_of_the_images(tmp_path, content):
    write_imagenet(tmp_path)
    assert "real.json is not in" in refused("imagenet_real", tmp_path)
    (tmp_path / robust.REAL).write_text(content)
    assert robust.REAL in refused("imagenet_real", tmp_path)
    (tmp_path / imagenet.DEVKIT).unlink()
    assert imagenet.DEVKIT in refused("imagenet_real", tmp_path)
