"""The one training loop: batches in, logs, checkpoints and a trained model out."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, starmap
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.devices.hosts import HostRequests, gather, leave
from mnv2_jax.lab.devices.process import Interrupted, Stop
from mnv2_jax.lab.devices.sharding import shapes_of
from mnv2_jax.lab.train.check import seconds_of
from mnv2_jax.lab.train.checkpoint import Checkpoints, Progress, step_of
from mnv2_jax.lab.train.config import eval_resolution, plain
from mnv2_jax.lab.train.log import RunLog, Tracker, progress_bar, rows_before, tracked
from mnv2_jax.lab.train.precision import low_precision_scores
from mnv2_jax.lab.train.record import METRICS, Identity, write_model
from mnv2_jax.lab.train.run import Run

IN_FLIGHT = 2  # steps
SPIKE = 2.0  # a loss so many times that of the row before is noted in the log


class MetricSums:
    """Training metrics summed since the last row of the log; survives an interruption.

    Sums run from step to step in float64, so that they do not depend on where a run was cut.
    """

    def __init__(self, sums: dict[str, Any]):
        self._sums = dict(sums)
        self._on_device: list[Any] = []

    def add(self, metrics: dict[str, Any], stacked: int = 0) -> int:
        """Adds a step's metrics, and waits for those of `IN_FLIGHT` steps before.

        Two steps under way keep a device busy; with more, a run that is told to stop would first
        have to work them off. Metrics may be those of several steps, the first `stacked`. Returns
        how many steps in a row were not finite, as far as known.
        """
        self._on_device.append((metrics, stacked))
        if len(self._on_device) <= IN_FLIGHT:
            return 0
        known, _ = self._on_device[-1 - IN_FLIGHT]
        return int(np.max(jax.device_get(known["skipped_in_a_row"])))

    def wait(self) -> dict[str, Any]:
        """Waits for all steps; returns name -> (sum, count) and the last of the other metrics."""
        for metrics in chain.from_iterable(starmap(_each, jax.device_get(self._on_device))):
            for name, (total, count) in metrics.pop("sums").items():
                before = self._sums.get(name, (0.0, 0.0))
                pair = (np.float64(total) + before[0], np.float64(count) + before[1])
                self._sums[name] = [np.asarray(v).tolist() for v in pair]
            self._sums |= {name: np.asarray(v).tolist() for name, v in metrics.items()}
        self._on_device = []
        return self._sums

    def take(self) -> dict[str, Any]:
        """Returns what `wait` does, and starts anew."""
        sums, self._sums = self.wait(), {}
        return sums


def _each(metrics: dict[str, Any], stacked: int) -> list[dict[str, Any]]:
    return [jax.tree.map(lambda v, i=i: v[i], metrics) for i in range(stacked)] or [metrics]


@dataclass
class Session:
    """What the loop holds besides the state."""

    run: Run
    config: Any
    seeds: tuple[int, ...]
    keys: Any
    batches: Iterator[Any]
    checkpoints: Checkpoints
    logs: list[RunLog]  # one for each seed, on the first process only
    bar: Any
    began: float  # by the monotonic clock, less what was trained before an interruption
    sums: MetricSums
    losses: list[float] | None  # of the last row of the log, for each seed
    requests: HostRequests
    stop: Stop
    end: dict[str, Any]  # see `Progress`
    origins: list[Any]  # likewise
    traces: Path  # where the profiler writes to
    tracing: ExitStack


def fit(
    run: Run, config: Any, folder: Path, identity: Identity, origin: dict[str, Any], stop: Stop,
    title: str, quiet: bool, tracker: Tracker | None = None,
) -> str:  # fmt: skip
    """Trains a run to its end, from its newest checkpoint if there is one.

    Writes for each seed of `identity`, under `folder/seed_N`: `metrics.jsonl`, TensorBoard events,
    the trained model, and last `result.json`, which says that the seed is finished. `config` is
    what the run was made from, `origin` what the results say of code, machine and fingerprint;
    `title` stands before the progress bar; `tracker`: `log.tracked`.
    Returns why it ended before its last step, if it did. Raises Interrupted where `stop` was
    requested and all is saved, a UsageError where the loss stays not finite or a disk is full.
    """
    stop.at_once = False  # from now on there is something to close and to save first
    seeds = identity.seeds
    listed = "-".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    place, model = folder / f"checkpoints_{listed}", describe(run, config)
    checkpoints = Checkpoints(place, config.keep_checkpoints, identity, model)
    keys = run.keys(seeds)
    restored = checkpoints.restore(shapes_of(jax.eval_shape(run.fresh, keys), run.plan.state))
    # The state before the first step is evaluated too.
    state, before = restored or (run.fresh(keys), Progress(evaluated=False))
    start, due, first_process = step_of(state), not before.evaluated, jax.process_index() == 0
    limit, began = seconds_of(config.time) or math.inf, time.monotonic() - before.seconds
    pause = 60 * config.checkpoint_minutes
    requests = HostRequests(pause, stop, lambda: time.monotonic() - began >= limit)
    requests.over = before.seconds >= limit
    session = Session(
        run=run, config=config, seeds=seeds, keys=keys, checkpoints=checkpoints, began=began,
        stop=stop, requests=requests, sums=MetricSums(before.sums), losses=before.losses,
        end=before.end, batches=run.train.batches(seeds, start, folder),
        origins=before.origins + [origin] * (origin not in before.origins),
        logs=_open_logs(folder, seeds, before, start) if first_process else [],
        traces=folder / f"profile_{listed}", tracing=ExitStack(),
        bar=progress_bar(run.steps, start, title, quiet or not first_process),
    )  # fmt: skip
    about = {k: v for k, v in plain(config).items() if not k.startswith("sweep.")}
    for seed, log in zip(seeds, session.logs, strict=False):
        whose = {"variant": identity.variant, "seed": seed}
        log.track = tracked(tracker, about | whose, folder / f"seed_{seed}", start)
    try:
        state = _train(session, state, start, due)
        checkpoints.wait()
        stop.told = _saved_at(step_of(state))
        stop.at_once = jax.process_count() == 1  # several hosts leave together
        stop.check()
        return _finish(session, identity, state, folder)
    except jax.errors.JaxRuntimeError as error:
        leave(error)  # what follows would wait for the host that is gone
        raise
    finally:
        session.tracing.close()
        session.bar.close()
        for log in session.logs:
            log.track("finish", None)
            log.close()
        checkpoints.close()


def _open_logs(folder: Path, seeds: tuple[int, ...], before: Progress, start: int) -> list[RunLog]:
    """Opens each seed's log at a checkpoint; without one, all is done again."""
    places, rows = [folder / f"seed_{seed}" for seed in seeds], before.rows
    if rows is None:
        due = not before.evaluated
        rows = [rows_before(p / METRICS, start, due) if start else [] for p in places]
    return [RunLog(place, own) for place, own in zip(places, rows, strict=True)]


