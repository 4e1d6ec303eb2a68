"""Whole sweeps in this process: what is written, what is not repeated, and how a run goes on."""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import threading
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from mnv2_jax import UsageError
from mnv2_jax.lab.data import ArraySource
from mnv2_jax.lab.devices import process
from mnv2_jax.lab.train import loop, provenance, record, report, run, sweep
from mnv2_jax.lab.train.checkpoint import Checkpoints
from mnv2_jax.lab.train.config import flatten
from mnv2_jax.lab.train.log import read_rows
from mnv2_jax.lab.train.run import make_run
from mnv2_jax.lab.train.sweep import run_sweep, seed_groups, variant_config
from mnv2_jax.lab.verify import verify
from tests.lab.train.setting import tiny

COMMAND = ("python", "main.py")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quickly(monkeypatch)


BUILT = {}


def quickly(monkeypatch):
    """Takes one device for steps of a few rows, and builds equal runs once."""
    make_plan, make = run.make_plan, sweep.make_run

    def plan(devices, **others):
        return make_plan(devices=devices or 1, **others)

    def built(config, seeds_at_once, sources):
        # What ends a training is the loop's alone.
        key = str(flatten(config) | {"patience": 0, "time": ""}), seeds_at_once
        BUILT[key] = BUILT.get(key) or make(config, seeds_at_once, sources)
        return BUILT[key]

    monkeypatch.setattr(run, "make_plan", plan)
    monkeypatch.setattr(sweep, "make_run", built)


def one(steps=12, seeds=(0,), **changes):
    """A sweep of one variant."""
    config = tiny(steps=steps, seeds=seeds, **changes)
    with config.unlocked():
        del config.sweep.variants["relu6"]
        config.sweep.claim = ()
    return config


def train(config, workdir, tracker=None):
    return run_sweep(config, workdir, COMMAND, True, tracker)


def outcome(workdir):
    """What two equal trainings have in common: models, log rows, and results but for the time."""
    found = {}
    for place in sorted(workdir.glob("*/seed_*")):
        name = f"{place.parent.name}/{place.name}"
        found[f"{name} model"] = (place / "model.safetensors").read_bytes()
        found[f"{name} rows"] = read_rows(place / "metrics.jsonl")
        result = json.loads((place / "result.json").read_text())
        times = ("seconds", "files", "of", "seal")  # and hashes over these, and over settings
        found[f"{name} result"] = {k: v for k, v in result.items() if k not in times}
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        workdir = tmp_path_factory.mktemp("undisturbed") / "run"
        train(one(), workdir)
    return workdir


@pytest.mark.slow
def test_what_a_sweep_writes(undisturbed):
    seed = undisturbed / "linear" / "seed_0"
    assert sorted(p.name for p in undisturbed.iterdir()) == [
        "config.json", "curves.png", "data.json", "linear", "report.md", "results.json",
    ]  # fmt: skip
    files = {p.name for p in seed.iterdir() if not p.name.startswith("tensorboard")}
    assert files == {
        "README.md",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "result.json",
    }
    rows = read_rows(seed / "metrics.jsonl")
    steps = {split: [r["step"] for r in rows if r["split"] == split] for split in ("train", "eval")}
    assert steps == {"train": [2, 4, 6, 8, 10, 12], "eval": [0, 3, 6, 9, 12]}
    assert [r["step"] for r in rows if r["split"] == "eval_ema"] == steps["eval"]
    train_row = next(r for r in rows if r["split"] == "train")
    assert set(train_row) >= {"loss", "accuracy", "learning_rate", "gradient_norm", "skipped"}
    rates = [r["learning_rate"] for r in rows if r["split"] == "train"]
    expected = [0.05 * (1 + np.cos(np.pi * (step - 1) / 12)) for step in steps["train"]]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    result = json.loads((seed / "result.json").read_text())
    last = [r for r in rows if r["split"] == "eval_ema"][-1]
    assert result["metrics"]["eval_ema/accuracy"] == last["accuracy"]
    report = (undisturbed / "report.md").read_text()
    assert f"{100 * last['accuracy']:.1f}" in report and "averaged weights" in report
    assert not list(undisturbed.rglob("*partial*")) + list(undisturbed.rglob("*tmp*"))


