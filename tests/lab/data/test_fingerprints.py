"""Whether data are still those that a training began with."""

import shutil
from pathlib import Path

import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.files import write_file, write_json
from mnv2_jax.lab.data import fingerprint, fingerprints, open_source
from mnv2_jax.lab.train import sweep
from mnv2_jax.lab.train.config import plain
from mnv2_jax.lab.train.record import CONFIG, DATA, sealed
from tests.lab.data.pictures import encoded, photo, write_mnist
from tests.lab.train.setting import tiny


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, kind, seed in [(s, k, i) for s in ("train", "val") for k in "ab" for i in range(3)]:
        place = tmp_path / "set" / split / kind
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed}.png").write_bytes(encoded(photo(seed=seed), "PNG"))
    return tmp_path / "set"


def made_of(root: Path, workdir: Path) -> dict:
    names = [("folder", split, str(root)) for split in ("train", "val")]
    return sweep.check_data(workdir, tiny(), {name: open_source(*name) for name in names})


def kept(root: Path) -> Path:
    """The folder of a training on these images."""
    workdir = root.parent / "run"
    workdir.mkdir()
    write_json(workdir / CONFIG, sealed(plain(tiny())))
    run = sweep.check_owner(workdir, tiny()).run
    write_json(workdir / DATA, sealed(made_of(root, workdir), {"run": run}))
    assert made_of(root, workdir)
    return workdir


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: (t / "a/1.png").unlink(), r"a/1.png: \d+ -> \(absent\), class a: 3 -> 2"),
        (lambda t: shutil.copy(t / "a/1.png", t / "a/3.png"), r"a/3.png: \(absent\) -> \d+"),
        (lambda t: write_file(t / "b/0.png", b"x"), r"began with \(b/0.png: \d+ -> 1\)"),
        (lambda t: (t / "a/1.png").rename(t / "b/9.png"), "class a: 3 -> 2, class b: 3 -> 4"),
        (lambda t: (t / "a/1.png").rename(t / "a/é.png"), "'?a/é.png: "),
        (lambda t: shutil.copytree(t / "a", t / "c"), r"class c: \(absent\) -> 3"),
        (lambda t: shutil.copy(t.parent / "train/a/1.png", t.parent / "val/a/7.png"), "val of"),
    ],
)
def test_other_images_are_refused_with_what_changed(root: Path, change, told: str):
    workdir = kept(root)
    change(root / "train")
    with pytest.raises(UsageError, match=told) as caught:
        made_of(root, workdir)
    assert str(caught.value).endswith(f"remove {workdir / DATA}.") and "\n" not in str(caught.value)
    (workdir / DATA).unlink()
    assert made_of(root, workdir)


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"a": 1}', "\0" * 99, '{"of": 3, "seal": 4}'])
def test_what_is_kept_of_the_data_may_be_damaged(root: Path, damage: str):
    workdir = kept(root)
    write_file(workdir / DATA, damage)
    with pytest.raises(UsageError, match=r"data.json .*Remove it to go on") as caught:
        made_of(root, workdir)
    assert "\n" not in str(caught.value)


def test_what_is_kept_of_another_run_is_refused(root: Path):
    workdir = kept(root)
    write_json(workdir / DATA, sealed(made_of(root, workdir), {"run": "another"}))
    with pytest.raises(UsageError, match="belongs to run 'another'"):
        made_of(root, workdir)


def test_of_many_files_each_folder_is_told(root: Path, monkeypatch):
    monkeypatch.setattr(fingerprints, "MAX_FILES", 5)
    before = fingerprint(open_source("folder", "train", str(root)))
    write_file(root / "train/a/1.png", b"x")
    after = fingerprint(open_source("folder", "train", str(root)))
    assert {key for key in before if before[key] != after[key]} == {"a/"}
    assert before["a/"].startswith("3 files, ")


def test_arrays_are_told_by_their_contents(tmp_path: Path):
    write_mnist(tmp_path)
    test, again, train = (
        fingerprint(open_source("mnist", split, str(tmp_path)))
        for split in ("test", "test", "train")
    )
    assert test == again and test["records"] == 5
    assert test["contents"] != train["contents"]
