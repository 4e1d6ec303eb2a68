"""Results of experiments, found in folders: `results.json` of every sweep that finished."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.lab.paper.content import Sources
from mnv2_jax.lab.train.log import METRICS, read_rows
from mnv2_jax.lab.train.report import REPORT, RESULTS

SWEEP = "config.json"  # of a sweep, beside its results; a committed result has none


class Result(NamedTuple):
    """A finished sweep.

    Attributes:
      folder: where it is.
      metric: that its variants are compared by, as "eval/accuracy".
      scores: of every variant, one for each seed, as a share of 1.
      steps: of training.
      command: that made it.
      setting: what its report says was measured; empty if there is no report.
      config: the sweep's configuration by dotted keys; empty where only results were kept.
    """

    folder: Path
    metric: str
    scores: dict[str, list[float]]
    steps: int
    command: str
    setting: str
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the folder: the experiment, and its preset and overrides if it has any."""
        return self.folder.name

    def option(self, variant: str, key: str, default: Any) -> Any:
        """What a key of the configuration was for a variant; as text if a command line said it.

        >>> command = "python main.py --config x.py --config.model.width=1.4"
        >>> result = Result(Path("x"), "eval/accuracy", {}, 1, command, "", {})
        >>> result.option("default", "model.width", 1.0)
        '1.4'
        """
        said = re.search(rf"--config\.{re.escape(key)}[= ](\S+)", self.command)
        known = self.config.get(key, said[1].strip("'\"") if said else default)
        return self.config.get(f"sweep.variants.{variant}.{key}", known)

    def seed_folders(self, variant: str) -> list[Path]:
        """The folders of a variant's models and logs; a committed result has none."""
        found = sorted((self.folder / variant).glob("seed_*"), key=_seed)
        return [folder for folder in found if folder.is_dir()]

    def curves(self, variant: str) -> tuple[list[int], np.ndarray] | None:
        """Steps, and the metric over training as (seeds, steps); None if there are no logs."""
        split, _, name = self.metric.partition("/")
        curves, steps = [], []
        for folder in self.seed_folders(variant):
            rows = [row for row in read_rows(folder / METRICS) if row["split"] == split]
            steps = [row["step"] for row in rows]
            curves.append([row[name] for row in rows])
        if not curves or not steps or any(len(curve) != len(steps) for curve in curves):
            return None
        return steps, np.array(curves, float)


def find(folders: Sequence[Path], experiment: str) -> list[Result]:
    """Finds the results of an experiment at all scales, of each name the first one.

    Args:
      folders: each a sweep's own folder or one that holds such folders; earlier ones win.
      experiment: as its configuration is named; `NAME-…`, a preset or overrides, counts as well.

    Raises:
      UsageError: a `results.json` is there and cannot be read.
    """
    found: dict[str, Result] = {}
    for folder in folders:
        for place in sorted(_sweeps(folder)):
            fits = place.name == experiment or place.name.startswith(f"{experiment}-")
            if fits and place.name not in found:
                found[place.name] = read(place)
    return list(found.values())


def read(folder: Path) -> Result:
    """Reads the result of a sweep.

    Raises:
      UsageError: it cannot be read.
    """
    path = folder / RESULTS
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        metric = content["metric"]
        runs = content["runs"]
        scores = {
            name: [float(run["metrics"][metric]) for run in found] for name, found in runs.items()
        }
        steps = int(next(iter(runs.values()))[0]["steps"])
        command = str(content["command"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UsageError(
            f"{path} cannot be read ({first_line(error)}): run its experiment again, or remove it."
        ) from error
    except StopIteration:
        raise UsageError(f"{path} holds no runs: run its experiment again, or remove it.") from None
    return Result(folder, metric, scores, steps, command, _setting(folder), _config(folder))


def spread(values: list[float]) -> str:
    """Formats shares of 1 in percent: mean, and standard deviation of several.

    >>> spread([0.5]), spread([0.5, 0.52])
    ('50.0', '51.0 ± 1.4')
    """
    percent = 100 * np.asarray(values)
    return f"{percent.mean():.1f}" + (f" ± {percent.std(ddof=1):.1f}" if len(values) > 1 else "")


def imagenet_scores(sources: Sources) -> dict[tuple[float, int], Result]:
    """Finds runs on ImageNet by (width, resolution), each with that variant's scores alone."""
    found: dict[tuple[float, int], Result] = {}
    for result in find(sources.runs, "imagenet") + find(sources.runs, "tradeoff-imagenet2012"):
        for variant, scores in result.scores.items():
            at = width_and_size(result, variant, 224)
            if result.option(variant, "data.name", "imagenet2012") == "imagenet2012":
                found.setdefault(at, result._replace(scores={variant: scores}))
    return found


def width_and_size(result: Result, variant: str, size: int) -> tuple[float, int]:
    """Returns width and resolution of a variant; `size` is the experiment's own resolution."""
    named = re.fullmatch(r"width_(\d+)-size_(\d+)", variant)  # as experiments/tradeoff.py names it
    if named:
        return int(named[1]) / 100, int(named[2])
    width = result.option(variant, "model.width", 1.0)
    return float(width), int(result.option(variant, "data.resolution", size))


def voc_scores(sources: Sources) -> dict[tuple[int, bool], list[float]]:
    """Finds the mean IoU on VOC by (output stride, pyramid)."""
    found: dict[tuple[int, bool], list[float]] = {}
    for name in ("segment_voc", "ablate_output_stride-voc"):
        for result in find(sources.runs, name):
            for variant, scores in result.scores.items():
                named = re.fullmatch(r"stride_(\d+)(-aspp)?", variant)
                stride = named[1] if named else result.option(variant, "model.output_stride", 16)
                aspp = named[2] if named else result.option(variant, "segment.aspp", False)
                found.setdefault((int(stride), str(aspp) in ("True", "-aspp")), scores)
    return found


def sweep_config(model: Path) -> dict[str, Any]:
    """Returns the configuration, by dotted keys, of the sweep that a model's folder is part of.

    It is empty where the model came from somewhere else.
    """
    return _config(model.parent.parent)


def _config(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / SWEEP).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "data.name" in content else {}


def _sweeps(folder: Path) -> Iterator[Path]:
    if (folder / RESULTS).is_file():
        yield folder
    else:
        yield from (path.parent for path in folder.glob(f"*/{RESULTS}"))


def _setting(folder: Path) -> str:
    """Takes the sentence that says what was measured from a sweep's report."""
    try:
        paragraphs = (folder / REPORT).read_text().split("\n\n")
    except OSError:
        return ""
    return paragraphs[1].partition(". ")[0] if len(paragraphs) > 1 else ""


def _seed(folder: Path) -> int:
    number = folder.name.rpartition("_")[2]
    return int(number) if number.isdigit() else -1