@pytest.mark.slow
def test_the_same_again_is_bit_equal_and_its_training_rows_are_means(
    undisturbed, tmp_path, monkeypatch
):
    """Built anew, and with a row for every step: one row for two steps is the mean of theirs."""
    monkeypatch.setattr(sweep, "make_run", make_run)
    train(one(log_every=1), tmp_path)
    again, before = outcome(tmp_path), outcome(undisturbed)
    name = "linear/seed_0 rows"
    fine, coarse = (
        [r for r in found.pop(name) if r["split"] == "train"] for found in (again, before)
    )
    assert again == before
    for metric in ("loss", "accuracy"):
        means = np.reshape([r[metric] for r in fine], (6, 2)).mean(1)
        np.testing.assert_allclose([r[metric] for r in coarse], means, rtol=1e-6)


def test_a_finished_sweep_is_not_repeated(undisturbed, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.glob("linear/**/*")}
    monkeypatch.setattr(sweep, "make_run", lambda *_: pytest.fail("it was finished"))
    train(one(), undisturbed)
    assert {p: p.stat().st_mtime_ns for p in undisturbed.glob("linear/**/*")} == before


def test_a_finished_sweep_whose_data_are_gone_or_others_is_not_reported(undisturbed, monkeypatch):
    before = (undisturbed / "report.md").stat().st_mtime_ns
    missing = UsageError("data is not there")
    monkeypatch.setattr(run, "open_source", lambda *_: (_ for _ in ()).throw(missing))
    with pytest.raises(UsageError, match="data is not there"):
        train(one(), undisturbed)
    fewer = ArraySource(np.zeros((9, 8, 8, 1), np.uint8), np.zeros(9, int), tuple("0123456789"))
    monkeypatch.setattr(run, "open_source", lambda *_: fewer)
    with pytest.raises(UsageError, match=r"train of digits is not what .* records: 1437 -> 9"):
        train(one(), undisturbed)
    assert (undisturbed / "report.md").stat().st_mtime_ns == before


def interrupt_at(monkeypatch, step, number=signal.SIGTERM, times=1):
    """Sends a signal to this process while a step is logged."""
    update, sent = loop.RunLog.write, []

    def write(self, at, split, values):
        while at >= step and len(sent) < times:
            sent.append(at)
            os.kill(os.getpid(), number)
        update(self, at, split, values)

    monkeypatch.setattr(loop.RunLog, "write", write)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGTERM, 9), (signal.SIGINT, 2), (signal.SIGTERM, 6)],  # at 6 before its evaluation
)
def test_a_signal_saves_and_the_same_command_goes_on(
    undisturbed, tmp_path, monkeypatch, number, step
):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, number)
        with pytest.raises(loop.Interrupted) as raised:
            train(one(), tmp_path)
    assert raised.value.number == number
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert not (tmp_path / "linear/seed_0/result.json").exists()
    (saved,) = (tmp_path / "linear").glob("checkpoints_*")
    assert (saved / str(step)).is_dir()
    seen = []
    step_of = loop.step_of
    monkeypatch.setattr(loop, "step_of", lambda s: seen.append(step_of(s)) or seen[-1])
    train(one(), tmp_path)
    assert seen[0] == step  # nothing lost, nothing done twice
    assert outcome(tmp_path) == outcome(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "together"),
    [
        ("jit", 1),
        pytest.param("shard_map", 1, marks=pytest.mark.nightly),
        pytest.param("jit", 2, marks=pytest.mark.nightly),
    ],
)
def test_several_steps_in_one_call_are_the_same_steps(tmp_path, launcher, together):
    """Also where a call ends early: for a row, an evaluation or a signal, and then goes on."""
    changes = {"sweep": {"at_once": together, "seeds": tuple(range(together))}}
    singly, at_once = (
        one(**changes, parallel={"launcher": launcher, "steps_per_call": most}) for most in (0, 4)
    )
    train(singly, tmp_path / "singly")
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        stopped(patch, 4, at_once, tmp_path / "at_once")
        add = loop.MetricSums.add
        patch.setattr(loop.MetricSums, "add", lambda *given: calls.append(given[2]) or add(*given))
        train(at_once, tmp_path / "at_once")
    assert calls == [2, 2, 1, 1, 2]  # a row ends them every two steps, an evaluation every three
    found, expected = (outcome(tmp_path / place) for place in ("at_once", "singly"))
    for side in (found, expected):
        for seed in range(together):
            del side[f"linear/seed_{seed} result"]["origins"]
    assert found == expected


