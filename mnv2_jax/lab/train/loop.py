"""The one training loop: batches in, logs, checkpoints and a trained model out."""

import hashlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.files import write_json
from mnv2_jax.lab.devices.hosts import gather, leave
from mnv2_jax.lab.model_folder import TENSORS, save_model
from mnv2_jax.lab.train.checkpoint import Checkpoints
from mnv2_jax.lab.train.log import RESULT, RunLog, progress
from mnv2_jax.lab.train.precision import low_precision_scores
from mnv2_jax.lab.train.run import ASKED, SAVE, STOP, Run

IN_FLIGHT = 2  # steps
SPIKE = 2.0  # a loss so many times that of the row before is noted in the log


class Interrupted(KeyboardInterrupt):
    """Training stopped on a signal, with everything saved; `number` is the signal's."""

    def __init__(self, message: str, number: int = signal.SIGINT):
        super().__init__(message)
        self.number = number


class Stop:
    """The signal that asked the training to stop, once one has."""

    number: int | None = None

    def __call__(self) -> bool:
        """Whether there was one."""
        return self.number is not None


def fit(
    run: Run, seeds: tuple[int, ...], config: Any, folder: Path, title: str, quiet: bool = False
) -> None:
    """Trains a run to its end, from its newest checkpoint if there is one.

    Writes for each seed, under `folder/seed_N`: `metrics.jsonl`, TensorBoard events, the trained
    model, and last `result.json`, whose presence says that the seed is finished.

    Args:
      run: what to train.
      seeds: to train it with, as many as it trains at once.
      config: the configuration it was made from.
      folder: of the variant.
      title: for the progress bar.
      quiet: no progress bar.

    Raises:
      Interrupted: on SIGTERM or Ctrl-C, after saving.
      UsageError: the loss stays not finite, or nothing can be written.
    """
    listed = "-".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    checkpoints = Checkpoints(folder / f"checkpoints_{listed}", config.keep_checkpoints)
    keys = run.keys(seeds)
    restored = checkpoints.restore(
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=run.plan.state),
            jax.eval_shape(run.fresh, keys),
        )
    )
    state, extra = (run.fresh(keys), {}) if restored is None else restored
    start = step_of(state)
    due = extra.get("due", start == 0)
    first_process = jax.process_index() == 0
    clock = Clock(extra.get("seconds", 0.0))
    asks = Asks(clock, 60 * config.checkpoint_minutes)
    session = Session(
        run=run,
        config=config,
        keys=keys,
        rows=run.rows(seeds, start, asks),
        checkpoints=checkpoints,
        logs=[RunLog(folder / f"seed_{seed}", start, due) for seed in seeds * first_process],
        bar=progress(run.steps, start, title, quiet or not first_process),
        window=Window(extra.get("window"), extra.get("losses")),
        clock=clock,
        asks=asks,
    )
    try:
        with stop_requested(asks.stop):
            state = _train(session, state, due)
            checkpoints.wait()
            _finish(session, seeds, state, folder)
    except jax.errors.JaxRuntimeError as error:
        leave(error)  # what follows would wait for the host that is gone
    finally:
        session.bar.close()
        for log in session.logs:
            log.close()
        checkpoints.close()


class Session(NamedTuple):
    """What the loop holds besides the state."""

    run: Run
    config: Any
    keys: Any
    rows: Iterator[Any]
    checkpoints: Checkpoints
    logs: list[RunLog]  # one for each seed, on the first process only
    bar: Any
    window: "Window"
    clock: "Clock"
    asks: "Asks"


class Clock:
    """Seconds of training, over interruptions."""

    def __init__(self, before: float):
        self._start = time.monotonic() - before

    def __call__(self) -> float:
        return time.monotonic() - self._start


class Asks:
    """What this host asks of all hosts before each step: to save by the clock, to stop on a signal.

    Clocks differ and signals reach one host, but all have to save and leave at the same step.
    """

    def __init__(self, clock: Clock, seconds: float):
        self.stop = Stop()
        self._clock, self._seconds = clock, seconds
        self.saved()

    def saved(self) -> None:
        """Starts to count anew."""
        self._last = self._clock()

    def __call__(self) -> int:
        return SAVE * (self._clock() - self._last > self._seconds) | STOP * self.stop()


