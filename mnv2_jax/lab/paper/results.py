"""Results found in folders: `results.json` of finished sweeps, `evaluation.json` of evaluations."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.lab.paper.content import Sources, Table
from mnv2_jax.lab.predict import EVALUATION
from mnv2_jax.lab.seal import readable
from mnv2_jax.lab.train import report
from mnv2_jax.lab.train.decision import DELTA, planned_looks
from mnv2_jax.lab.train.log import read_curves
from mnv2_jax.lab.train.record import CONFIG, read_json

NOT_RUN = "not run"
UNKNOWN = "Measured by an earlier version, which did not keep the setting"


class Network(NamedTuple):
    """The network of a result."""

    resolution: int  # of its images
    madds: int  # 0 where it was only evaluated
    width_and_size: tuple[float, int]
    stride_and_pyramid: tuple[int, bool]  # of a segmenter


def _network(options: Mapping[str, Any], resolution: Any, madds: Any = 0) -> Network:
    width, stride = float(options.get("width", 1.0)), int(options.get("output_stride") or 16)
    size, pyramid = int(resolution), bool(options.get("aspp"))
    return Network(size, int(madds), (width, size), (stride, pyramid))


class Result(NamedTuple):
    """A finished sweep."""

    folder: Path  # named after the experiment, its preset and its overrides
    metric: str  # that the variants are compared by, such as "eval/accuracy"
    scores: dict[str, list[float]]  # by variant, one for each seed, as a share of 1
    seeds: dict[str, list[int]]  # by variant
    command: str
    data: str  # name of the data set; empty where it is not known
    what: str  # the sentence that says what was measured
    networks: dict[str, Network]  # by variant, as far as they are known
    delta: float  # the smallest difference of interest
    looks: list[int]  # the numbers of seeds at which it was looked at

    @property
    def first(self) -> list[float]:
        """The scores of the first variant."""
        return next(iter(self.scores.values()))

    @property
    def caption(self) -> str:
        """What was measured, and the command that did."""
        return f"{self.what} (`{self.command}`)"

    def curves(self, variant: str) -> tuple[list[int], np.ndarray] | None:
        """Returns steps, and the metric over training as (seeds, steps); None without logs."""
        folders = [self.folder / variant / f"seed_{seed}" for seed in self.seeds[variant]]
        try:
            return read_curves(folders, self.metric)
        except (TypeError, ValueError):  # what is no number
            return None

    def table(self) -> Table:
        """Returns the table of the scores, whatever they measure."""
        scores = self.scores.items()
        rows = [(name.replace("_", " "), len(own), report.spread(own)) for name, own in scores]
        return Table(("variant", "seeds", "%, here"), rows, "-hh", self.caption)


class Evaluation(NamedTuple):
    """A model's score on a data set, as `mnv2 evaluate --out` wrote it."""

    score: float  # accuracy, mean IoU or mean AP, as a share of 1
    images: int  # that it was measured on
    network: Network
    several: bool  # whether it saw each image more than once (MF in Table 7)
    source: str  # the library that the weights were imported from; empty if they were trained here
    weights: str  # the source and its file, or the folder of the model
    command: str


def find(folders: Sequence[Path], experiment: str) -> list[Result]:
    """Finds the results of an experiment at all scales (`NAME`, `NAME-…`), earlier ones win."""
    places: dict[str, Path] = {}
    for path in _files(folders, report.RESULTS):
        name = path.parent.name
        if name == experiment or name.startswith(f"{experiment}-"):
            places.setdefault(name, path)
    return [read(path.parent) for path in places.values()]


def read(folder: Path) -> Result:
    """Reads the result of a sweep; networks that it does not name are counted on its models."""
    with readable(folder / report.RESULTS, "run its experiment again") as content:
        runs, setting = content["runs"], content.get("setting", {})
        seeds = {name: [int(run["seed"]) for run in each] for name, each in runs.items()}
        described = setting.get("networks") or report.describe_networks(folder, seeds)
        scores = {
            name: list(map(report.share, own)) for name, own in report.scores_of(content).items()
        }
        if not scores or not all(scores.values()):
            raise ValueError("it holds no runs")
        networks = {
            name: _network(network["options"], network["resolution"], network["madds"])
            for name, network in described.items()
        }
        data = str(setting.get("data") or sweep_config(folder).get("data.name", ""))
        what = report.measured(setting) if setting else UNKNOWN
        command = str(content["command"])
        config = content.get("config", {})
        delta = float(config.get("sweep.delta", DELTA))
        most = len(config.get("sweep.seeds", ())) or max(map(len, seeds.values()))
        looks = planned_looks(config.get("sweep.looks", ()), most)
        known = (seeds, command, data, what, networks, delta, looks)
        return Result(folder, content["metric"], scores, *known)


