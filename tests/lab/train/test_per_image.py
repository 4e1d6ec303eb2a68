"""Which test images a sweep's seeds get right: against each model's own answers, and kept once."""

import json
import shutil

import numpy as np
import pytest

from mnv2_jax import normalize
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.model_folder import load_model
from mnv2_jax.lab.train import per_image, sweep
from mnv2_jax.lab.train.decision import over_images
from mnv2_jax.lab.train.record import Identity, read_right
from mnv2_jax.lab.verify import verify
from tests.lab.train.setting import tiny


def train(workdir, **changes):
    config = tiny(steps=6, seeds=(0, 1, 2), log_every=6, eval_every_epochs=0.0, **changes)
    return sweep.run_sweep(config, workdir, ("c",), True).read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "run"
    return folder, train(folder)


@pytest.mark.slow
def test_they_are_the_images_that_each_model_gets_right(finished):
    folder, report = finished
    images, labels = open_source("digits", "test").arrays().values()
    right = {}
    for place in sorted(folder.glob("*/seed_*")):
        model, result = load_model(place), json.loads((place / "result.json").read_text())
        answers = model.model.apply(model.variables, normalize(images, model.model.dialect))
        kept = read_right(place, result)
        np.testing.assert_array_equal(kept.images, answers.argmax(1) == labels)
        assert kept[:2] == ("eval_ema", "test of digits")
        assert kept.images.mean() == pytest.approx(result["metrics"]["eval_ema/accuracy"])
        assert (place / "right.json").stat().st_size < 1000
        right.setdefault(place.parent.name, []).append(kept.images.astype(int))
    (found,) = json.loads((folder / "results.json").read_text())["over_images"]
    expected = over_images(np.subtract(right["linear"], right["relu6"]))
    assert found == {"better": "linear", "worse": "relu6", "images": 360} | expected._asdict()
    shown = "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*(100 * value for value in expected))
    assert f"- *linear* above *relu6* over 3 seeds and 360 test images: {shown}\n" in report


@pytest.mark.nightly
@pytest.mark.slow
def test_finished_seeds_get_what_they_lack_and_are_trained_no_more(finished, tmp_path, monkeypatch):
    """Also where that was interrupted; the report is the same."""
    folder, report = finished
    again = shutil.copytree(folder, tmp_path / "run")
    monkeypatch.setattr(sweep, "fit", lambda *_, **__: pytest.fail("it trained"))
    kept = {path: path.read_bytes() for path in again.rglob("*") if path.is_file()}
    missing = again / "linear" / "seed_1" / "right.json"
    damaged = again / "relu6" / "seed_2" / "right.json"
    missing.unlink()
    damaged.write_text(damaged.read_text().replace("eval_ema", "eval"))
    (problem,) = [found for found in verify(again) if found.problem]
    assert problem.path == "relu6/seed_2/right.json" and "its seal does not fit" in problem.problem
    with monkeypatch.context() as patch:
        patch.setattr(per_image, "load_model", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(again)
    assert train(again) == report
    for path in (missing, damaged, again / "results.json"):
        assert path.read_bytes() == kept[path]
    assert not [found for found in verify(again) if found.problem]


def test_images_that_every_seed_splits_anew_and_answers_that_are_places_are_left_out(tmp_path):
    configs = {"anew": tiny(data={"resplit": True}), "places": tiny(task="segment")}
    per_image.keep_right(tmp_path, configs, (0, 1), Identity(), {}, pytest.fail)
