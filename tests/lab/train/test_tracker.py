"""Trackers: what they are told, and that those of docs/how-to/trackers.md keep each row once."""

import json
import logging
import math
import re
import sys
import types
from collections import defaultdict
from pathlib import Path

import jax
import pytest

from mnv2_jax import UsageError
from mnv2_jax.lab.train import log as log_module
from mnv2_jax.lab.train import loop, sweep
from mnv2_jax.lab.train.config import execute, load_config, load_experiment
from mnv2_jax.lab.train.log import RunLog, read_rows, tracked
from mnv2_jax.lab.train.sweep import run_sweep
from tests.lab.train.test_sweep import Killed, interrupt_at, one, outcome, quickly

PAGE = Path(__file__).resolve().parents[3] / "docs/how-to/trackers.md"
BLOCKS = dict(re.findall(r"^```python\nimport (\w+)\n(.*?)^```$", PAGE.read_text(), re.M | re.S))
SPLITS = ("train", "eval")


class Store:
    """What is kept of runs: their parameters, how they ended, and (name, step) -> values."""

    def __init__(self):
        self.params, self.ends = defaultdict(dict), {}
        self.points = defaultdict(lambda: defaultdict(list))

    def new(self):
        self.params[name := f"run{len(self.params)}"] = {}
        return name

    def add(self, run, step, values):
        assert all(isinstance(value, (int, float)) for value in values.values())
        for name, value in values.items():
            self.points[run][name, step].append(value)

    def last(self, run):
        """The largest step of each name."""
        return {name: step for name, step in sorted(self.points[run], key=lambda key: key[1])}


def fake_wandb(store):
    """A row is added for good; a run that goes on finds the last value of everything."""

    def init(*, project, name, config, dir, id, resume, reinit):
        assert (resume, reinit) == ("allow", "create_new") and dir.is_dir()
        assert config["name"] == project
        run = id or store.new()
        store.params[run] = config | {"shown": name}
        summary = {f"{name.partition('/')[0]}/step": step for name, step in store.last(run).items()}

        def log(row):
            (axis,) = (name for name in row if name.endswith("/step"))
            assert axes[axis.replace("step", "*")] == axis
            store.add(run, row.pop(axis), row)

        axes = {}
        return types.SimpleNamespace(
            id=run, summary=summary, log=log,
            define_metric=lambda name, step_metric: axes.update({name: step_metric}),
            finish=lambda exit_code: store.ends.update({run: exit_code == 0}),
        )  # fmt: skip

    return types.SimpleNamespace(init=init)


def fake_mlflow(store):
    """A value is added for good; parameters cannot change."""
    space = types.SimpleNamespace

    def log_params(params, run_id):
        assert len(params) <= 100 and not store.params[run_id]
        store.params[run_id] = params

    def get_metric_history(run, metric):
        return [space(step=step) for name, step in store.points[run] if name == metric]

    client = space(
        create_run=lambda experiment, run_name: space(info=space(run_id=store.new())),
        update_run=lambda run, status: store.ends.pop(run, None),
        get_run=lambda run: space(data=space(metrics=store.last(run))),
        get_metric_history=get_metric_history,
        set_terminated=lambda run, status: store.ends.update({run: status == "FINISHED"}),
    )
    return space(
        MlflowClient=lambda: client,
        set_experiment=lambda name: space(experiment_id=f"id of {name}"),
        log_params=log_params,
        log_metrics=lambda values, step, run_id: store.add(run_id, step, values),
    )


def fake_aim(store):
    """A value replaces that of the same step."""

    class Run:
        def __init__(self, run_hash, experiment, capture_terminal_logs):
            assert run_hash in (None, *store.params) and experiment
            self.hash = run_hash or store.new()

        def __setitem__(self, name, value):
            store.params[self.hash] = value

        def track(self, value, name, step, context):
            store.points[self.hash].pop((f"{context['subset']}/{name}", step), None)
            store.add(self.hash, step, {f"{context['subset']}/{name}": value})

        def close(self):
            store.ends[self.hash] = True

    return types.SimpleNamespace(Run=Run)