@pytest.mark.slow
@pytest.mark.nightly
def test_a_trace_of_some_steps_changes_none(undisturbed, tmp_path, monkeypatch):
    traced, trace = [], jax.profiler.trace

    @contextlib.contextmanager
    def counted(place):
        add = loop.MetricSums.add
        with trace(place), monkeypatch.context() as patch:
            patch.setattr(loop.MetricSums, "add", lambda *g: traced.append(g) or add(*g))
            yield

    monkeypatch.setattr(jax.profiler, "trace", counted)
    train(one(profile=3), tmp_path)
    (found,) = tmp_path.glob("linear/profile_0/plugins/profile/*/*.xplane.pb")
    assert found.stat().st_size > 1000 and len(traced) == 3
    assert outcome(tmp_path) == outcome(undisturbed)


@pytest.mark.slow
def test_a_result_names_all_code_that_trained_it(tmp_path, monkeypatch):
    first, second = "a" * 40, "b" * 40 + " with changes"
    monkeypatch.setattr(provenance, "commit", lambda: first)
    stopped(monkeypatch, 4, one(), tmp_path)
    monkeypatch.setattr(provenance, "commit", lambda: second)
    train(one(), tmp_path)
    origins = json.loads((tmp_path / "linear/seed_0/result.json").read_text())["origins"]
    assert [origin["commit"] for origin in origins] == [first, second]
    assert origins[0]["fingerprint"] == origins[1]["fingerprint"]
    assert origins[0]["seeds_at_once"] == 1
    assert origins[0]["versions"]["jaxlib"] == report.environment()["versions"]["jaxlib"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["origins"] == {"linear": origins}
    assert "origins" not in results["runs"]["linear"][0]
    text = (tmp_path / "report.md").read_text()
    assert f"- commit of the code: {first}; {second}\n" in text
    assert f"- processor: {origins[0]['processor']}\n" in text
    assert re.search("^- fingerprints: linear [0-9a-f]{16}$", text, re.MULTILINE)
    # Results of earlier releases have none of it.
    assert "fingerprint" not in report.report_text(
        {k: v for k, v in results.items() if k != "origins"}
    )


def rows_until(workdir, step):
    return [r for r in read_rows(workdir / "linear/seed_0/metrics.jsonl") if r["step"] <= step]


def stopped(monkeypatch, step, config, workdir):
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(loop.Interrupted):
            train(config, workdir)


def ended(config, workdir, step, why):
    """Trains to an end before the last step, twice, and looks at what is told of it."""
    train(config, workdir)
    result = json.loads((workdir / "linear/seed_0/result.json").read_text())
    assert (result["steps"], result["ended"]) == (step, why)
    assert (workdir / "linear/seed_0/model.safetensors").is_file()
    text = (workdir / "report.md").read_text()
    assert f"- linear, seed 0: ended at step {step}, {why}." in text
    (saved,) = (workdir / "linear").glob("checkpoints_*")
    assert max(int(p.name) for p in saved.iterdir() if p.name.isdigit()) == step
    before = outcome(workdir)
    train(config, workdir)
    assert outcome(workdir) == before


@pytest.mark.slow
@pytest.mark.parametrize("cut", [None, 4, 6, 9])
def test_a_training_ends_where_patience_does_also_if_it_was_stopped_before(
    undisturbed, tmp_path, monkeypatch, cut
):
    scores, evaluate = {0: 0.1, 3: 0.5, 6: 0.4, 9: 0.5, 12: 0.9}, loop._evaluate

    def scripted(session, state, step):
        return None if evaluate(session, state, step) is None else scores[step]

    monkeypatch.setattr(loop, "_evaluate", scripted)
    if cut is not None:
        stopped(monkeypatch, cut, one(patience=2), tmp_path)
    ended(one(patience=2), tmp_path, 9, "for 2 evaluations gave no better result")
    assert rows_until(tmp_path, 9) == rows_until(undisturbed, 9)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [None, 4, 5])
