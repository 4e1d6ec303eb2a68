"""A fingerprint changes with what determines a result, and with nothing else."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from mnv2_jax.lab.data import ArraySource, image, open_source
from mnv2_jax.lab.tasks.augment import random_shift
from mnv2_jax.lab.train import provenance, run, sweep
from tests.lab.train.setting import tiny
from tests.processes import ROOT, environment

STEP = '''
@jax.jit
def scale(images, by):
    return images * by

def step(images):
    """Scales images."""
    return {"scaled": scale(images, 3.0)}
'''


def hashed(source, file="first.py", name="step"):
    names = {"jax": jax}
    exec(compile(source, file, "exec"), names)
    images = jax.ShapeDtypeStruct((2, 3), np.float32)
    return provenance.of_program(jax.jit(names[name]).lower(images).as_text())


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Scales images.", "Multiplies images\n    by three.", True),
        ("\n\ndef step", "\n# A comment.\n\n\n\ndef step", True),
        ("scale(", "multiply(", True),
        ('"scaled"', '"multiplied"', True),
        ("images * by", "images + by", False),
        ("3.0", "3.0001", False),
    ],
)
def test_a_program_is_what_it_computes_not_how_it_is_written(old, new, same):
    text = STEP.replace(old, new)
    assert text != STEP
    assert (hashed(text, "second.py") == hashed(STEP)) == same


def test_calls_of_other_functions_are_other_programs():
    """Functions are numbered, not forgotten: two that change places are seen."""
    text = "func.func private @f() {{ 1 }} func.func private @g() {{ 2 }} call @{} call @{}"
    assert provenance.of_program(text.format("f", "g")) != provenance.of_program(
        text.format("g", "f")
    )
    # What a custom call names is code, which the text does not hold.
    calls = [f"stablehlo.custom_call @{name}()" for name in ("Eigh", "Qr")]
    assert len(set(map(provenance.of_program, calls))) == 2


@pytest.fixture(scope="module")
def digits():
    """A few of them, so that little is read."""
    few = {}
    for split in ("train", "test"):
        arrays = open_source("digits", split).arrays()
        images, labels = arrays["image"][:40], arrays["label"][:40]
        few["digits", split, None] = ArraySource(images, labels, tuple("0123456789"))
    return few


def of(config, sources, seeds_at_once=1):
    """The fingerprint of the linear variant."""
    variant = sweep.variant_config(config, "linear")
    built = run.make_run(variant, seeds_at_once, sources)
    return provenance.of_run(built, variant, provenance.of_sources(sources))["fingerprint"]


def fingerprint(sources, **changes):
    return of(tiny(parallel={"devices": 1}, **changes), sources)


@pytest.fixture(scope="module")
def usual(digits):
    return fingerprint(digits)


def parts_that_differ(one, other):
    return {part for part in one if one[part] != other[part]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"name": "other", "title": "Other", "log_every": 7, "checkpoint_minutes": 3.0}, ()),
        ({"seeds": (5, 6, 7)}, ()),
        ({"optimizer": {"learning_rate": 0.2}}, ("configuration", "program")),
        ({"model": {"width": 2.0}}, ("configuration", "program")),
        ({"ema_decay": 0.8}, ("configuration", "program")),
        ({"batch_size": 8}, ("configuration", "data", "program")),
        ({"data": {"train": {"pad": 2}}}, ("configuration", "program")),
        ({"data": {"eval": {"crop": "center", "fraction": 0.5}}}, ("configuration", "data")),
    ],
    ids=str,
)
def test_a_change_of_the_configuration_shows_where_it_acts(digits, usual, changes, parts):
    assert parts_that_differ(fingerprint(digits, **changes), usual) == set(parts)


def changed_image(sources):
    """The same sets, but for one pixel of the last training image."""
    key = "digits", "train", None
    arrays = {name: array.copy() for name, array in sources[key].arrays().items()}
    arrays["image"][-1, 0, 0] += 1
    source = ArraySource(arrays["image"], arrays["label"], sources[key].classes)
    return sources | {key: source}


@pytest.mark.slow
def test_a_change_of_an_image_or_of_code_shows_under_an_equal_configuration(
    digits, usual, monkeypatch
):
    assert parts_that_differ(fingerprint(changed_image(digits)), usual) == {"data"}
    with monkeypatch.context() as patch:
        patch.setattr(run, "random_shift", lambda pad: random_shift(pad + 1))
        assert parts_that_differ(fingerprint(digits), usual) == {"program"}
    with monkeypatch.context() as patch:
        patch.setattr(run, "batch_ids", lambda n, size, *_: np.arange(size) % n)
        assert parts_that_differ(fingerprint(digits), usual) == {"data"}
    host = {"data": {"on_device": False, "train": {"flip": 0.5}}}
    streamed = fingerprint(digits, **host)
    monkeypatch.setattr(image, "flip", np.flipud)
    assert parts_that_differ(fingerprint(digits, **host), streamed) == {"data"}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["shard_map", "pmap"])
def test_every_launcher_has_a_program_of_its_own(digits, usual, launcher):
    config = tiny(parallel={"devices": 1, "launcher": launcher})
    assert parts_that_differ(of(config, digits), usual) == {"configuration", "program"}


@pytest.mark.slow
def test_seeds_at_once_are_another_program_of_the_same_images(digits, usual):
    assert parts_that_differ(of(tiny(parallel={"devices": 1}), digits, 2), usual) == {
        "data", "program",
    }  # fmt: skip


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.multiprocess
def test_another_process_comes_to_the_same_fingerprint(tmp_path):
    """Whatever the seed of Python's hashes, the folder, and what was traced before."""
    script = (
        "from tests.lab.train.test_provenance import fingerprint\n"
        "for width in {}:\n print(fingerprint({{}}, model={{'width': width}}))"
    )
    found = []
    for seed, widths, folder in (("0", [1.0], tmp_path), ("7", [2.0, 1.0], ROOT)):
        env, program = environment(tmp_path) | {"PYTHONHASHSEED": seed}, script.format(widths)
        command = [sys.executable, "-c", program]
        told = subprocess.check_output(command, text=True, env=env, cwd=folder)
        found.append(told.splitlines()[-1])
    assert found[0] == found[1] and "program" in found[0]


def git(folder, *arguments):
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.check_output(command, text=True).strip()


def test_the_commit_is_told_with_whether_code_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit() == "unknown"  # no checkout
    git(tmp_path, "init", "--quiet")
    assert provenance.commit() == "unknown"  # nothing was committed
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "--message", "A")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "report.md").write_text("no code\n")
    assert provenance.commit() == head
    (tmp_path / "code.py").write_text("2\n")
    assert provenance.commit() == f"{head} with changes"
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "site-packages")
    assert provenance.commit() == "unknown"  # the commit of another project
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() == "unknown"  # no git


def test_the_processor_has_a_name_wherever_it_is_not_told(monkeypatch, tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nmodel\t: 7\n")
    monkeypatch.setattr(provenance, "Path", lambda _: told)
    assert provenance.processor() == "A CPU @ 2 GHz"
    told.write_text("processor\t: 0\nCPU part\t: 0xd0c\n")
    monkeypatch.setattr(provenance.platform, "processor", lambda: "")
    assert provenance.processor() == "unknown"
    told.unlink()
    monkeypatch.setattr(provenance.platform, "processor", lambda: "arm")
    assert provenance.processor() == "arm"
