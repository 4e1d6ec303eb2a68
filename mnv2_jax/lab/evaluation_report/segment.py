"""What the page of a segmenter says: classes, confusions of pixels, its worst pictures."""

import html
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mnv2_jax.lab.data import Source
from mnv2_jax.lab.evaluation_report import parts
from mnv2_jax.lab.predict import Evaluation, check_data
from mnv2_jax.lab.tasks.draw import label_colors
from mnv2_jax.lab.tasks.segment import background, by_class, truth
from mnv2_jax.lab.tasks.task import TrainedModel


def watcher(model: TrainedModel, kept: list[parts.Case]) -> Callable[[Any, Any], None]:
    """Returns what keeps the answers and the IoU by class of the worst pictures."""
    size = model.count_classes()

    def judge(rows: Any, answers: Any) -> Iterator[tuple[tuple[float, ...], Any]]:
        for label, answer in zip(rows["label"].astype(int), answers, strict=True):
            counted = (label >= 0) & (label < size)
            pairs = label[counted] * size + answer[counted]
            pixels = np.bincount(pairs, minlength=size**2).reshape(size, size)
            each = by_class({"confusion": pixels})["iou"]
            there = each[~np.isnan(each)]
            yield (float(there.mean()) if len(there) else 1.0,), (answer, each)

    return parts.watch_worst(judge, kept)


def sections(
    model: TrainedModel, source: Source, found: Evaluation, kept: list[parts.Case]
) -> tuple[str, dict[str, str]]:
    """Returns the first sentence of the page, and its sections."""
    scores, pixels = found.scores, np.asarray(found.sums["confusion"])
    said = f"Mean IoU {scores['miou']:.1%} over {scores['classes_scored']} classes, and "
    said += f"{scores['accuracy']:.1%} of the labelled pixels are right, in {len(source):,} images."
    rows = sorted(found.classes, key=lambda row: np.nan_to_num(row["iou"], nan=2))
    cells = [list(row.values()) for row in rows]
    both = Counter({(a, b): int(pixels[a, b]) for a, b in np.argwhere(pixels).tolist()})
    return said, {
        "Classes": parts.table(("class", "share of pixels", "IoU"), cells),
        "Confusions": parts.confusions(model, both, "pixels"),
        "Worst pictures": _worst(model, source, kept),
    }


def _worst(model: TrainedModel, source: Source, kept: list[parts.Case]) -> str:
    if not kept:
        return "<p>Every labelled pixel is right.</p>"
    figures, key, annotated = "", "", check_data(model, source)
    empty = background(model)
    for i in range(0 if empty is None else 1, model.count_classes()):
        color = " ".join(map(str, label_colors(np.array(i), empty)))
        name = html.escape(model.class_name(i))
        key += f'<span style="border-color:rgb({color})">{name}</span> '
    for (share,), number, (answer, each) in kept:
        record, name = annotated[number], parts.file_name(source, number)
        pixels = np.asarray(record["image"])
        shown = parts.image(name, pixels)
        shown += parts.image("what is right", truth(model, record))
        predicted: Any = model.task.show(model, answer, pixels).picture
        shown += parts.image("what is predicted", predicted)
        there = np.flatnonzero(~np.isnan(each))
        said = ", ".join(f"{model.class_name(int(i))} {each[i]:.0%}" for i in there)
        figures += parts.card(shown, (f"mean IoU {share:.1%}", said, name))
    return (
        "<p>The pictures with the smallest mean IoU over the classes in their labels or "
        "predictions. Beside each is what is right, then what is predicted; black is not "
        f'labelled.</p><p class="colors">{key}</p>'
        f'<div class="pictures wide">{figures}</div>'
    )