def step_of(state: Any) -> int:
    """The number of steps that a state has behind it."""
    return int(np.max(jax.device_get(state.step)))


class Window:
    """Training metrics summed since the last row of the log; survives an interruption.

    Sums run from step to step in float64, so that they do not depend on where a run was cut.
    """

    def __init__(self, saved: dict[str, Any] | None = None, losses: list[float] | None = None):
        self._sums: dict[str, Any] = saved or {}
        self.losses = losses  # of the last row, for each seed
        self._waiting: list[Any] = []  # on the device still
        self.asked = 0  # by any host, at the newest step that was waited for

    def add(self, metrics: dict[str, Any]) -> int:
        """Adds a step's metrics; waits only for those of `IN_FLIGHT` steps before.

        Two steps under way keep a device busy. With more, the progress bar would run ahead, and a
        run that is told to stop would first have to work them off.

        Returns:
          How many steps in a row were not finite, up to the one that was waited for.
        """
        self._waiting.append(metrics)
        if len(self._waiting) <= IN_FLIGHT:
            return 0
        known = self._waiting[-1 - IN_FLIGHT]
        self.asked = int(jax.device_get(known.get(ASKED, 0)))
        return int(np.max(jax.device_get(known["skipped_in_a_row"])))

    def sums(self) -> dict[str, Any]:
        """Waits for all steps; returns name -> (sum, count) and the last of the other metrics."""
        for metrics in jax.device_get(self._waiting):
            self.asked = int(metrics.pop(ASKED, 0))
            for name, (total, count) in metrics.pop("sums").items():
                before = self._sums.get(name, (0.0, 0.0))
                pair = (np.float64(total) + before[0], np.float64(count) + before[1])
                self._sums[name] = [np.asarray(v).tolist() for v in pair]
            self._sums |= {name: np.asarray(v).tolist() for name, v in metrics.items()}
        self._waiting = []
        return self._sums

    def clear(self) -> None:
        """Starts the next window."""
        self._sums = {}


def _train(session: Session, state: Any, due: bool) -> Any:
    """Trains to the end; `due` says that the state to start from has not been evaluated yet."""
    run, config, window = session.run, session.config, session.window
    eval_every = max(1, round(config.eval_every_epochs * run.epoch_steps))
    resident = jax.device_put(run.train.resident, run.plan.everywhere)
    alone = jax.process_count() == 1
    start = saved = step_of(state)
    if due and _evaluate(session, state, start) is None:
        _save_and_leave(session, state, due=True)
    for step in range(start + 1, run.steps + 1):
        state, metrics = run.step(state, resident, next(session.rows), session.keys)
        _check_finite(config, window.add(metrics), step)
        session.bar.update(1)
        last = step == run.steps
        if step % config.log_every == 0 or last:
            _log_window(session, step)
        due = bool(config.eval_every_epochs and step % eval_every == 0) or last
        monitor = _evaluate(session, state, step) if due else None
        due = due and monitor is None
        asked = session.asks() if alone else window.asked
        if asked & STOP and (due or not last):
            _save_and_leave(session, state, due, monitor)
        # Steps under way at the last save still carry what was asked before it.
        answered = not alone and step - saved <= IN_FLIGHT
        if monitor is not None or (asked & SAVE and not answered):
            _save(session, state, due, monitor)
            session.asks.saved()
            saved = step
    return state


def _save(session: Session, state: Any, due: bool, monitor: float | None) -> None:
    window = session.window
    extra = {"seconds": session.clock(), "window": window.sums(), "losses": window.losses}
    extra["due"] = due
    for log in session.logs:
        log.flush()
    session.checkpoints.save(state, extra, monitor)


def _save_and_leave(
    session: Session, state: Any, due: bool, monitor: float | None = None
) -> NoReturn:
    _save(session, state, due, monitor)
    session.checkpoints.wait()
    message = f"stopped and saved at step {step_of(state)}: the same command goes on there"
    # Of several hosts, the signal may have reached another one.
    raise Interrupted(message, session.asks.stop.number or signal.SIGTERM)


