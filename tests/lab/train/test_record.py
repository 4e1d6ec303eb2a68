"""Whose the files of a run are, and whether they are what was written: found, mended or refused."""

import json
import logging
import os
import shutil

import pytest

from mnv2_jax import UsageError
from mnv2_jax.lab import cli
from mnv2_jax.lab.train import sweep
from mnv2_jax.lab.train.checkpoint import Checkpoints
from mnv2_jax.lab.train.finish import finish
from mnv2_jax.lab.train.lock import Lock
from mnv2_jax.lab.train.record import digest, identity_of, read_config, sealed
from mnv2_jax.lab.verify import verify
from tests.lab.train.fabricated import configuration, fabricate
from tests.lab.train.test_checkpoint import like, state_at

# Orbax leaves the other reads of a step to themselves when one fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("fabricated") / "run")


@pytest.fixture
def light(whole, tmp_path):
    """A copy without checkpoints, to which a verdict takes no time."""
    ignored = shutil.ignore_patterns("checkpoints_*")
    return shutil.copytree(whole, tmp_path / "run", ignore=ignored)


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def problems(folder):
    return {found.path: found.problem for found in verify(folder) if found.problem}


def left(folder, **changes):
    """What a start would train or finish again; nothing is built."""
    with Lock(folder) as lock:
        config = configuration(**changes)
        (waiting,) = sweep._waiting(config, folder, lock)
    found = {name: [] for name in config.sweep.variants}
    for name, seeds in waiting:
        found[name] += seeds
    return found


def flip(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 4
    path.write_bytes(content)


def edit(change):
    """Changes an object of JSON, and leaves its hash as it was."""

    def damage(path):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def lines(change):
    return lambda path: path.write_text("".join(change(path.read_text().splitlines(True))))


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def nested(path):
    path.write_text("[" * 100_000)


WHOLE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": lambda path: path.unlink(),
    "bit": flip,
    "fifo": fifo,
    "folder": lambda path: (path.unlink(), path.mkdir()),
}
JSON = {"deep": nested, "{}": lambda p: p.write_text("{}"), "[]": lambda p: p.write_text("[]")}
RESULT = {
    "digit": edit(lambda r: r["metrics"].update({"eval/accuracy": 0.99})),
    "NaN": edit(lambda r: r["metrics"].update({"eval/accuracy": float("nan")})),
    "no hash of the model": edit(lambda r: r.pop("model_sha256")),
    "no seal": edit(lambda r: r.pop("seal")),
    "no files": edit(lambda r: r.pop("files")),
    "steps": edit(lambda r: r.update(steps=7)),
    "another's seal": edit(lambda r: r.update(seal=digest("x"))),
}
DESCRIPTION = {
    "dialect": edit(lambda d: d["model"].update(dialect="torchvision")),
    "activation": edit(lambda d: d["model"].update(activation="relu")),
    "classes": edit(lambda d: d["classes"].reverse()),
    "resolution": edit(lambda d: d.update(resolution=9)),
}
LOG = {
    "number": lines(lambda rows: [json.dumps(json.loads(rows[0]) | {"loss": 1}), "\n", *rows[1:]]),
    "row": lines(lambda rows: rows[:1] + rows[2:]),
    "eval": lines(lambda rows: [row for row in rows if "eval" not in row]),
    "twice": lines(lambda rows: [*rows, rows[-1]]),
    "order": lines(lambda rows: rows[::-1]),
    "more": lines(lambda rows: [*rows, rows[-1].replace("6", "8")]),
}
SEED = "relu6/seed_1"
DAMAGE = {
    f"{SEED}/result.json": {k: v for k, v in WHOLE.items() if k != "deleted"} | JSON | RESULT,
    f"{SEED}/config.json": WHOLE | JSON | DESCRIPTION,
    f"{SEED}/metrics.jsonl": WHOLE | LOG,
    f"{SEED}/model.safetensors": WHOLE,
    f"{SEED}/README.md": WHOLE,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_to_a_seed_is_found_and_it_is_finished_again(light, tmp_path, caplog, name):
    for how, damage in DAMAGE[name].items():
        folder = shutil.copytree(light, tmp_path / how)
        damage(folder / name)
        assert name in problems(folder), how
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mnv2_jax"):
            assert left(folder) == {"linear": [], "relu6": [1]}, how
        (warning,) = caplog.messages
        assert "it is finished again" in warning and "\n" not in warning, how
        shutil.rmtree(folder)


def test_damage_to_events_is_found(light):
    (events,) = (light / SEED / "tensorboard").iterdir()
    other = next((light / "relu6/seed_0/tensorboard").iterdir())
    shutil.copy(other, events)
    assert list(problems(light)) == [str(events.relative_to(light))]
    events.unlink()
    assert list(problems(light)) == [str(events.relative_to(light))]
    assert left(light) == {"linear": [], "relu6": [1]}


@pytest.mark.parametrize("how", [*WHOLE, *JSON, "key", "no seal"])
def test_a_damaged_configuration_is_found_and_refused_or_written_anew(light, how):
    keys = {
        "key": edit(lambda c: c.update({"batch_size": 8})),
        "no seal": edit(lambda c: c.pop("seal")),
    }
    (WHOLE | JSON | keys)[how](light / "config.json")
    if how == "deleted":  # the identities in all other files stand for it
        with pytest.raises(UsageError, match="not the folder of a training"):
            problems(light)
        assert left(light) == {"linear": [], "relu6": []}
        return
    assert problems(light)
    with pytest.raises(UsageError, match=r"config\.json|belongs to run") as error:
        left(light)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["results.json", "report.md", "curves.png"])
