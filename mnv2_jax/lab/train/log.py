"""What a run writes while it trains: JSON lines, TensorBoard events, trackers, a progress bar."""

import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnv2_jax.errors import typed_line
from mnv2_jax.files import UnreadableFile, read_file, write_file
from mnv2_jax.lab.seal import MAX_JSON
from mnv2_jax.lab.train.record import METRICS

EVENTS = "tensorboard/events"
# (config, folder, step) -> (write, finish), called as `tracked` says
Tracker = Callable[[dict[str, Any], Path, int], tuple[Callable[..., Any], Callable[..., Any]]]
log = logging.getLogger(__name__)


class RunLog:
    """The log of one seed: `metrics.jsonl` and TensorBoard events, gapless over interruptions.

    Both are written anew from the rows that a checkpoint holds, whatever became of the files.
    `rows` are all that were written, each after the time of its writing; `track` is what `tracked`
    returned, which is told of each.
    """

    def __init__(self, folder: Path, rows: Iterable[tuple[float, dict[str, Any]]] = ()):
        # Written here and now: the thread of TensorBoard's own writer cannot be waited for.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._events_of = folder / EVENTS
        self._events_of.parent.mkdir(parents=True, exist_ok=True)
        for path in self.events():
            path.unlink()
        self.rows, self.track = list(rows), tracked()
        path = folder / METRICS
        write_file(path, lines_of(self.rows))
        self._file = path.open("a")
        self._events = EventsWriter(str(self._events_of))
        self._event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
        # Takes back what a TensorBoard that looks on has of the files that are gone.
        start = {"status": "START"}
        self._events.write_event(self._event(wall_time=time.time(), step=0, session_log=start))
        for when, row in self.rows:
            self._write_events(when, row)

    def events(self) -> list[Path]:
        """The files of events."""
        return sorted(self._events_of.parent.glob(f"{self._events_of.name}*"))

    def _write_events(self, when: float, row: dict[str, Any]) -> None:
        """Adds what is a number."""
        from tensorboardX.summary import scalar

        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                summary = scalar(f"{row['split']}/{name}", value)
                event = self._event(wall_time=when, step=row["step"], summary=summary)
                self._events.write_event(event)

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Adds a row; values that are not finite become null in the JSON."""
        numbers = {k: value for k, value in values.items() if isinstance(value, (int, float))}
        absent = dict.fromkeys(k for k, value in numbers.items() if not math.isfinite(value))
        self.rows.append((time.time(), {"step": step, "split": split, **values, **absent}))
        self._file.write(lines_of(self.rows[-1:]))
        self._file.flush()
        self._write_events(self.rows[-1][0], {"step": step, "split": split, **numbers})
        self.track("write", step, split, numbers)

    def flush(self) -> None:
        """Puts all on disk; a checkpoint is not to know more than the files."""
        os.fsync(self._file.fileno())
        self._events.flush()

    def close(self) -> None:
        """Closes both files, once; an OSError says that what is left cannot be written."""
        if self._file.closed:
            return
        try:
            self._file.close()
            self._events.close()
        except OSError:
            say_no_more()
            raise


def tracked(tracker: Tracker | None = None, *about: Any) -> Callable[..., None]:
    """Starts a tracker with `about` = (config, folder, step); returns what calls it by name.

    Only the first process does, for each seed:

    - `tracker(config, folder, step)` when the training starts or goes on. `config` is flat, with
      JSON's values, and has `variant` and `seed`. `folder` is the seed's: what is kept there, such
      as the id of the tracker's run, is there again later. `step` is the checkpoint's, or 0: rows
      that it holds do not come again; those written after it do, from that step on, with the same
      steps in the same order.
    - `write(step, split, values)` for each row of `metrics.jsonl`: its numbers, finite or not.
    - `finish(result)` once: with what `result.json` says, when that and the model are written; with
      None where the training stops before. A process that is killed does not call it.

    What these raise is told in one warning, and the training of the seed goes on without them.
    """
    functions: dict[str, Any] = {"start": tracker} if tracker else {}

    def call(name: str, *arguments: Any) -> None:
        function = functions.get(name) if name == "write" else functions.pop(name, None)
        try:
            made: Any = function and function(*arguments)
            if name == "start" and function:
                functions["write"], functions["finish"] = made
        except Exception as error:
            functions.clear()
            which = f"{getattr(tracker, '__module__', '')}.{getattr(tracker, '__name__', tracker)}"
            told = typed_line(error)
            log.warning("%s: tracker %s is left out from now on: %s", about[1], which, told)

    call("start", *about)
    return call


def lines_of(rows: Iterable[tuple[float, dict[str, Any]]]) -> str:
    """The content of `metrics.jsonl`."""
    return "".join(json.dumps(row) + "\n" for _, row in rows)


def rows_before(path: Path, step: int, due: bool) -> list[tuple[float, dict[str, Any]]]:
    """Reads the rows of a log that a checkpoint of release 0.1.0 knew of, which kept none itself.

    `due` says that its step was still to be evaluated; an attempt that did was lost.
    """
    known = (step, not due)
    rows = [r for r in read_rows(path) if (r["step"], r["split"].startswith("eval")) <= known]
    return [(time.time(), row) for row in rows]


def say_no_more() -> None:
    """Mutes threads and exit handlers of a process that leaves, for nothing can be written.

    Orbax's threads try again, and would say so each time.
    """
    threading.excepthook = sys.unraisablehook = lambda _: None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads a log as far as its lines are rows; the last one may have been cut by a crash."""
    rows = []
    try:
        lines = read_file(path, MAX_JSON).decode(errors="replace").splitlines()
    except UnreadableFile:
        return []
    for line in lines:
        try:
            row = json.loads(line)
            rows.append(row | {"step": int(row["step"]), "split": str(row["split"])})
        except (ValueError, TypeError, LookupError, RecursionError):
            break
    return rows


def read_curves(folders: Sequence[Path], metric: str) -> tuple[list[int], np.ndarray] | None:
    """Reads a metric over training, such as "eval/accuracy", from the logs of several seeds.

    Returns steps, and values as (seeds, steps); None unless every log has the same steps.
    """
    split, _, name = metric.partition("/")
    logs = [[r for r in read_rows(f / METRICS) if r["split"] == split] for f in folders]
    steps = [[row["step"] for row in rows] for rows in logs]
    if not logs or not steps[0] or any(other != steps[0] for other in steps):
        return None
    return steps[0], np.array([[row.get(name) for row in rows] for rows in logs], float)


def progress_bar(total: int | None, done: int, title: str, quiet: bool, unit: str = "step") -> Any:
    """A progress bar with rate and time left, on standard error; silent if `quiet`.

    Off a terminal it prints a line every 30 seconds instead of redrawing one.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    looks = {"dynamic_ncols": terminal, "ascii": not terminal, "leave": False, "unit": unit}
    pace = 0.2 if terminal else 30.0
    return tqdm(desc=title, total=total, initial=done, disable=quiet, mininterval=pace, **looks)
