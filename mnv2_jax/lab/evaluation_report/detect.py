"""What the page of a detector says: classes, precision-recall curves, its worst pictures."""

import html
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from mnv2_jax.lab.data import Source
from mnv2_jax.lab.evaluation_report import parts
from mnv2_jax.lab.predict import Evaluation
from mnv2_jax.lab.tasks.detect import hits, precisions, usable
from mnv2_jax.lab.tasks.task import TrainedModel

SIDE = 384  # pixels of a picture


class Box(NamedTuple):
    """A box in a picture: an object, or a detection that is right or wrong."""

    kind: str  # true, right or wrong
    place: Float[np.ndarray, "4"]  # as in `mnv2_jax.models.boxes`
    label: str  # the class, and the score of a detection


def watcher(model: TrainedModel, kept: list[parts.Case]) -> Callable[[Any, Any], None]:
    """Returns what keeps the boxes of the worst pictures."""
    size, least = model.count_classes(), model.task.settings["threshold"]
    compiled = jax.jit(jax.vmap(hits))

    def judge(rows: Any, found: Any) -> Iterator[tuple[tuple[float, ...], list[Box]]]:
        boxes, classes = map(np.asarray, usable(rows, size))
        hit, counts = (np.asarray(v)[..., 0] for v in compiled(found, boxes, classes))
        counts = counts & (found.scores >= least)
        for i in range(len(boxes)):
            true = np.flatnonzero(classes[i] >= 0)
            shown = [Box("true", boxes[i, k], model.class_name(int(classes[i, k]))) for k in true]
            for k in np.flatnonzero(counts[i]):
                label = f"{model.class_name(int(found.classes[i, k]))} {found.scores[i, k]:.2f}"
                shown.append(Box("right" if hit[i, k] else "wrong", found.boxes[i, k], label))
            right, wrong, missed = count(shown)
            share = right / max(right + wrong + missed, 1) if wrong + missed else 1.0
            yield (share, -wrong - missed), shown

    return parts.watch_worst(judge, kept)


def count(boxes: Sequence[Box]) -> tuple[int, int, int]:
    """Returns how many detections are right, how many wrong, and how many objects are missed."""
    true, right, wrong = (sum(b.kind == kind for b in boxes) for kind in ("true", "right", "wrong"))
    return right, wrong, true - right


def sections(
    model: TrainedModel, source: Source, found: Evaluation, kept: list[parts.Case]
) -> tuple[str, dict[str, str]]:
    """Returns the first sentence of the page, and its sections."""
    scores = found.scores
    objects = sum(row["objects"] for row in found.classes)
    said = f"Mean AP {scores['map']:.1%} over IoU 0.5 to 0.95, and {scores['map50']:.1%} at IoU "
    said += f"0.5: {objects:,} objects of {scores['classes_scored']} classes in {len(source):,} "
    rows = sorted(
        zip(found.classes, precisions(found.sums)[..., 0], strict=True),
        key=lambda row: np.nan_to_num(row[0]["ap"], nan=2),
    )
    cells = [list(row.values()) for row, _ in rows]
    return said + "images.", {
        "Classes": parts.table(("class", "objects", "AP", "AP50"), cells),
        "Precision and recall": _curves([row for row in rows if row[0]["objects"]]),
        "Worst pictures": _worst(model, source, kept),
    }


def _curves(rows: Sequence[tuple[dict[str, Any], np.ndarray]]) -> str:
    figures = ""
    for row, precision in rows:
        points = " ".join(f"{i},{100 - 100 * p:.1f}" for i, p in enumerate(precision.tolist()))
        name = html.escape(row["class"])
        figures += (
            f'<figure><svg viewBox="-1 -1 102 102" role="img" aria-label="precision over recall: '
            f'{name}"><path d="M0 0H100V100H0ZM50 0V100M0 50H100"/><path class="line" '
            f'd="M{points}"/></svg><figcaption>{name}<br><span>AP50 {row["ap50"]:.1%}</span>'
            "</figcaption></figure>\n"
        )
    return (
        "<p>A detection is right if its IoU with an object of its class is at least 0.5, and no "
        "better one has taken the object. From left to right is the recall, and upwards the best "
        "precision at no less recall, both from 0 to 1. AP50 is the mean of a curve.</p>"
        f'<div class="curves">{figures}</div>'
    )


def _worst(model: TrainedModel, source: Source, kept: list[parts.Case]) -> str:
    if not kept:
        return "<p>No object is missed, and no detection wrong.</p>"
    figures = ""
    for _, number, boxes in kept:
        name, (right, wrong, missed) = parts.file_name(source, number), count(boxes)
        shown = parts.image(name, np.asarray(source[number]["image"]), SIDE)
        said = "; ".join(
            f"{kind}: {', '.join(box.label for box in boxes if box.kind == kind) or 'none'}"
            for kind in ("true", "wrong")
        )
        lines = (f"{missed} missed, {wrong} wrong, {right} right", said, name)
        figures += parts.card(shown + "".join(map(_drawn, reversed(boxes))), lines, "boxes")
    return (
        "<p>The pictures with the smallest share of right among the right detections, the wrong "
        "ones and the missed objects, of equals first those with more mistakes. Detections count "
        f"from a score of {model.task.settings['threshold']}: green if right at IoU 0.5, orange "
        "if wrong. Objects are dashed, with their names below.</p>"
        f'<div class="pictures">{figures}</div>'
    )


def _drawn(box: Box) -> str:
    top, left, bottom, right = (100 * box.place).tolist()
    return (
        f'<div class="{box.kind}" style="top:{top:.1f}%;left:{left:.1f}%;'
        f'height:{bottom - top:.1f}%;width:{right - left:.1f}%">'
        f"<span><b>{html.escape(box.label)}</b></span></div>"
    )
