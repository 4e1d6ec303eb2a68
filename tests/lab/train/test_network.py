"""Detectors and segmenters in the same loop: resumed bits, launchers, a model to start from."""

import json

import jax
import numpy as np
import pytest

from mnv2_jax import UsageError, build
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.data.scenes import Scenes
from mnv2_jax.lab.model_folder import load_model, save_model
from mnv2_jax.lab.tasks import make_model
from mnv2_jax.lab.train import loop
from mnv2_jax.lab.train import run as run_module
from mnv2_jax.lab.train.check import check
from mnv2_jax.lab.train.defaults import base
from mnv2_jax.lab.train.run import make_run
from mnv2_jax.lab.train.sweep import run_sweep
from mnv2_jax.models.spec import SPECS, Row, Spec

SPEC = Spec(stem=8, stem_stride=2, rows=(Row(2, 8, 1, 2),), last=16)
BOTH = [pytest.param("detect", marks=pytest.mark.nightly), "segment"]


@pytest.fixture(autouse=True)
def small_scenes(monkeypatch):
    """Twelve scenes to train on, and five to evaluate, which two batches of four hold."""
    items = open_source("fashion_mnist_small", "train")

    def opened(name, split, root):
        if name != "scenes":
            return open_source(name, split, root)
        return Scenes(items, 12 if split == "train" else 5, (32, 32), 2, seed=len(split))

    monkeypatch.setattr(run_module, "open_source", opened)


