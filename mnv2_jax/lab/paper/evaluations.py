"""Scores of models that a training did not report, such as imported ones: `mnv2 evaluate --out`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.lab.paper.content import HERE, PLAIN, Table
from mnv2_jax.lab.predict import EVALUATION


class Evaluation(NamedTuple):
    """A model's score on a data set.

    Attributes:
      score: accuracy, mean IoU or mean AP, as a share of 1.
      scores: all of them.
      images: of the data.
      options: that the network was built with.
      resolution: of the images.
      several: whether it looked at each image more than once (Table 7's MF).
      weights: whose they are and their file, or the folder of the model if it was trained here.
      short: the same in a word; empty if it was trained here.
      command: that made it.
    """

    score: float
    scores: Mapping[str, float]
    images: int
    options: Mapping[str, Any]
    resolution: int
    several: bool
    weights: str
    short: str
    command: str

    @property
    def at(self) -> tuple[float, int]:
        """Width and resolution."""
        return float(self.options.get("width", 1.0)), self.resolution

    @property
    def segmenter(self) -> tuple[int, bool, bool]:
        """Output stride, whether it has the pyramid, and whether it looked more than once."""
        stride, aspp = self.options.get("output_stride") or 16, self.options.get("aspp", False)
        return int(stride), bool(aspp), self.several

    @property
    def percent(self) -> str:
        """The score in percent, and whose weights they are."""
        return f"{100 * self.score:.1f}" + (f" ({self.short})" if self.short else "")


def find_evaluations(folders: Sequence[Path], data: str, metric: str) -> list[Evaluation]:
    """Finds what was evaluated on a data set.

    Args:
      folders: each holds folders with an evaluation, or is one.
      data: its name, as `imagenet2012`; a set of TensorFlow Datasets of that name counts as well.
      metric: that the models are compared by.

    Raises:
      UsageError: an evaluation cannot be read.
    """
    found = []
    for folder in folders:
        own = folder / EVALUATION
        for path in [own] if own.is_file() else sorted(folder.glob(f"*/{EVALUATION}")):
            try:
                content = json.loads(path.read_text())
                if content["data"].rpartition(":")[2] == data:
                    found.append(_read(content, metric))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UsageError(
                    f"{path} cannot be read ({first_line(error)}): evaluate again, or remove it."
                ) from error
    return found


def _read(content: dict[str, Any], metric: str) -> Evaluation:
    described, views = content["model"], content["views"]
    source = described.get("source")
    weights = f"{source['ecosystem']}: `{source['file']}`" if source else f"`{content['folder']}`"
    return Evaluation(
        float(content["scores"][metric]),
        content["scores"],
        int(content["images"]),
        described["model"],
        int(described["resolution"]),
        len(views["scales"]) > 1 or bool(views["flip"]),
        weights,
        source["ecosystem"] if source else "",
        str(content["command"]),
    )


def evaluation_table(found: Sequence[Evaluation], metric: str) -> Table:
    """Returns the table of evaluated models, each with its command."""
    rows = [
        (
            e.weights,
            *e.at,
            f"{e.images:,}",
            f"{100 * e.score:.2f}",
            f"`{e.command}`",
        )
        for e in found
    ]
    return Table(
        ("weights", "width", "resolution", "images", f"{metric}, here", "command"),
        tuple(rows),
        (PLAIN, PLAIN, PLAIN, HERE, HERE, PLAIN),
        "Evaluated here",
    )
