"""From a folder of pictures to a model: what is found there, refused and chosen."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from mnv2_jax import UsageError, build, export_weights
from mnv2_jax.lab import fit as module
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.devices import process as host
from mnv2_jax.lab.fit import choose, fit, look
from mnv2_jax.lab.model_folder import load_model
from mnv2_jax.models.spec import SPECS, Row, Spec
from mnv2_jax.weights import published

SPECS["fitted"] = Spec(stem=8, stem_stride=2, rows=(Row(2, 8, 1, 2),), last=16)


@pytest.fixture(autouse=True)
def process_settings_left_alone(monkeypatch):
    for name in ("keep_freed_memory", "use_compilation_cache"):
        monkeypatch.setattr(host, name, lambda *_: None)


def write(path, seed, side=12, light=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 100, (side, side + 4, 3), np.uint8) + light
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Dark and light pictures, a damaged one in either split, and one that is in both."""
    root = tmp_path / "pictures"
    for light, name in ((0, "dark"), (150, "light")):
        for i in range(8):
            write(root / "train" / name / f"{i}.png", i, light=light)
        for i in range(4):
            write(root / "val" / name / f"{i}.png", 100 + i, light=light)
    whole = (root / "train" / "dark" / "0.png").read_bytes()
    (root / "train" / "dark" / "cut.png").write_bytes(whole[:200])
    (root / "val" / "light" / "empty.jpg").write_bytes(b"")
    (root / "val" / "dark" / "copy.png").write_bytes(whole)
    return root


def test_damage_copies_and_sizes_are_found(folder):
    found = look(folder)
    assert {path.name for path in found.damaged} == {"cut.png", "empty.jpg"}
    assert [(a.name, b.name) for a, b in found.twice] == [("0.png", "copy.png")]
    assert found.side == 12


def test_what_cannot_be_trained_is_refused(tmp_path, capsys):
    for i in range(3):
        write(tmp_path / "one" / "train" / "cat" / f"{i}.png", i)
        write(tmp_path / "one" / "val" / "cat" / f"{i}.png", 9 + i)
    write(tmp_path / "two" / "cat" / "1.png", 0)
    write(tmp_path / "two" / "dog" / "1.png", 1)
    (tmp_path / "none").mkdir()
    for name in ("one", "two", "none", "missing"):
        assert main(["fit", str(tmp_path / name), "--dry-run"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["fit", str(tmp_path / "one"), "--time", "soon"]) == 2


@pytest.mark.parametrize(("side", "spec"), [(8, "tiny_8"), (32, "small_32"), (500, "small_96")])
def test_the_network_suits_the_size_of_the_pictures(folder, side, spec):
    choices = choose(look(folder)._replace(side=side), None)
    chosen = {key: value for key, value, _ in choices}
    assert chosen["model.spec"] == spec
    assert chosen["batch_size"] % jax.device_count() == 0


def test_uneven_classes_are_weighted_by_the_root_of_their_share(folder):
    found = look(folder)
    found.sources["train"].counts = (9, 18)
    assert "loss.class_weights" not in {key for key, *_ in choose(found, None)}
    found.sources["train"].counts = (10, 90)
    weights = {key: value for key, value, _ in choose(found, None)}["loss.class_weights"]
    assert weights[0] == pytest.approx(3 * weights[1], rel=1e-3)
    assert 10 * weights[0] + 90 * weights[1] == pytest.approx(100, rel=1e-3)


def test_the_network_is_that_of_the_start(folder, tmp_path):
    network = {"spec": "paddle", "expand": "always", "width": 0.25, "dialect": "torchvision"}
    description = {"model": network | {"num_classes": None}, "classes": [], "resolution": 224}
    (tmp_path / "config.json").write_text(json.dumps(description))
    chosen = {key: value for key, value, _ in choose(look(folder), tmp_path)}
    assert {f"model.{key}": value for key, value in network.items()}.items() <= chosen.items()


@pytest.mark.slow
def test_published_weights_that_are_here_are_the_start(tmp_path, monkeypatch):
    """The best that can be read: its network, dialect and resolution, which --start overrules."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MNV2_MIRROR", str(tmp_path))
    monkeypatch.setattr(module, "plan", lambda config, *_: configured.append(config) or [])
    for i in range(8):
        write(tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png", i, side=70)
    model = build(dialect="torchvision", width=0.1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)

    def chosen(*overrides, start=None):
        configured.clear(), told.clear()
        kept = {"overrides": overrides, "start": start, "dry_run": True, "say": told.append}
        assert fit(tmp_path / "pictures", tmp_path / "run", **kept) is None
        return configured[0]

    configured, told = [], []
    assert chosen().init.model is None
    assert "mnv2 import torchvision" in " ".join(told)
    export_weights(model, zeros, "torchvision", tmp_path / "here.safetensors")
    for name, file in (("v1", "here.safetensors"), ("v2", "damaged.safetensors")):
        row = published.PUBLISHED["torchvision"][name]._replace(sha256="", file=file)
        monkeypatch.setitem(published.PUBLISHED["torchvision"], name, row)
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    config = chosen()
    assert (config.model.width, config.model.spec, config.data.resolution) == (0.1, "imagenet", 224)
    assert config.init.model and config.model.dialect == "torchvision"
    assert any(line.startswith("left out: ") for line in told)
    assert chosen("model.width=0.5").init.model is None
    assert chosen(start="scratch").init.model is None
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_becomes_a_model_and_a_report(folder, tmp_path, monkeypatch):
    lines, out = [], tmp_path / "run"
    settings = ("model.spec=fitted", "steps=2", "eval_every_epochs=1.0", "parallel.devices=1")
    more = {"overrides": settings, "say": lines.append, "quiet": True}
    with monkeypatch.context() as quick:
        quick.setattr(module, "plan", lambda *_: [])
        assert fit(folder, out, dry_run=True, **more) is None and not out.exists()
    model = fit(folder, out, **more)
    text = "\n".join(lines)
    assert model is not None and model.classes == ("dark", "light")
    assert "cut.png" in text and "empty.jpg" in text and "mnv2 predict --model" in text
    page = (out / "report.html").read_text()
    assert "of 9 images" in page and "fifty points" in page and "a twentieth" in text
    kept = next((out / "default" / "seed_0").glob("at_*"))
    assert load_model(kept).resolution == model.resolution
    with pytest.raises(UsageError, match="another configuration"):
        fit(folder, out, overrides=(*settings, "loss.label_smoothing=0.1"), say=lines.append)
