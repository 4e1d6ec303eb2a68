"""What the page of a classifier says: classes, confusions, calibration, its worst pictures."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from mnv2_jax.lab.data import Source
from mnv2_jax.lab.data.image import with_channels
from mnv2_jax.lab.evaluation_report import parts
from mnv2_jax.lab.explain import explainer
from mnv2_jax.lab.paper.drawing import COLORS, figure, svg
from mnv2_jax.lab.predict import Evaluation
from mnv2_jax.lab.tasks.task import TrainedModel

BINS = 10
Z = 1.959964  # of a normal distribution, for 95 %


class Answers(NamedTuple):
    """What a classifier says of each image of a set."""

    label: np.ndarray  # (n,) the class that is right
    predicted: np.ndarray  # (n,) the likeliest class
    own: np.ndarray  # (n,) the probability of the right one
    best: np.ndarray  # (n,) that of the likeliest


def watcher(model: TrainedModel, kept: list[Answers]) -> Callable[[Any, Any], None]:
    """Returns what keeps the answers of each batch."""

    def watch(rows: Any, answers: Any) -> None:
        there = np.asarray(rows["mask"]) > 0
        shares = np.asarray(answers)[there]
        predicted, label = shares.argmax(1), np.asarray(rows["label"])[there]
        if "also" in rows:  # several are right
            hit = (np.asarray(rows["also"])[there] == predicted[:, None]).any(1)
            label = np.where(hit, predicted, label)
        own = np.take_along_axis(shares, label[:, None], 1)[:, 0]
        kept.append(Answers(label, predicted, own, shares.max(1)))

    return watch


def wilson(right: int, n: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share, `right` of `n` (JASA 22, 1927).

    >>> [round(bound, 4) for bound in wilson(81, 263)]
    [0.2553, 0.3662]
    """
    if not n:
        return 0.0, 1.0
    share, spare = right / n, Z * Z / n
    middle, half = share + spare / 2, Z * (share * (1 - share) / n + spare / 4 / n) ** 0.5
    return max(0.0, (middle - half) / (1 + spare)), min(1.0, (middle + half) / (1 + spare))


def calibration(
    confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], bins: int = BINS
) -> tuple[list[tuple[int, float, float]], float]:
    """Compares confidence with accuracy, in bins of equal width (arXiv 1706.04599, Sec. 2).

    Returns (images, mean confidence, accuracy) for each bin that has any, and the expected
    calibration error: the mean distance of both, weighted by images.

    >>> calibration(np.array([0.95, 0.85, 0.85]), np.array([True, True, False]))
    ([(2, 0.85, 0.5), (1, 0.95, 1.0)], 0.25)
    """
    place = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1)
    inside = [place == i for i in range(bins) if (place == i).any()]
    rows = [(int(m.sum()), float(confidence[m].mean()), float(right[m].mean())) for m in inside]
    return rows, float(sum(n * abs(sure - hit) for n, sure, hit in rows) / len(right))


def sections(
    model: TrainedModel, source: Source, found: Evaluation, kept: list[Answers]
) -> tuple[str, dict[str, str]]:
    """Returns the first sentence of the page, and its sections."""
    given = Answers(*map(np.concatenate, zip(*kept, strict=True)))
    right, n = given.label == given.predicted, len(given.label)
    low, high = wilson(int(right.sum()), n)
    said = f"{right.mean():.1%} of {n:,} images are recognized (95 % interval {low:.1%} to "
    both = Counter(zip(given.label.tolist(), given.predicted.tolist(), strict=True))
    return said + f"{high:.1%}, Wilson).", {
        "Classes": _classes(model, given), "Confusions": parts.confusions(model, both, "times"),
        "Calibration": _calibration(given.best, right),
        "Worst pictures": _worst(model, source, given),
    }  # fmt: skip


def _classes(model: TrainedModel, given: Answers) -> str:
    size, rows = model.count_classes(), []
    hits = np.bincount(given.label[given.label == given.predicted], minlength=size).tolist()
    there, said = (np.bincount(v, minlength=size).tolist() for v in (given.label, given.predicted))
    for i in sorted(range(size), key=lambda i: (hits[i] / there[i] if there[i] else 2, i)):
        low, high = wilson(hits[i], there[i])
        recall = (hits[i] / there[i], f"{low:.0%} to {high:.0%}") if there[i] else (None, None)
        precision = hits[i] / said[i] if said[i] else None
        rows.append((model.class_name(i), there[i], *recall, said[i], precision))
    header = ("class", "images", "recall", "95 % interval", "predicted", "precision")
    return parts.table(header, rows)


def _calibration(confidence: np.ndarray, right: np.ndarray) -> str:
    rows, error = calibration(confidence, right)
    fig, ((ax,),) = figure(3.6, 3.2)
    ax.plot((0, 1), (0, 1), color=COLORS[5], linewidth=1)
    ax.plot([sure for _, sure, _ in rows], [hit for *_, hit in rows], "o-", color=COLORS[0])
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    header = ("images", "mean confidence", "accuracy", "95 % interval")
    ends = [wilson(round(hit * n), n) for n, _, hit in rows]
    shown = [
        (*row, f"{low:.0%} to {high:.0%}") for row, (low, high) in zip(rows, ends, strict=True)
    ]
    return (
        f"<p>Expected calibration error: {error:.1%}, in {BINS} bins of equal width. Below the "
        "line the classifier is surer than it is right.</p>"
        f'<figure role="img" aria-label="accuracy over confidence">{svg(fig, "calibration")}'
        f"</figure>{parts.table(header, shown)}"
    )


def _worst(model: TrainedModel, source: Source, given: Answers) -> str:
    """The images whose class is held for least likely, and below one half, with their maps."""
    order = np.argsort(given.own, kind="stable")[: parts.WORST].tolist()
    order = [i for i in order if given.own[i] < 0.5]
    if not order:
        return "<p>Every image gets more than half of the probability for its class.</p>"
    explained, cards = explainer(model), ""
    for i in order:
        pixels = with_channels(np.asarray(source[i]["image"]), model.backbone.in_channels)
        name = parts.file_name(source, i)
        truth, said = (model.class_name(int(v[i])) for v in (given.label, given.predicted))
        shown = parts.image(f"{name}: {truth}", pixels)
        shown += parts.image(f"where {said} is seen", explained(pixels, None).picture)
        taken = f"taken for {said} {given.best[i]:.1%}"
        taken = taken if truth != said else "likeliest all the same"
        cards += parts.card(shown, (f"{truth} {given.own[i]:.1%}", taken, name))
    return (
        "<p>The images whose class got the least probability. On the right is what the network "
        "sees of each, and in yellow what speaks most for the class that it predicts "
        f'(class activation map).</p><div class="pictures">{cards}</div>'
    )
