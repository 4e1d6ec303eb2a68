"""The experiments of docs/how-to/ablation.md, and the one here that has a block of its own, as a
reader runs them, from training to export.

What every layer of such a block computes is tested in tests/models/test_block.py, and what each
format holds of it in tests/export; here the same file goes through every door.
"""

import json
import re
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mnv2_jax.lab.cli import main
from mnv2_jax.lab.train.config import load_config
from mnv2_jax.lab.train.loop import Interrupted
from mnv2_jax.lab.train.sweep import run_sweep
from mnv2_jax.models import build
from tests.lab.train.setting import tiny
from tests.lab.train.test_sweep import interrupt_at
from tests.test_docs import ROOT, blocks

pytestmark = pytest.mark.slow
FILES = {
    re.search(r'c\.name, c\.title = "(\w+)"', text)[1]: text
    for text in blocks(ROOT / "docs/how-to/ablation.md", "python")
    if "def get_config" in text
}
OURS = "ablate_sandglass"
VARIANTS = {
    "own_five": "five", "own_hard_swish": "hard_swish", "own_excited": "excited",
    "own_linear_expand": "linear", "own_four": "four", OURS: "sandglass",
}  # fmt: skip
PACKAGES = {"stablehlo": "jax", "onnx": "onnxruntime", "litert": "ai_edge_litert"}
SMALL = (
    "steps=4", "batch_size=16", "eval_batch_size=360", "eval_every_epochs=100.0", "log_every=1",
    "sweep.seeds=(0,)", "sweep.looks=()", "parallel.devices=1",
    "optimizer.warmup_epochs=0.0",
)  # fmt: skip


def test_the_page_has_the_experiments_and_each_is_short():
    assert FILES.keys() == VARIANTS.keys() - {OURS}
    assert all(text.count("\n") <= 50 for text in FILES.values())


BY_DAY = ("own_excited",)


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.nightly] * (n not in BY_DAY)) for n in VARIANTS],
)
def trained(request, tmp_path_factory):
    """(the file, the folder of its model): one variant, trained for four steps in one go."""
    tiny()  # names the small network
    place = tmp_path_factory.mktemp(request.param)
    file = place / f"{request.param}.py"
    own = ROOT / f"experiments/{request.param}.py"
    file.write_text(FILES.get(request.param) or own.read_text())
    with only_the_paper_s_parts():
        train(file, place / "run")
    return file, place / "run" / VARIANTS[request.param] / "seed_0"


@contextmanager
def only_the_paper_s_parts():
    """What a new process knows; names that a file adds do not outlive it."""
    with pytest.MonkeyPatch.context() as patch:
        parts = {kind: dict(table) for kind, table in build.PARTS.items()}
        patch.setattr(build, "PARTS", parts)
        yield


def run(capsys, verb, trained, *words):
    """Runs a verb on the model, which is given the file of its parts; returns what it printed."""
    file, folder = trained
    with only_the_paper_s_parts():
        assert main([verb, "--model", str(folder), "--code", str(file), *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def train(file, workdir):
    config, variant = load_config(str(file), SMALL), VARIANTS[file.stem]
    with config.unlocked():
        config.model.spec = "one_block"
        for name in set(config.sweep.variants) - {variant}:
            del config.sweep.variants[name]
        config.sweep.reference, config.sweep.claim = variant, ()
        for key in {"spec", "width"} & set(model := config.sweep.variants[variant].model):
            del model[key]
    run_sweep(config, workdir, ("python", "main.py"), quiet=True)


def test_every_layer_trains(trained):
    stats = load_file(trained[1] / "model.safetensors")
    layers = {name: leaf for name, leaf in stats.items() if name.startswith("batch_stats/")}
    assert len(layers) >= 2 * 4
    for name, leaf in layers.items():
        assert (leaf != (0 if name.endswith("/mean") else 1)).any(), name


def one_by_day(day):
    """`trained`, of one variant by day and of the others at night."""
    marks = {name: [pytest.mark.nightly] * (name != day) for name in VARIANTS}
    variants = [pytest.param(name, marks=mark) for name, mark in marks.items()]
    return pytest.mark.parametrize("trained", variants, indirect=True)


@one_by_day("own_five")
def test_a_stopped_run_goes_on(trained, tmp_path, monkeypatch):
    file, folder = trained
    with only_the_paper_s_parts():
        with monkeypatch.context() as patch:
            interrupt_at(patch, 2, signal.SIGTERM)
            with pytest.raises(Interrupted):
                train(file, tmp_path)
        train(file, tmp_path)
    again = tmp_path / folder.relative_to(file.parent / "run")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@one_by_day("own_excited")
def test_it_predicts_and_evaluates(trained, tmp_path, capsys):
    picture = tmp_path / "digit.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(picture)
    assert "digit.png" in json.dumps(run(capsys, "predict", trained, str(picture)))
    scores = run(capsys, "evaluate", trained, "--data", "digits")
    result = json.loads((trained[1] / "result.json").read_text())
    accuracy = scores.get("scores", scores)["accuracy"]
    assert accuracy == pytest.approx(result["metrics"]["eval/accuracy"], abs=1e-6)


@one_by_day("own_excited")
@pytest.mark.parametrize("to", PACKAGES)
def test_it_is_exported(trained, tmp_path, capsys, to):
    pytest.importorskip(PACKAGES[to])
    report = run(capsys, "export", trained, "--to", to, str(tmp_path / "model"))
    assert max(report["difference"].values()) <= 1e-4 and Path(report["file"]).stat().st_size