def test_a_training_ends_evaluated_when_its_time_is_up(undisturbed, tmp_path, monkeypatch, cut):
    """One step after that was told, as all hosts are told at the same step."""

    class Hurried(loop.HostRequests):
        def __call__(self, step, wait):
            asked = super().__call__(step, wait)
            self.over = step >= 4
            return asked

    monkeypatch.setattr(loop, "HostRequests", Hurried)
    if cut is not None:
        stopped(monkeypatch, cut, one(time="10m"), tmp_path)
        monkeypatch.setattr(loop, "seconds_of", lambda _: 1e-9)  # it was up before
    ended(one(time="10m"), tmp_path, 5, "for the time of 10m is up")
    assert rows_until(tmp_path, 4) == rows_until(undisturbed, 4)
    splits = [row["split"] for row in rows_until(tmp_path, 5) if row["step"] == 5]
    assert splits == ["train", "eval", "eval_ema"]


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 2, signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt) as raised:
        train(one(), tmp_path)
    assert raised.type is KeyboardInterrupt


class Killed(BaseException):
    """Stands for a process that ends here: nothing of ours may catch it."""


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 4, 12])
def test_what_was_done_after_the_last_checkpoint_is_done_again(
    undisturbed, tmp_path, monkeypatch, step
):
    """Also where nothing was saved yet, or everything but the result."""
    write = loop.RunLog.write

    def die(self, at, split, values):
        write(self, at, split, values)
        if at == step and (split == "eval_ema" or at == 4):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.RunLog, "write", die)
        with pytest.raises(Killed):
            train(one(), tmp_path)
    train(one(), tmp_path)
    assert outcome(tmp_path) == outcome(undisturbed)


@pytest.mark.slow
def test_killed_while_the_result_is_written(undisturbed, tmp_path, monkeypatch):
    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(record, "write_json", die)
        with pytest.raises(Killed):
            train(one(), tmp_path)
    train(one(), tmp_path)
    assert outcome(tmp_path) == outcome(undisturbed)


@pytest.mark.slow
def test_a_log_line_that_was_cut_is_left_out(undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9)
        with pytest.raises(loop.Interrupted):
            train(one(), tmp_path)
    log = tmp_path / "linear/seed_0/metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 10, "spl')
    train(one(), tmp_path)
    assert outcome(tmp_path) == outcome(undisturbed)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_some_steps_and_one_warning(
    undisturbed, tmp_path, monkeypatch, caplog
):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9)
        with pytest.raises(loop.Interrupted):
            train(one(), tmp_path)
    (saved,) = (tmp_path / "linear").glob("checkpoints_*")
    newest = max(saved.iterdir(), key=lambda p: int(p.name))
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with caplog.at_level(logging.WARNING, "mnv2_jax"):
        train(one(), tmp_path)
    ours = [r for r in caplog.records if r.name.startswith("mnv2_jax")]
    assert len(ours) == 1 and "step 9" in ours[0].getMessage()
    assert outcome(tmp_path) == outcome(undisturbed)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("launcher", ["shard_map", "pmap"])