FAKES = {"wandb": fake_wandb, "mlflow": fake_mlflow, "aim": fake_aim}


@pytest.fixture(params=sorted(FAKES))
def documented(request, tmp_path, monkeypatch):
    """The tracker of an experiment's file with a block of the page, and what the fake keeps."""
    store = Store()
    monkeypatch.setitem(sys.modules, request.param, FAKES[request.param](store))
    base = "from experiments.ablate_linear import get_config\n"
    file = tmp_path / f"with_{request.param}.py"
    file.write_text(f"import {request.param}\n{base}{BLOCKS[request.param]}")
    _, tracker = load_experiment(str(file))
    return tracker, store


def points_of(folder):
    """The numbers of `metrics.jsonl` as a `Store` has them."""
    return {
        (f"{row['split']}/{name}", row["step"]): [value]
        for row in read_rows(folder / "metrics.jsonl")
        for name, value in row.items()
        if name not in ("step", "split", "note")
    }


def opened(tracker, folder, config, known=(), step=0):
    log = RunLog(folder, known)
    log.track = tracked(tracker, config, folder, step)
    return log


def write(log, steps):
    for step in steps:
        for split in SPLITS:
            log.write(step, split, {"loss": 1 / step, "note": "text"})


def test_the_page_has_each_in_thirty_lines():
    assert BLOCKS.keys() == FAKES.keys()
    assert all(len(block.splitlines()) < 30 for block in BLOCKS.values())


def test_what_a_tracker_of_the_page_keeps_is_the_log(documented, tmp_path):
    """Two seeds at once, one of which is killed after step 5, and inside the rows of step 6."""
    tracker, store = documented
    folders = [tmp_path / "linear" / f"seed_{seed}" for seed in (0, 1)]
    configs = [{"name": "mine", "variant": "linear", "seed": seed} for seed in (0, 1)]
    first, second = (opened(tracker, *pair) for pair in zip(folders, configs, strict=True))
    write(first, (1, 2, 3))
    write(second, (1, 2))
    known = json.loads(json.dumps(first.rows))
    write(first, (4, 5))
    first.write(6, "train", {"loss": 1 / 6})
    second.track("finish", None)
    again = opened(tracker, folders[0], configs[0], known, 3)
    write(again, (4, 5, 6, 7))
    again.track("finish", {"steps": 7})
    assert list(store.params) == ["run0", "run1"] and store.ends["run0"] is True
    for run, folder in zip(store.params, folders, strict=True):
        assert store.points[run] == points_of(folder)
    assert [store.params[run]["seed"] for run in store.params] == [0, 1]
    for log in (first, second, again):
        log.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quickly(monkeypatch)


def noting(calls):
    """A tracker that notes what it is told."""

    def tracker(config, folder, step):
        calls.append(("start", config["seed"], config["variant"], folder, step))
        return lambda *row: calls.append(row), lambda result: calls.append(("finish", result))

    return tracker


@pytest.fixture(scope="module")
def tracked_run(tmp_path_factory):
    """The folder of a training, and what its tracker was told."""
    workdir, calls = tmp_path_factory.mktemp("tracked"), []
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        run_sweep(one(), workdir, (), True, noting(calls))
    return workdir, calls


def rows_of(calls):
    return [call for call in calls if call[0] not in ("start", "finish")]


def logged(folder, after=-1):
    return [
        (row.pop("step"), row.pop("split"), row)
        for row in read_rows(folder / "metrics.jsonl")
        if row["step"] > after
    ]


@pytest.mark.slow
def test_a_training_tells_each_row_once(tracked_run):
    workdir, (first, *rows, (name, told)) = tracked_run
    folder = workdir / "linear/seed_0"
    assert first == ("start", 0, "linear", folder, 0) and rows == logged(folder)
    result = json.loads((folder / "result.json").read_text())
    assert name == "finish" and told.items() <= result.items()
    assert told.keys() >= {"seed", "steps", "metrics"}
    again = []
    run_sweep(one(), workdir, (), True, noting(again))
    assert again == []  # it is finished


