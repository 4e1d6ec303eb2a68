"""What a run writes while it trains: JSON lines, TensorBoard events, and a progress bar."""

import json
import math
import os
import sys
import threading
from pathlib import Path
from typing import Any

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
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS
        # Without a checkpoint the run begins anew, its evaluation at step 0 too.
        newest = (start, not due)
        kept = [row for row in read_rows(path) if start and (row["step"], _of_eval(row)) <= newest]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, path)
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Adds a row; values that are not finite become null in the JSON."""
        row = {
            name: value if not isinstance(value, float) or math.isfinite(value) else None
            for name, value in values.items()
        }
        self._file.write(json.dumps({"step": step, "split": split, **row}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Closes both files.

        Raises:
          OSError: what is left cannot be written.
        """
        try:
            self._file.close()
            self._board.close()
        except OSError:
            say_no_more()
            raise


def say_no_more() -> None:
    """Mutes what threads and exit handlers of libraries say from now on.

    For a process that leaves with a line of its own because nothing can be written: TensorBoard's
    and Orbax's threads try again, and would say so each time.
    """
    threading.excepthook = sys.unraisablehook = lambda _: None


def _of_eval(row: dict[str, Any]) -> bool:
    return row["split"].startswith("eval")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is there whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1))
    os.replace(partial, path)


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


def progress(total: int, done: int, title: str, quiet: bool) -> Any:
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