def test_every_launcher_goes_on_from_its_checkpoint(tmp_path, monkeypatch, launcher):
    config = one(6, parallel={"launcher": launcher, "devices": 2})
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(loop.Interrupted):
            train(config, tmp_path / "cut")
    train(config, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_seeds_at_once_train_to_the_same_as_one_by_one(tmp_path):
    seeds = (0, 9)
    alone, together = one(6, seeds), one(6, seeds, sweep={"at_once": 0})
    train(alone, tmp_path / "alone")
    rows = {}
    train(together, tmp_path / "together", lambda config, folder, _: (
        lambda *row: rows.setdefault((folder, config["seed"]), []).append(row), print,
    ))  # fmt: skip
    for seed in seeds:
        folder = tmp_path / f"together/linear/seed_{seed}"
        logged = read_rows(folder / "metrics.jsonl")
        assert rows.pop((folder, seed)) == [(r.pop("step"), r.pop("split"), r) for r in logged]
    assert not rows
    a, b = outcome(tmp_path / "alone"), outcome(tmp_path / "together")
    assert a.keys() == b.keys()
    for seed in seeds:
        name = f"linear/seed_{seed}"
        for ours, theirs in zip(a[f"{name} rows"], b[f"{name} rows"], strict=True):
            assert ours.keys() == theirs.keys()
            np.testing.assert_allclose(
                [v for v in ours.values() if not isinstance(v, str)],
                [v for v in theirs.values() if not isinstance(v, str)],
                rtol=2e-3, atol=2e-3,
            )  # fmt: skip
        models = [
            load_file(tmp_path / way / name / "model.safetensors") for way in ("alone", "together")
        ]
        for tensor in models[0]:
            np.testing.assert_allclose(models[0][tensor], models[1][tensor], rtol=1e-3, atol=1e-4)
    kernels = [
        load_file(tmp_path / f"alone/linear/seed_{s}/model.safetensors")["params/stem/conv/kernel"]
        for s in seeds
    ]
    assert len({kernel.tobytes() for kernel in kernels}) == len(seeds)


@pytest.mark.nightly
@pytest.mark.slow
def test_seeds_at_once_go_on_bit_equal(tmp_path, monkeypatch):
    config = one(6, (0, 1), sweep={"at_once": 2})
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(loop.Interrupted):
            train(config, tmp_path / "cut")
    train(config, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_each_seed_has_its_own_order_whoever_trains_beside_it():
    both = make_run(one(seeds=(0, 7), sweep={"at_once": 2}), 2)
    together = next(both.rows((0, 7), 3))
    for i, seed in enumerate((0, 7)):
        alone = next(make_run(one(), 1).rows((seed,), 3))
        for name in ("id", "row"):
            np.testing.assert_array_equal(together[name][i], alone[name])
    assert (np.asarray(together["id"][0]) != np.asarray(together["id"][1])).any()


@pytest.mark.slow
def test_a_run_that_goes_astray_stops_with_one_line(tmp_path):
    config = one(
        12, optimizer={"learning_rate": 1e38, "schedule": "constant"}, stop_after_skipped=3
    )
    with pytest.raises(UsageError, match=r"not finite \d+ steps in a row up to step 4") as error:
        train(config, tmp_path)
    assert "\n" not in str(error.value) and "learning_rate" in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "jit",
        pytest.param("shard_map", marks=[pytest.mark.slow, pytest.mark.nightly]),
        pytest.param("pmap", marks=[pytest.mark.slow, pytest.mark.nightly]),
    ],
)
def test_nothing_is_compiled_after_the_first_steps_and_evaluation(
    tmp_path, caplog, monkeypatch, launcher
):
    """Nor for the last batch of an evaluation: the 360 examples do not divide by 100."""
    compiled, write = {}, loop.RunLog.write
    monkeypatch.setattr(sweep, "make_run", make_run)

    def note(self, at, split, values):
        compiled[at] = len([r for r in caplog.records if "Compiling" in r.getMessage()])
        write(self, at, split, values)

    monkeypatch.setattr(loop.RunLog, "write", note)
    config = one(24, parallel={"launcher": launcher, "devices": 2}, log_every=10)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        train(config, tmp_path)
    assert compiled[3] > 0 and compiled[24] == compiled[10], compiled


def test_another_configuration_is_refused_with_what_differs(undisturbed):
    config = one(13, optimizer={"momentum": 0.8})
    with pytest.raises(UsageError) as error:
        train(config, undisturbed)
    text = str(error.value)
    assert "optimizer.momentum: 0.9 -> 0.8, steps: 12 -> 13" in text and "\n" not in text


