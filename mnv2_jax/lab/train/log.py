"""What a run writes while it trains: JSON lines, TensorBoard events, and a progress bar."""

import json
import math
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnv2_jax.files import write_file

METRICS, RESULT = "metrics.jsonl", "result.json"


class RunLog:
    """The log of one seed: `metrics.jsonl` and TensorBoard events, gapless over interruptions."""

    def __init__(self, folder: Path, start: int, due: bool = False):
        """Opens the log to continue after step `start`; rows of a lost attempt are dropped.

        Args:
          folder: made if needed.
          start: the step that was restored, or 0 for a new run.
          due: whether that step is still to be evaluated; an attempt that did was lost.
        """
        events = folder / "tensorboard"
        events.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS
        # Without a checkpoint the run begins anew, its evaluation at step 0 too.
        newest = (start, not due)
        kept = [row for row in read_rows(path) if start and (row["step"], _of_eval(row)) <= newest]
        write_file(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a")
        self._open_events(events, start + (not due))
        for row in kept:
            if row["step"] == start and due:  # taken back with the evaluation that is done again
                self._write_events(row.pop("step"), row.pop("split"), row)

    def _open_events(self, folder: Path, purge: int) -> None:
        """Starts a file that takes back the events of other files from step `purge` on."""
        # Written here and now: the thread of TensorBoard's own writer cannot be waited for.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        suffix = f".{len(list(folder.glob('events*')))}"  # names have but the second
        self._events = EventsWriter(str(folder / "events"), suffix)
        self._event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
        start = {"status": "START"}
        self._events.write_event(self._event(wall_time=time.time(), step=purge, session_log=start))

    def _write_events(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Adds what is a number."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            if isinstance(value, (int, float)):
                summary = scalar(f"{split}/{name}", value)
                event = self._event(wall_time=time.time(), step=step, summary=summary)
                self._events.write_event(event)

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Adds a row; values that are not finite become null in the JSON."""
        row = {
            name: value if not isinstance(value, float) or math.isfinite(value) else None
            for name, value in values.items()
        }
        self._file.write(json.dumps({"step": step, "split": split, **row}) + "\n")
        self._file.flush()
        self._write_events(step, split, values)

    def flush(self) -> None:
        """Puts all on disk; before a checkpoint, or a kill later on would leave a gap."""
        self._events.flush()

    def close(self) -> None:
        """Closes both files.

        Raises:
          OSError: what is left cannot be written.
        """
        try:
            self._file.close()
            self._events.close()
        except OSError:
            say_no_more()
            raise


def say_no_more() -> None:
    """Mutes what threads and exit handlers of libraries say from now on.

    For a process that leaves with a line of its own because nothing can be written: Orbax's threads
    try again, and would say so each time.
    """
    threading.excepthook = sys.unraisablehook = lambda _: None


def _of_eval(row: dict[str, Any]) -> bool:
    return row["split"].startswith("eval")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads a log; a last line cut by a crash is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def read_curves(folders: Sequence[Path], metric: str) -> tuple[list[int], np.ndarray] | None:
    """Reads a metric over training, such as "eval/accuracy", from the logs of several seeds.

    Returns:
      Steps, and values as (seeds, steps); None unless every seed has a log with the same steps.
    """
    split, _, name = metric.partition("/")
    logs = [[r for r in read_rows(f / METRICS) if r["split"] == split] for f in folders]
    steps = [[row["step"] for row in rows] for rows in logs]
    if not logs or not steps[0] or any(other != steps[0] for other in steps):
        return None
    return steps[0], np.array([[row[name] for row in rows] for rows in logs], float)


def progress_bar(total: int, done: int, title: str, quiet: bool) -> Any:
    """A progress bar with rate and time left, on standard error; silent if `quiet`.

    Off a terminal it prints a line every 30 seconds instead of redrawing one.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=title,
        unit="step",
        disable=quiet,
        dynamic_ncols=terminal,
        ascii=not terminal,
        mininterval=0.2 if terminal else 30.0,
        leave=False,
    )