@pytest.mark.slow
def test_a_training_that_goes_on_says_where(tmp_path, monkeypatch):
    calls, folder, log_write = [], tmp_path / "linear/seed_0", RunLog.write
    tracker = noting(calls)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(loop.Interrupted):
            run_sweep(one(), tmp_path, (), True, tracker)
    assert calls[-1] == ("finish", None)

    def die(self, step, split, values):
        log_write(self, step, split, values)
        if (step, split) == (8, "train"):
            raise Killed

    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "write", die)
        with pytest.raises(Killed):  # the checkpoint is that of step 6
            run_sweep(one(), tmp_path, (), True, tracker)
    assert calls[0] == ("start", 0, "linear", folder, 4)
    assert {row[0] for row in rows_of(calls)} == {6, 8}
    calls.clear()
    run_sweep(one(), tmp_path, (), True, tracker)
    assert calls[0] == ("start", 0, "linear", folder, 6)
    assert rows_of(calls) == logged(folder, after=6)


def broken_start(config, folder, step):
    raise ConnectionError("no route to host\nlong text")


def broken_write(config, folder, step):
    return lambda *_: 1 / 0, lambda _: pytest.fail("it was left out")


def no_pair(config, folder, step):
    return None


def broken_finish(config, folder, step):
    return lambda *_: None, lambda _: {}["absent"]


@pytest.mark.parametrize(
    ("tracker", "why"),
    [
        (broken_start, "ConnectionError: no route to host"),
        (broken_write, "ZeroDivisionError: division by zero"),
        (no_pair, "TypeError: cannot unpack"),
        (broken_finish, "KeyError: 'absent'"),
    ],
)
def test_a_tracker_that_raises_is_left_out_after_one_warning(tmp_path, caplog, tracker, why):
    with caplog.at_level(logging.WARNING, log_module.__name__):
        log = opened(tracker, tmp_path, {})
        write(log, (1, 2))
        log.track("finish", {})
        log.track("finish", None)
    log.close()
    (record,) = caplog.records
    text = record.getMessage()
    assert f"test_tracker.{tracker.__name__} is left out from now on: {why}" in text
    assert "\n" not in text and str(tmp_path) in text
    assert len(logged(tmp_path)) == 4


@pytest.mark.slow
def test_a_broken_tracker_costs_nothing_and_is_no_part_of_a_run(tracked_run, tmp_path):
    run_sweep(one(), tmp_path, (), True, broken_write)
    assert outcome(tmp_path) == outcome(tracked_run[0])
    configs = [(place / "config.json").read_text() for place in (tmp_path, tracked_run[0])]
    assert configs[0] == configs[1]  # of which the identity is made


@pytest.mark.slow
def test_only_the_first_of_several_processes_calls_it(tmp_path, monkeypatch):
    class Second:
        """JAX as the loop of another process has it."""

        process_index = staticmethod(lambda: 1)
        __getattr__ = staticmethod(jax.__getattribute__)

    calls = []
    monkeypatch.setattr(loop, "jax", Second())
    monkeypatch.setattr(sweep, "write_report", lambda *_: None)
    run_sweep(one(), tmp_path, (), True, noting(calls))
    assert calls == []


def test_numbers_that_are_not_finite_stay_so(tmp_path):
    seen = []
    log = opened(lambda *_: (lambda *row: seen.append(row), print), tmp_path, {})
    log.write(1, "train", {"loss": math.nan, "skipped": 1, "note": "text"})
    log.close()
    ((step, split, values),) = seen
    assert (step, split, values.keys()) == (1, "train", {"loss", "skipped"})
    assert math.isnan(values["loss"])


def test_a_file_without_a_tracker_and_one_with_no_function(tmp_path):
    assert load_experiment("experiments/ablate_linear.py")[1] is None
    file = tmp_path / "mine.py"
    file.write_text("from experiments.ablate_linear import get_config\ntracker = 'wandb'\n")
    with pytest.raises(UsageError, match=r"tracker in .*mine.py' is 'wandb': give a function"):
        load_config(str(file))
    assert execute(file).tracker == "wandb"