@pytest.mark.parametrize("content", ["{", "[1]", "", "3"])
def test_a_workdir_whose_configuration_is_damaged(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config.json cannot be read") as error:
        train(one(), tmp_path)
    assert "\n" not in str(error.value)


def test_a_mistake_in_the_last_variant_is_found_before_anything_is_made(tmp_path):
    config = tiny(sweep={"variants": {"relu6": {"model": {"bottleneck": "relu7"}}}})
    with pytest.raises(UsageError, match=r"unknown model\.bottleneck 'relu7'"):
        train(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_workdir_that_cannot_be_made_is_refused_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(sweep, "fit", lambda *_: pytest.fail("it trained"))
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=r"cannot be (used|read)") as error:
            train(one(), place)
        assert "\n" not in str(error.value)


def test_a_disk_that_fills_up_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop.RunLog, "write", full)
    with pytest.raises(UsageError, match="No space left on device") as error:
        train(one(), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.nightly
@pytest.mark.slow
def test_training_in_another_thread_leaves_signals_alone(tmp_path):
    failures = []

    def work():
        try:
            train(one(3), tmp_path)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures and (tmp_path / "report.md").is_file()


def config_with(**sweep_changes):
    config = tiny()
    config.sweep.update(sweep_changes)
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "linaer"}, "sweep.reference 'linaer': did you mean 'linear'"),
        ({"claim": ("linear", "relu")}, "sweep.claim 'relu': did you mean 'relu6'"),
        ({"seeds": ()}, "at least one integer"),
        ({"seeds": (1, 1)}, "each once"),
        ({"seeds": (0, -1)}, "each item between 0 and"),
        ({"seeds": (0, 2**32)}, "each item between 0 and"),
        ({"seeds": (0.5,)}, "integer"),
        ({"seeds": (True,)}, "integer"),
        ({"looks": (8, 4)}, "rising numbers of seeds"),
        ({"looks": (1, 4)}, "each item between 2 and"),
        ({"looks": (8,), "claim": ()}, "and a sweep.claim to decide"),
        ({"delta": 0.0}, "sweep.delta is 0.0"),
    ],
)
def test_sweeps_that_cannot_be_run_are_refused(tmp_path, changes, message):
    with pytest.raises((UsageError, TypeError), match=message) as error:
        train(config_with(**changes), tmp_path / "new")
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"widht": 0.5}}, "'model.widht': did you mean 'model.width'"),
        ({"modle": {"width": 0.5}}, "variant 'b'.*'modle.width'"),
        ({"model": {"width": "wide"}}, "variant 'b' of the sweep cannot be applied: .*number"),
        ({"model": 3}, "variant 'b'"),
        (7, "variant 'b' of the sweep is 7: give the keys"),
    ],
)
def test_variants_that_change_what_is_not_there(change, message):
    config = tiny()
    with config.unlocked():
        config.sweep.variants["b"] = change
    with pytest.raises(UsageError, match=message) as error:
        variant_config(config, "b")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a/b", "/etc", ""])
def test_variants_name_folders(tmp_path, name):
    config = tiny()
    with config.unlocked():
        config.sweep.variants[name] = {}
    with pytest.raises(UsageError, match="cannot name a folder"):
        train(config, tmp_path / "new")


def test_a_variant_changes_its_keys_and_no_others():
    config = tiny()
    relu6 = variant_config(config, "relu6")
    assert relu6.model.bottleneck == "relu6" and relu6.model.width == config.model.width
    assert config.model.bottleneck == "linear" and relu6.is_locked


@pytest.mark.parametrize(
    ("at_once", "groups"), [(0, [(0, 1, 2, 3, 4)]), (1, [(0,), (1,), (2,), (3,), (4,)]),
                            (2, [(0, 1), (2, 3), (4,)]), (9, [(0, 1, 2, 3, 4)])]
)  # fmt: skip
def test_every_seed_is_in_one_group(at_once, groups):
    assert list(seed_groups(config_with(seeds=tuple(range(5)), at_once=at_once))) == [groups]


def test_each_look_adds_seeds_in_groups_of_their_own():
    config = config_with(seeds=tuple(range(7)), at_once=2, looks=(3, 5, 64))
    assert list(seed_groups(config)) == [[(0, 1), (2,)], [(3, 4)], [(5, 6)]]


def texts(workdir):
    """The report without its last column, which is time."""
    return [line.rpartition("|")[0].rpartition("|")[0] or line
            for line in (workdir / "report.md").read_text().splitlines()]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("delta", "trained", "decision"),
    [
        (0.99, 3, "equivalent"),
        pytest.param(1e-6, 4, "undecided", marks=pytest.mark.nightly),
    ],
)
def test_seeds_are_added_until_the_claim_is_decided_also_if_it_was_stopped_between(
    tmp_path, monkeypatch, delta, trained, decision
):
    """Three seeds tell that variants are not 99 points apart, and four not which is better."""
    config = config_with(seeds=(0, 1, 2, 3), looks=(3,), delta=delta)
    with config.unlocked():
        config.data.resplit, config.steps = True, 3

    def scores(results):  # so short a training knows nothing yet
        return {
            name: [known[run["seed"]] for run in results["runs"][name]]
            for name, known in {
                "linear": (0.5, 0.6, 0.9, 0.5),
                "relu6": (0.6, 0.4, 0.7, 0.6),
            }.items()
        }

    reported, write = [], sweep.write_report
    monkeypatch.setattr(report, "scores_of", scores)
    monkeypatch.setattr(sweep, "write_report", lambda *a: reported.append(a[3]) or write(*a))
    with monkeypatch.context() as patch:
        stop_in(patch, sweep, "_decided")
        with pytest.raises(loop.Interrupted):
            train(config, tmp_path)
    train(config, tmp_path)
    there = {folder.name for folder in (tmp_path / "relu6").glob("seed_*")}
    assert there == {f"seed_{seed}" for seed in range(trained)}
    content = json.loads((tmp_path / "results.json").read_text())
    assert [len(runs) for runs in content["runs"].values()] == [trained] * 2
    assert reported == [*range(3, trained + 1)]  # after every look
    (sentence,) = (line for line in texts(tmp_path) if line.startswith("- *linear* above *relu6*"))
    assert f"n = {trained}, " in sentence and f"**{decision}**" in sentence


