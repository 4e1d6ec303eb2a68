"""ImageNet-C (arXiv 1903.12261): a classifier under 15 corruptions in 5 severities each."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mnv2_jax.files import read_json, write_json
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.data.readers.robust import CORRUPTED, CORRUPTIONS, SETS, SEVERITIES
from mnv2_jax.lab.model_folder import HASH
from mnv2_jax.lab.predict import evaluator
from mnv2_jax.lab.tasks.task import ONCE, TestTimeAugmentation, TrainedModel

PARTS = "corruptions.json"
ALEXNET = dict(zip(CORRUPTIONS, (
    0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816, 0.826572,
    0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500,
), strict=True))  # fmt: skip
"""AlexNet's top-1 error, the mean over severities, by which that of a network is divided."""
NAMED = 3  # incomplete sets that the warning names
log = logging.getLogger(__name__)


def evaluate_corruptions(
    model: TrainedModel,
    root: str | None,
    out: Path | None = None,
    augmentation: TestTimeAugmentation = ONCE,
) -> tuple[int, dict[str, float]]:
    """Returns how many images were scored, and the corruption error of each corruption and `mce`.

    The corruption error is a network's error, summed over severities, divided by AlexNet's; `mce`
    is its mean over the corruptions, and `accuracy` that over all images (Sec. 4.2). Where images
    are missing, the rest is scored, and one warning says so.

    Args:
      model: a classifier of ImageNet.
      root: the folder of ImageNet-C (see `robust.SETS`).
      out: keeps what is done, for the same command to go on with.
      augmentation: as for `predict.evaluate`.

    Raises:
      UsageError: the data is missing, damaged, or of other classes.
    """
    evaluate, done = evaluator(model, augmentation=augmentation), _done(out, model)
    parts = [f"{corruption}/{severity}" for corruption in CORRUPTIONS for severity in SEVERITIES]
    left = [part for part in parts if part not in done]
    # All are opened before hours of work, and what they lack is told at once.
    sources = [open_source(CORRUPTED, part, root, tell=lambda *_: None) for part in left]
    there = {part: number for part, (_, number) in done.items()}
    there |= {part: len(source) for part, source in zip(left, sources, strict=True)}
    if incomplete := what_is_missing({part: there[part] for part in parts}):
        log.warning("%s: %s", root, incomplete)
    for part, source in zip(tqdm(left, CORRUPTED, unit="set"), sources, strict=True):
        done[part] = [evaluate(source).scores["accuracy"], len(source)]
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / PARTS, {"model": model.description, "done": done})
    accuracy = np.array([done[part][0] for part in parts]).reshape(len(CORRUPTIONS), -1)
    errors = (1 - accuracy).mean(axis=1) / list(ALEXNET.values())
    return sum(done[part][1] for part in parts), {
        "mce": float(errors.mean()), "accuracy": float(accuracy.mean()),
        **dict(zip(CORRUPTIONS, errors.tolist(), strict=True)),
    }  # fmt: skip


def what_is_missing(there: Mapping[str, int]) -> str:
    """Says how many images the sets lack, by the number that each has; "" if they are complete.

    >>> what_is_missing({"fog/1": 50_000, "fog/2": 49_998}).partition(":")[0]
    '2 of 100,000 images are missing, of 1 of 2 sets (fog/2 lacks 2)'
    """
    whole = SETS[CORRUPTED].images
    lacks = {part: whole - number for part, number in there.items() if number < whole}
    if not lacks:
        return ""
    named = [f"{part} lacks {number:,}" for part, number in lacks.items()]
    named = ", ".join([*named[:NAMED], "…"] if len(named) > NAMED else named)
    return (
        f"{sum(lacks.values()):,} of {whole * len(there):,} images are missing, of "
        f"{len(lacks)} of {len(there)} sets ({named}): mce is of those that are there, and "
        "comparable only with the mce of other models on the same ones, not with published ones"
    )


def _done(out: Path | None, model: TrainedModel) -> dict[str, list]:
    """Accuracy and images of what an interrupted evaluation of the same model has finished."""
    if out is None or HASH not in model.description or not (out / PARTS).is_file():
        return {}
    try:
        content = read_json(out / PARTS)
        same = content["model"] == model.description
        return {part: [float(a), int(n)] for part, (a, n) in content["done"].items() if same}
    except (ValueError, TypeError, LookupError, AttributeError):
        return {}