def _train(session: Session, state: Any, start: int, due: bool) -> Any:
    """Trains from step `start` to the end; `due` says that it has not been evaluated there yet."""
    run, config, requests = session.run, session.config, session.requests
    eval_every = max(1, round(config.eval_every_epochs * run.epoch_steps))
    resident = jax.device_put(run.train.resident(), run.plan.everywhere)
    session.bar.set_postfix_str("compiling, which may take minutes")
    if session.stop() and jax.process_count() == 1:
        _save(session, state, evaluated=not due)
        _leave(session, state)
    if due:
        if (monitor := _evaluate(session, state, start)) is not None:
            _compare(session, monitor)
        else:
            _save(session, state, evaluated=False)
            _leave(session, state)
    step, most, to_trace = start, max(1, config.parallel.steps_per_call), config.profile
    while step < run.steps and not session.end.get("why"):
        ends = [run.steps, config.log_every] + [eval_every] * bool(config.eval_every_epochs)
        count = min(most, *(every - step % every for every in ends))
        state, metrics = run.advance(state, resident, session.batches, session.keys, count)
        first, step = step == start, step + count
        last = step == run.steps or requests.over
        _check_finite(config, session.sums.add(metrics, count if most > 1 else 0), step)
        if first:  # compiled; the time left is told by the steps
            session.bar.set_postfix_str("", refresh=False)
            session.bar.unpause()
            if to_trace:
                session.sums.wait()
                session.tracing.enter_context(jax.profiler.trace(str(session.traces)))
        elif to_trace > 0 >= (to_trace := to_trace - count):
            session.sums.wait()
            session.tracing.close()
        session.bar.update(count)
        if step % config.log_every == 0 or last:
            _log_row(session, step)
        due = bool(config.eval_every_epochs and step % eval_every == 0) or last
        monitor = _evaluate(session, state, step) if due else None
        evaluated = monitor is not None or not due
        if monitor is not None:
            _compare(session, monitor)
        if last and step < run.steps:
            session.end = session.end | {"why": f"for the time of {config.time} is up"}
        last = last or bool(session.end.get("why"))
        save, stop = requests(step, session.sums.wait)
        stop = stop and not (last and evaluated)
        if save or stop or monitor is not None:
            _save(session, state, evaluated, monitor)
        if stop:
            _leave(session, state)
    return state


def _save(session: Session, state: Any, evaluated: bool, monitor: float | None = None) -> None:
    seconds = time.monotonic() - session.began
    rows = [log.rows for log in session.logs]
    sums = session.sums.wait()
    known = (session.losses, evaluated, rows, session.end, session.origins)
    progress = Progress(seconds, sums, *known)
    for log in session.logs:
        log.flush()
    session.checkpoints.save(state, progress, monitor)
    session.requests.saved()