def test_checkpoints_of_many_seeds_have_a_short_name(tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr(loop, "Checkpoints", lambda folder, *_: folders.append(folder) or 1 / 0)
    monkeypatch.setattr(loop, "describe", lambda *_: {})
    identity, stop = record.Identity(seeds=tuple(range(500))), types.SimpleNamespace(at_once=True)
    with pytest.raises(ZeroDivisionError):
        loop.fit(None, one(), tmp_path, identity, {}, stop, "", True)
    assert len(folders[0].name) < 100
    Checkpoints(folders[0], 1).close()


def stop_in(monkeypatch, module, name, number=signal.SIGTERM):
    """Sends a signal to this process when a function is called for the first time."""
    function, sent = getattr(module, name), []

    def stopping(*arguments, **options):
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, stopping)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (loop, "low_precision_scores"),
        (record, "save_model"),
        (record, "write_json"),
        (record, "hash_file"),
        (sweep, "write_report"),
        (sweep, "claim"),
        (loop, "progress_bar"),
    ],
)
def test_a_signal_before_and_after_the_training_is_not_lost(
    undisturbed, tmp_path, monkeypatch, module, name
):
    """Whatever is being done, it stops there; the same command goes on."""
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        stop_in(patch, module, name)
        with pytest.raises(loop.Interrupted) as raised:
            train(one(), tmp_path)
    assert raised.value.number == signal.SIGTERM and "the same command" in str(raised.value)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not (tmp_path / "report.md").exists() and not (tmp_path / ".lock").exists()
    assert not list(tmp_path.rglob("*partial*"))
    train(one(), tmp_path)
    assert outcome(tmp_path) == outcome(undisturbed)


@pytest.mark.slow
def test_a_signal_that_something_swallows_stops_before_the_next_seed(tmp_path, monkeypatch):
    """As an exception in a finalizer or a callback is."""
    save = record.save_model

    def swallowing(*arguments):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        save(*arguments)

    monkeypatch.setattr(record, "save_model", swallowing)
    with pytest.raises(loop.Interrupted):
        train(one(3, (0, 1)), tmp_path)
    assert (tmp_path / "linear/seed_0/result.json").exists()
    assert not (tmp_path / "linear/seed_1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_hang_up_is_a_signal_too_unless_it_is_ignored(tmp_path, monkeypatch, number):
    before = signal.signal(number, signal.SIG_IGN)  # as nohup, or a shell's background, does
    try:
        interrupt_at(monkeypatch, 2, number)
        train(one(3), tmp_path)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    with process.stoppable() as stop:
        stop.at_once = False
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop() and stop.number == signal.SIGHUP
        stop.at_once = True
        with pytest.raises(loop.Interrupted):
            stop.check()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["result.json", "metrics.jsonl", "model.safetensors", "config.json"]
)
def test_damage_to_a_finished_seed_is_mended_from_its_checkpoint(
    undisturbed, tmp_path, monkeypatch, name
):
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    damaged = workdir / "linear/seed_0" / name
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert [f.path for f in verify(workdir) if f.problem] == [f"linear/seed_0/{name}"]
    train(one(), workdir)
    assert not [f for f in verify(workdir) if f.problem]
    assert outcome(workdir) == outcome(undisturbed)


@pytest.mark.nightly
@pytest.mark.slow
def test_a_shorter_training_ends_where_it_is(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9)
        with pytest.raises(loop.Interrupted):
            train(one(), tmp_path)
    with pytest.raises(UsageError, match="steps: 12 -> 13"):
        train(one(13), tmp_path)
    train(one(6), tmp_path)
    result = json.loads((tmp_path / "linear/seed_0/result.json").read_text())
    assert result["steps"] == 9
    assert not [f for f in verify(tmp_path) if f.problem]
