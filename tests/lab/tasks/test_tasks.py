"""The table of tasks: a task that no other module knows is trained, evaluated and used."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mnv2_jax.lab.cli import main
from mnv2_jax.lab.data import eval_transform, open_source, train_transform
from mnv2_jax.lab.model_folder import load_model
from mnv2_jax.lab.predict import evaluate, predict
from mnv2_jax.lab.tasks import TASKS
from mnv2_jax.lab.tasks import task as contract
from mnv2_jax.lab.train.sweep import run_sweep
from mnv2_jax.models.build import build
from tests.lab.train.setting import tiny

# A task: the digit as a number, by least squares.


def _sums(_, outputs, batch):
    error = jnp.where(batch["mask"] > 0, (outputs[:, 0] - batch["label"] / 9) ** 2, 0).sum()
    return {"loss": (error, batch["mask"].sum()), "fit": (-error, batch["mask"].sum())}


def _task(config, model, image_shape, augmentations, teacher):
    del config, augmentations, teacher

    def loss(variables, batch, key):
        images = contract.inputs(model, batch)
        outputs, stats = contract.train_outputs(model, variables, images, batch["mask"], key)
        return _sums(model, outputs, batch), stats

    metrics = contract.metrics_with(model, _sums)
    return contract.Task(contract.init_with(model, image_shape), loss, metrics, monitor="fit")


def _show(trained, answer, pixels, digits):
    del trained, pixels
    value = round(float(answer[0]) * 9, digits)
    return contract.Prediction({"number": value}, text=f"  {value}")


REGRESS = contract.TaskSpec(
    name="regress",
    noun="regressor",
    title="MobileNetV2 as a regressor",
    pipeline="image-feature-extraction",
    unlabeled=lambda height, width: {"label": 0},
    classes=lambda source: tuple(source.classes[:1]),
    build=build,
    train_transform=lambda config, channels: train_transform(
        config.data.resolution, crop="none", flip=0.0, channels=channels
    ),
    eval_transform=lambda size, channels, options: eval_transform(
        size, channels=channels, **options
    ),
    task=_task,
    scores=_sums,
    decode=lambda model, outputs, size: outputs,
    show=_show,
    metrics={"fit": "negative squared error"},
    settings={"digits": 2},
)


@pytest.fixture
def regress(monkeypatch):
    monkeypatch.setitem(TASKS, "regress", REGRESS)


def test_every_task_is_listed_by_its_name():
    assert all(name == spec.name for name, spec in TASKS.items())
    assert {"loss", *TASKS["classify"].metrics} == {"loss", "accuracy"}


@pytest.mark.nightly
@pytest.mark.slow
def test_a_fourth_task_needs_no_other_module(regress, tmp_path, capsys):
    config = tiny("regress", steps=3, seeds=(0,), task="regress")
    config.sweep.variants = {"linear": {}}
    config.sweep.claim = ()
    report = run_sweep(config, tmp_path / "run", ("command",), quiet=True)
    assert "Negative squared error" in report.read_text()
    folder = tmp_path / "run/linear/seed_0"
    result = json.loads((folder / "result.json").read_text())
    model, source = load_model(folder), open_source("digits", "test")
    assert model.task is REGRESS
    kept = result["metrics"]["eval_ema/fit"]
    np.testing.assert_allclose(evaluate(model, source)["fit"], kept, rtol=1e-4)
    (prediction,) = predict(model, source[0]["image"], digits=3)
    path = tmp_path / "digit.png"
    Image.fromarray(source[0]["image"][..., 0]).save(path)
    assert main(["evaluate", "--model", str(folder), "--data", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fit"] == pytest.approx(kept, rel=1e-4)
    assert main(["predict", "--model", str(folder), str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["number"]
    assert printed == pytest.approx(prediction.values["number"], abs=0.01)
