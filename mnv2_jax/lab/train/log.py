"""What a run writes while it trains: JSON lines, TensorBoard events, and a progress bar."""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnv2_jax.files import UnreadableFile, read_file, write_file
from mnv2_jax.lab.seal import MAX_JSON
from mnv2_jax.lab.train.record import METRICS

EVENTS = "tensorboard/events"


class RunLog:
    """The log of one seed: `metrics.jsonl` and TensorBoard events, gapless over interruptions.

    Both are written anew from the rows that a checkpoint holds, whatever became of the files.

    Attributes:
      rows: all that were written, each after the time of its writing.
    """

    def __init__(self, folder: Path, rows: Iterable[tuple[float, dict[str, Any]]] = ()):
        # Written here and now: the thread of TensorBoard's own writer cannot be waited for.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._events_of = folder / EVENTS
        self._events_of.parent.mkdir(parents=True, exist_ok=True)
        for path in self.events():
            path.unlink()
        self.rows = list(rows)
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
        row: dict[str, Any] = {"step": step, "split": split} | {
            name: value if not isinstance(value, float) or math.isfinite(value) else None
            for name, value in values.items()
        }
        self.rows.append((time.time(), row))
        self._file.write(lines_of(self.rows[-1:]))
        self._file.flush()
        self._write_events(self.rows[-1][0], {**row, **values})

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
    """Mutes what threads and exit handlers of libraries say from now on.

    For a process that leaves with a line of its own because nothing can be written: Orbax's threads
    try again, and would say so each time.
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


def progress_bar(total: int, done: int, title: str, quiet: bool) -> Any:
    """A progress bar with rate and time left, on standard error; silent if `quiet`.

    Off a terminal it prints a line every 30 seconds instead of redrawing one.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    looks = {"dynamic_ncols": terminal, "ascii": not terminal, "leave": False}
    pace = 0.2 if terminal else 30.0
    count = {"total": total, "initial": done, "unit": "step"}
    return tqdm(desc=title, disable=quiet, mininterval=pace, **count, **looks)