def test_a_damaged_report_is_found(light, name):
    flip(light / name)
    assert list(problems(light)) == [name]
    (light / name).write_bytes(b"")
    assert list(problems(light)) == [name]


def exchange(first, second):
    first.rename(first.with_name("aside"))
    second.rename(first)
    first.with_name("aside").rename(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("linear/seed_0", "linear/seed_1"),
        ("linear/seed_0", "relu6/seed_0"),
        ("linear", "relu6"),
        ("linear/seed_0/result.json", "relu6/seed_0/result.json"),
        ("linear/seed_0/result.json", "linear/seed_1/result.json"),
    ],
)
def test_results_that_were_exchanged_are_refused(light, first, second):
    exchange(light / first, light / second)
    assert {"result.json"} <= {path.rpartition("/")[2] for path in problems(light)}
    with pytest.raises(UsageError, match=r"belongs to (seeds|variant) ") as error:
        left(light)
    assert "\n" not in str(error.value) and "Put back" in str(error.value)


@pytest.mark.parametrize("name", ["metrics.jsonl", "model.safetensors", "config.json"])
def test_files_that_were_exchanged_between_seeds_are_found(light, name):
    exchange(light / f"linear/seed_0/{name}", light / f"linear/seed_1/{name}")
    assert set(problems(light)) == {f"linear/seed_{seed}/{name}" for seed in (0, 1)}
    assert left(light) == {"linear": [0, 1], "relu6": []}


# Of another seed, of another variant, of another step; the second half at night.
CHECKPOINTS = [
    ("linear/checkpoints_0", "linear/checkpoints_1"),
    ("linear/checkpoints_0/6", "relu6/checkpoints_0/6"),
    ("linear/checkpoints_0/4", "linear/checkpoints_0/6"),
    *(
        pytest.param(*pair, marks=pytest.mark.nightly)
        for pair in (
            ("linear/checkpoints_0", "relu6/checkpoints_0"),
            ("linear/checkpoints_0/6", "linear/checkpoints_1/6"),
            ("linear/checkpoints_0/6/record", "linear/checkpoints_1/6/record"),
            ("linear/checkpoints_0/6/state", "linear/checkpoints_1/6/state"),
        )
    ),
]