def _compare(session: Session, monitor: float) -> None:
    """Counts evaluations since the best; too many of them are the end."""
    best, patience = session.end.get("best"), session.config.patience
    worse = 0 if best is None or monitor > best else session.end["worse"] + 1
    session.end = session.end | {"best": best if worse else monitor, "worse": worse}
    if 0 < patience <= worse:
        session.end["why"] = f"for {worse} evaluations gave no better result"


def _leave(session: Session, state: Any) -> None:
    session.checkpoints.wait()
    # Of several hosts, the signal may have reached another one.
    raise Interrupted(_saved_at(step_of(state)), session.stop.number)


def _saved_at(step: int) -> str:
    return f"stopped and saved at step {step}: the same command goes on there"


def _check_finite(config: Any, astray: int, step: int) -> None:
    """Stops a run that has gone astray."""
    if astray >= config.stop_after_skipped:
        raise UsageError(
            f"loss or gradient was not finite {astray} steps in a row up to step {step}: lower "
            "optimizer.learning_rate, set optimizer.clip_norm, or use model.dtype float32."
        )


def _log_row(session: Session, step: int) -> None:
    """Writes the training metrics since the last row."""
    run, sums = session.run, session.sums.take()

    def by_seed(value: Any) -> list[float]:
        return np.broadcast_to(np.asarray(value), (run.seeds_at_once,)).tolist()

    last = {name: by_seed(sums.pop(name)) for name in ("gradient_norm", "skipped")}
    astray = int(np.max(sums.pop("skipped_in_a_row")))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = {name: by_seed(np.divide(*pair)) for name, pair in sums.items()}
    session.bar.set_postfix_str(f"loss {np.mean(means['loss']):.3f}", refresh=False)
    means |= last | {"learning_rate": by_seed(run.schedule(step - 1))}
    before, session.losses = session.losses, means["loss"]
    for i, log in enumerate(session.logs):
        row: dict[str, Any] = {name: values[i] for name, values in means.items()}
        if before is not None and 0 < SPIKE * before[i] < row["loss"]:
            row["note"] = f"the loss is {row['loss'] / before[i]:.1f} times that of the last row"
        log.write(step, "train", row)
    _check_finite(session.config, astray, step)


def _evaluate(session: Session, state: Any, step: int) -> float | None:
    """Evaluates the weights and their averages; returns what ranks them, None if a signal came."""
    # Several hosts would not leave at one place.
    stopped = session.stop if jax.process_count() == 1 else bool
    evaluate, seeds = session.run.evaluate, session.seeds
    results = {split: evaluate(v, seeds, stopped) for split, v in _by_split(state).items()}
    if None in results.values():
        return None
    for split, means in results.items():
        for i, log in enumerate(session.logs):
            log.write(step, split, {name: float(values[i]) for name, values in means.items()})
    return float(list(results.values())[-1][session.run.monitor].mean())


def _by_split(state: Any) -> dict[str, Any]:
    """The variables that are evaluated, the best last."""
    return {"eval": state.variables} | ({"eval_ema": state.ema} if state.ema else {})


def _finish(session: Session, identity: Identity, state: Any, folder: Path) -> str:
    """Writes each seed's model and, last of all, its result; hosts leave together."""
    why = session.end.get("why", "") if step_of(state) < session.run.steps else ""
    run, config, seconds = session.run, session.config, time.monotonic() - session.began
    seeds, variables = session.seeds, _by_split(state).items()
    scores = {split: run.evaluate(own, seeds) for split, own in variables}
    chosen, skipped = jax.device_get((list(_by_split(state).values())[-1], state.skipped))
    for i, (seed, log) in enumerate(zip(seeds, session.logs, strict=False)):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], chosen) if run.seeds_at_once > 1 else chosen
        log.close()
        metrics = {
            f"{split}/{name}": float(values[i])
            for split, means in scores.items()
            for name, values in means.items()
        }
        metrics |= low_precision_scores(config, run.model, own, seed)
        result = {
            "seed": seed, "steps": step_of(state), "metrics": metrics,
            "seconds": round(seconds / run.seeds_at_once, 1),  # this seed's share
            "skipped": int(np.atleast_1d(skipped)[i]), **({"ended": why} if why else {}),
            "origins": session.origins,
        }  # fmt: skip
        place, whose = folder / f"seed_{seed}", identity._replace(seeds=(seed,))
        more = (place / METRICS, *log.events())
        write_model(place, own, describe(run, config), result, whose, more)
        log.track("finish", result)
    if any(gather("stop" if session.stop() else "")):
        raise Interrupted(session.stop.told, session.stop.number)
    return why


def describe(run: Run, config: Any) -> dict[str, Any]:
    """What `load_model` needs to build the network again, and to feed it images."""
    return {
        "task": config.task, "model": run.description, "classes": list(run.classes),
        "resolution": eval_resolution(config), "eval": config.data.eval.to_dict(), **run.images,
        "held_out": [config.data.name, config.data.eval_split + "@{seed}" * config.data.resplit],
    }  # fmt: skip
