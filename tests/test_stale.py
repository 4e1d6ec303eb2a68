"""Results in this repository are those of its code, as far as they say whose they are."""

import json
import subprocess
import sys

import pytest

from mnv2_jax.lab.train import report
from mnv2_jax.lab.train.config import load_config
from mnv2_jax.lab.train.provenance import of_configuration
from mnv2_jax.lab.train.sweep import check_variants
from tests import stale
from tests.processes import MAIN, ROOT, environment

CONFIG = """
from tests.lab.train.setting import tiny


def get_config():
    config = tiny(steps=1)
    config.ema_decay = 0.9
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A result of two variants, trained on two devices."""
    place = tmp_path_factory.mktemp("stale")
    (place / "own.py").write_text(CONFIG)
    command = [*MAIN, "--config", str(place / "own.py"), "--workdir", str(place / "results/own")]
    env = environment(place, devices=2)
    subprocess.run([*command, "--quiet"], env=env, cwd=ROOT, check=True, capture_output=True)
    return place


def told(folder, capsys):
    status = stale.main([str(folder / "results")])
    return status, capsys.readouterr().out


@pytest.mark.nightly
@pytest.mark.multiprocess
def test_a_result_is_current_until_what_made_it_changes(folder, capsys):
    config, path = folder / "own.py", folder / "results/own/results.json"
    config.write_text("# A comment.\n" + CONFIG)
    assert told(folder, capsys) == (0, "own: current\n")
    config.write_text(CONFIG.replace("0.9", "0.8"))
    status, text = told(folder, capsys)
    assert status == 1
    what = (
        "own: made by other code (configuration of linear, relu6; program of linear, relu6): make"
    )
    assert text.startswith(f"{what} it again with `python main.py --config {config}")
    config.write_text(CONFIG)
    results = json.loads(path.read_text())
    older = json.loads(path.read_text())
    for origin in (origin for own in older["origins"].values() for origin in own):
        origin["versions"]["jaxlib"] = "0.0.1"
        origin["fingerprint"]["program"] = "0" * 16
    path.write_text(json.dumps(older))
    status, text = told(folder, capsys)
    assert status == 0 and text.startswith("own: current; made with jaxlib 0.0.1, so programs are")
    path.write_text(json.dumps({k: v for k, v in results.items() if k != "origins"}))
    assert told(folder, capsys) == (0, "own: no fingerprint recorded\n")


@pytest.mark.nightly
@pytest.mark.multiprocess
def test_what_needs_data_that_are_not_here_is_compared_by_its_configuration(tmp_path, capsys):
    data = {"name": "fashion_mnist", "root": str(tmp_path)}
    (tmp_path / "own.py").write_text(CONFIG.replace("steps=1", f"data={data}"))
    variants = check_variants(load_config(str(tmp_path / "own.py")))
    versions, path = report.environment()["versions"], tmp_path / "results/own/results.json"
    results = {"command": f"python main.py --config {tmp_path}/own.py", "origins": {}}
    for name, config in variants.items():
        parts = {"configuration": of_configuration(config), "data": "", "program": ""}
        origin = {"device": "1 × cpu", "seeds_at_once": 1, "versions": versions}
        results["origins"][name] = [origin | {"fingerprint": parts}]
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(results))
    status, text = told(tmp_path, capsys)
    assert status == 0
    assert text.startswith("own: current; data and programs are not checked: fashion_mnist: train")
    results["origins"]["relu6"][0]["fingerprint"]["configuration"] = "other"
    path.write_text(json.dumps(results))
    status, text = told(tmp_path, capsys)
    assert status == 1 and text.startswith("own: made by other code (configuration of relu6); data")


@pytest.mark.nightly
@pytest.mark.multiprocess
def test_no_result_of_this_repository_was_made_by_other_code():
    command = [sys.executable, "-m", "tests.stale"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert len(done.stdout.splitlines()) == len(list(ROOT.glob("results/*/results.json")))