def _check_finite(config: Any, astray: int, step: int) -> None:
    """Stops a run that has gone astray."""
    if astray >= config.stop_after_skipped:
        raise UsageError(
            f"loss or gradient was not finite {astray} steps in a row up to step {step}: lower "
            "optimizer.learning_rate, set optimizer.clip_norm, or use model.dtype float32."
        )


def _log_window(session: Session, step: int) -> None:
    """Writes the training metrics since the last time."""
    run, config, window = session.run, session.config, session.window
    found = window.sums()
    window.clear()

    def by_seed(value: Any) -> list[float]:
        return np.broadcast_to(np.asarray(value), (run.replicas,)).tolist()

    last = {name: by_seed(found.pop(name)) for name in ("gradient_norm", "skipped")}
    astray = int(np.max(found.pop("skipped_in_a_row")))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = {name: by_seed(np.divide(*pair)) for name, pair in found.items()}
    session.bar.set_postfix_str(f"loss {np.mean(means['loss']):.3f}", refresh=False)
    means |= last | {"learning_rate": by_seed(run.schedule(step - 1))}
    before, window.losses = window.losses, means["loss"]
    for i, log in enumerate(session.logs):
        row: dict[str, Any] = {name: values[i] for name, values in means.items()}
        if before is not None and 0 < SPIKE * before[i] < row["loss"]:
            row["note"] = f"the loss is {row['loss'] / before[i]:.1f} times that of the last row"
        log.write(step, "train", row)
    _check_finite(config, astray, step)


def _evaluate(session: Session, state: Any, step: int) -> float | None:
    """Evaluates the raw weights, and the averaged ones beside them.

    Returns:
      What ranks them; None if a signal came first. Several hosts would not leave at one place.
    """
    run = session.run
    stopped = session.asks.stop if jax.process_count() == 1 else bool
    results = {"eval": run.evaluate(state.variables, stopped)}
    if state.ema:
        results["eval_ema"] = run.evaluate(state.ema, stopped)
    if None in results.values():
        return None
    for split, means in results.items():
        for i, log in enumerate(session.logs):
            log.write(step, split, {name: float(values[i]) for name, values in means.items()})
    return float(list(results.values())[-1][run.monitor].mean())


def _finish(session: Session, seeds: tuple[int, ...], state: Any, folder: Path) -> None:
    """Writes each seed's model and, last of all, its result; hosts leave together."""
    run, config, seconds = session.run, session.config, session.clock()
    best = {"eval": state.variables, **({"eval_ema": state.ema} if state.ema else {})}
    scores = {split: run.evaluate(variables) for split, variables in best.items()}
    chosen, skipped = jax.device_get((list(best.values())[-1], state.skipped))
    for i, seed in enumerate(seeds if jax.process_index() == 0 else ()):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], chosen) if run.replicas > 1 else chosen
        place = folder / f"seed_{seed}"
        save_model(place, own, describe(run, config))
        metrics = {
            f"{split}/{name}": float(values[i])
            for split, means in scores.items()
            for name, values in means.items()
        }
        metrics |= low_precision_scores(config, run.model, own)
        result = {
            "seed": seed,
            "steps": run.steps,
            "seconds": round(seconds / run.replicas, 1),  # of this seed's share of the training
            "metrics": metrics,
            "model_sha256": hashlib.sha256((place / TENSORS).read_bytes()).hexdigest(),
            "skipped": int(np.atleast_1d(skipped)[i]),
        }
        write_json(place / RESULT, result)
    gather("finished")


def describe(run: Run, config: Any) -> dict[str, Any]:
    """Returns what `load_model` needs to build the network again, and to feed it images."""
    return {
        "task": config.task,
        "model": run.description,
        "classes": list(run.classes),
        "resolution": config.data.resolution,
        "eval": config.data.eval.to_dict(),
    }


@contextmanager
def stop_requested(stop: Stop) -> Iterator[None]:
    """Makes the first SIGTERM or Ctrl-C a request; a second Ctrl-C leaves at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request(number: int, frame: Any) -> None:
        del frame
        if stop() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.number = stop.number or number

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