def restore(folder, variant="linear", seed=0):
    whose = identity_of(read_config(folder))._replace(variant=variant, seeds=(seed,))
    checkpoints = Checkpoints(folder / variant / f"checkpoints_{seed}", 2, whose)
    try:
        return checkpoints.restore(like(state_at(1)))
    finally:
        checkpoints.close()


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), CHECKPOINTS)
def test_checkpoints_that_were_exchanged_are_never_gone_on_from(copy, first, second, caplog):
    """All of them: refused in one line. The newest: the one before, with a warning."""
    exchange(copy / first, copy / second)
    damaged = problems(copy)
    assert damaged and all("checkpoints" in path for path in damaged)
    if first.count("/") == 1 or first.endswith("4"):
        with pytest.raises(UsageError, match=r"belongs to|it is of step") as error:
            restore(copy)
        assert "\n" not in str(error.value)
        return
    with caplog.at_level(logging.WARNING, "mnv2_jax"):
        assert int(restore(copy).state.step) == 4
    assert len(caplog.messages) == 1 and "step 6" in caplog.messages[0]


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_passed_over(copy, tmp_path):
    other = fabricate(tmp_path / "other")
    content = {k: v for k, v in json.loads((other / "config.json").read_text()).items()}
    content |= {"batch_size": 8}
    del content["seal"]
    (other / "config.json").write_text(json.dumps(sealed(content)))
    assert any("belongs to run" in problem for problem in problems(other).values())
    with pytest.raises(UsageError, match="belongs to run"):
        restore(other)
    assert int(restore(copy).state.step) == 6


def test_what_changes_no_step_may_be_changed_and_a_shorter_training_without_results(copy):
    free = {"stop_after_skipped": 7, "checkpoint_minutes": 2.0, "data": {"threads": 1}}
    assert left(copy, **free) == {"linear": [], "relu6": []}
    shorter = configuration()
    shorter.steps = 5
    with pytest.raises(UsageError, match=r"steps: 6 -> 5.*mnv2 finish"), Lock(copy) as lock:
        sweep._waiting(shorter, copy, lock)
    for result in copy.glob("*/seed_*/result.json"):
        result.unlink()
    with Lock(copy) as lock:
        (waiting,) = sweep._waiting(shorter, copy, lock)
        assert [name for name, _ in waiting].count("linear") == 2
        before = identity_of(read_config(copy))
        assert sweep.claim(copy, shorter, lock) == before
    assert read_config(copy)["steps"] == 5
    with pytest.raises(UsageError, match=r"steps: 5 -> 6"):
        left(copy)


@pytest.mark.slow
def test_models_are_made_of_what_is_there(copy, capsys):
    shutil.rmtree(copy / "relu6")
    made = list(finish(copy))
    assert len(made) == 2 and {model["step"] for model in made} == {6}
    assert cli.main(["finish", str(copy), "--best", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["step"] for row in rows} == {4}  # whose metric is 1 / 4
    assert rows[0]["metrics"] == {"eval/accuracy": pytest.approx(1 / (4 + 60))}
    assert rows[0]["model"] == str(copy / "linear/seed_0/at_4")
    assert cli.main(["finish", str(copy), "--at", "5"]) == cli.EXIT_USAGE
    err = capsys.readouterr().err
    assert "of steps 4, 6" in err and len(err.splitlines()) == 1
    for place in copy.glob("*/checkpoints_*"):
        shutil.rmtree(place)
    missing = {f"relu6/seed_{seed}/result.json" for seed in (0, 1)}  # which the report has
    assert problems(copy).keys() == missing
    flip(copy / "linear/seed_0/at_4/model.safetensors", 0.9)
    assert problems(copy).keys() == missing | {"linear/seed_0/at_4/model.safetensors"}
    assert left(copy)["linear"] == []  # the training is as it was


@pytest.mark.slow
def test_a_model_is_made_of_the_checkpoint_before_a_damaged_one(copy, tmp_path, caplog):
    for seed in copy.glob("*/checkpoints_*"):
        shutil.rmtree(seed / "6/state")
    with caplog.at_level(logging.WARNING, "mnv2_jax"):
        assert {model["step"] for model in finish(copy)} == {4}
    assert len(caplog.messages) == 4
    for seed in copy.glob("*/checkpoints_*"):
        shutil.rmtree(seed)
    with pytest.raises(UsageError, match="no checkpoint yet"):
        list(finish(copy))
    with pytest.raises(UsageError, match=r"config\.json cannot be read"):
        list(finish(tmp_path))