def setting(task, devices=1, launcher="jit", **changes):
    SPECS["one_strided"] = SPEC
    c = base()
    c.name, c.task = task, task
    c.data.name, c.data.resolution, c.data.threads = "scenes", 32, 1
    c.data.train.crop, c.data.eval.crop = {"detect": "ssd", "segment": "scale"}[task], "none"
    c.data.train.area = (0.3, 1.0)
    c.detect.max_objects = 2
    c.model.spec, c.model.dropout, c.model.bn_decay = "one_strided", 0.0, 0.9
    c.segment.channels = 8
    if task == "segment":
        c.model.output_stride = 4
    c.batch_size, c.eval_batch_size, c.steps = 4, 4, 4
    c.optimizer.name, c.optimizer.schedule, c.optimizer.learning_rate = "sgd", "constant", 0.01
    c.ema_decay, c.log_every, c.eval_every_epochs = 0.9, 2, 2 / 3
    c.parallel.devices, c.parallel.launcher = devices, launcher
    c.lock()
    c.update(changes)
    return c


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("task", BOTH)
def test_a_killed_run_goes_on_bit_for_bit(task, tmp_path, monkeypatch):
    def outcome(workdir):
        place = workdir / "default/seed_0"
        result = json.loads((place / "result.json").read_text())
        rows = (place / "metrics.jsonl").read_text()
        return (place / "model.safetensors").read_bytes(), rows, result["metrics"]

    run_sweep(setting(task), tmp_path / "whole", ("c",), quiet=True)
    write = loop.RunLog.write

    def die(self, step, split, values):
        write(self, step, split, values)
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.RunLog, "write", die)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(setting(task), tmp_path / "killed", ("c",), quiet=True)
    assert not (tmp_path / "killed/default/seed_0/result.json").exists()
    run_sweep(setting(task), tmp_path / "killed", ("c",), quiet=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    metrics = outcome(tmp_path / "whole")[2]
    assert metrics.keys() >= {
        f"{split}/{name}"
        for split in ("eval", "eval_ema")
        for name in ({"map", "map50"} if task == "detect" else {"miou", "accuracy"})
    }
    saved = load_model(tmp_path / "whole/default/seed_0")
    assert saved.task.name == task and len(saved.classes) == (10 if task == "detect" else 11)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("task", [pytest.param("detect", marks=pytest.mark.nightly), "segment"])
def test_the_launchers_agree(task):
    """Also where a device has no object to match: losses are sums over all devices."""
    found = {}
    for launcher in ("jit", "shard_map", "pmap"):
        run = make_run(setting(task, 2, launcher), 1)
        keys, rows = run.keys((0,)), run.rows((0,), 0)
        state = run.fresh(keys)
        resident = jax.device_put(run.train.resident(), run.plan.everywhere)
        # Later, rounding may change which of two anchors of nearly one loss is the hardest.
        for _ in range(2):
            state, metrics = run.step(state, resident, next(rows), keys)
        found[launcher] = jax.device_get((state.params, state.batch_stats, metrics["sums"]))
    for launcher in ("shard_map", "pmap"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
            found[launcher],
            found["jit"],
        )


@pytest.mark.slow
def test_a_classifier_becomes_the_backbone(tmp_path, randomize):
    """Its classes and what the segmenter leaves out stay behind; the head is fresh."""
    config = setting("segment")
    options = {"spec": "one_strided", "num_classes": 6}
    classifier = randomize(build(**options), (1, 32, 32, 3))
    description = {"model": options, "classes": list("abcdef"), "resolution": 32}
    save_model(tmp_path, classifier, description)
    config.init.model = str(tmp_path)
    run, fresh = make_run(config, 1), make_run(setting("segment"), 1)
    key = run.keys((0,))
    found, plain = (jax.device_get(r.fresh(key).variables) for r in (run, fresh))
    for kind in ("params", "batch_stats"):
        backbone = found[kind].pop("backbone")
        assert backbone.keys() == {"stem", "block_0"}
        for name, leaves in backbone.items():
            jax.tree.map(np.testing.assert_array_equal, leaves, classifier[kind][name])
        plain[kind].pop("backbone")
        jax.tree.map(np.testing.assert_array_equal, found[kind], plain[kind])


@pytest.mark.slow
def test_a_classifier_of_another_width_is_refused(tmp_path, randomize):
    options = {"spec": "one_strided", "num_classes": 6, "width": 3.0}
    variables = randomize(build(**options), (1, 32, 32, 3))
    description = {"model": options, "classes": list("abcdef"), "resolution": 32}
    save_model(tmp_path, variables, description)
    config = setting("segment")
    config.init.model = str(tmp_path)
    with pytest.raises(UsageError, match=r"- saved, \+ configured") as error:
        make_run(config, 1)
    assert "\n" not in str(error.value)


def changed(config, changes):
    config.update(changes)
    return config


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("detect", {"data": {"name": "digits"}}, "task detect needs 'boxes' with 2 axes"),
        ("segment", {"data": {"name": "digits"}}, "needs 'label' with 2 axes"),
        (
            "segment",
            {"task": "classify", "data": {"train": {"crop": "none"}}},
            "task classify needs 'label' with 0 axes",
        ),
        ("segment", {"task": "detecting"}, "did you mean 'detect'"),
        ("detect", {"detect": {"heads": "ssdlight"}}, "did you mean 'ssdlite'"),
        ("detect", {"data": {"train": {"erasing": 0.5}}}, "data.train.erasing is for classif"),
        ("segment", {"loss": {"mixup": 0.2}}, "loss.mixup is for classification"),
        ("segment", {"segment": {"scale": (2.0, 1.0)}}, "must be two numbers that rise"),
        ("segment", {"data": {"train": {"crop": "ssd"}}}, "The choices are none, scale"),
    ],
)
def test_what_a_task_cannot_do_is_one_line(task, changes, message):
    with pytest.raises(UsageError) as error:
        make_run(changed(setting(task), changes), 1)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_heads_are_what_the_configuration_says():
    config = setting("segment", segment={"aspp": True, "atrous": "separable", "channels": 12})
    with pytest.raises(UsageError, match="aspp with output_stride 4"):
        make_model(config, 3, 3)
    config.model.output_stride = 8
    with pytest.raises(UsageError, match="output_stride is 8"):
        make_model(config, 3, 3)
    config.model.spec = "imagenet"
    model = make_model(config, 3, 3)
    assert (model.rates, model.channels, model.num_classes) == ((12, 24, 36), 12, 3)
    detector = make_model(setting("detect", detect={"heads": "ssd"}), 5, 3)
    assert detector.heads.extra.__name__ == "full_extra" and detector.num_classes == 5
    check(setting("detect"))