def find_evaluations(folders: Sequence[Path], data: str, metric: str) -> list[Evaluation]:
    """Finds a metric of what was evaluated on a data set, here or in TensorFlow Datasets."""
    evaluations = []
    for path in _files(folders, EVALUATION):
        with readable(path, "evaluate again") as content:
            if content["data"].rpartition(":")[2] != data:
                continue
            described, views = content["model"], content["views"]
            source = described.get("source") or {"ecosystem": "", "file": ""}
            weights = f"{source['ecosystem']}: `{source['file']}`"
            evaluations.append(Evaluation(
                score=report.share(content["scores"][metric]), images=int(content["images"]),
                network=_network(described["model"], described["resolution"]),
                several=len(views["scales"]) > 1 or bool(views["flip"]),
                source=str(source["ecosystem"]), command=str(content["command"]),
                weights=weights if source["file"] else f"`{content['folder']}`",
            ))  # fmt: skip
    return evaluations


def imagenet_evaluations(sources: Sources) -> list[Evaluation]:
    """Finds the classifiers evaluated on ImageNet as the paper does, at one look an image."""
    evaluated = find_evaluations(sources.runs, "imagenet2012", "accuracy")
    return [evaluation for evaluation in evaluated if not evaluation.several]


def evaluation_table(evaluations: Sequence[Evaluation], metric: str) -> Table:
    """Returns the table of evaluated models, each with its command."""
    rows = []
    for e in evaluations:
        score = (f"{e.images:,}", f"{100 * e.score:.2f}", f"`{e.command}`")
        rows.append((e.weights, *e.network.width_and_size, *score))
    header = ("weights", "width", "resolution", "images", f"{metric}, here", "command")
    return Table(header, rows, "---hh-", "Evaluated here")


def cell(trained: Sequence[float], evaluated: Sequence[Evaluation], **network: Any) -> str:
    """Formats what was trained here and what was evaluated, with the source of the weights.

    Of what was evaluated, networks with the given fields count.
    """
    alike = [e for e in evaluated if network.items() <= e.network._asdict().items()]
    cells = [report.spread(trained)] if trained else []
    cells += [f"{100 * e.score:.1f}" + f" ({e.source})" * bool(e.source) for e in alike]
    return ", ".join(cells) or NOT_RUN


def imagenet_results(sources: Sources) -> dict[tuple[float, int], Result]:
    """Finds what was trained on ImageNet by (width, resolution), each with one variant's scores."""
    found = _each_variant(sources, "imagenet", "tradeoff-imagenet2012")
    return {network.width_and_size: r for network, r in found if r.data == "imagenet2012"}


def voc_scores(sources: Sources) -> dict[tuple[int, bool], list[float]]:
    """Finds the mean IoU on VOC 2012 by (output stride, pyramid)."""
    found = _each_variant(sources, "segment_voc", "ablate_output_stride-voc")
    return {network.stride_and_pyramid: result.first for network, result in found}


def _each_variant(sources: Sources, *experiments: str) -> list[tuple[Network, Result]]:
    """Each variant's network and the result of it alone; what counts first comes last."""
    return [
        (network, result._replace(scores={variant: result.scores[variant]}))
        for experiment in experiments
        for result in find(sources.runs, experiment)
        for variant, network in result.networks.items()
    ][::-1]


def sweep_config(folder: Path) -> dict[str, Any]:
    """Returns the configuration of the sweep in a folder, by dotted keys; empty without one."""
    try:
        content = read_json(folder / CONFIG)
    except ValueError:
        return {}
    return content if "data.name" in content else {}


def _files(folders: Sequence[Path], name: str) -> Iterator[Path]:
    for folder in folders:
        own = folder / name
        yield from [own] if own.is_file() else sorted(folder.glob(f"*/{name}"))
