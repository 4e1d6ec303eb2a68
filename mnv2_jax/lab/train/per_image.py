"""Which test images each finished seed gets right, from the model that it saved.

With a test split that all seeds share, a difference of variants is one on these images. From a bit
for each image and seed, `decision.over_images` says how far it holds for other images like these.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import Source
from mnv2_jax.lab.data.pipeline import first_record
from mnv2_jax.lab.model_folder import load_model
from mnv2_jax.lab.seal import read_json
from mnv2_jax.lab.tasks import CLASSIFY, make_model
from mnv2_jax.lab.tasks.classes import by_name
from mnv2_jax.lab.tasks.task import Batch, eval_outputs
from mnv2_jax.lab.train.record import RESULT, RIGHT, Identity, read_right, write_right
from mnv2_jax.lab.train.run import eval_feed, lives_on_device, open_data

log = logging.getLogger(__name__)


def keep_right(
    workdir: Path, variants: Mapping[str, Any], seeds: Sequence[int], identity: Identity,
    sources: dict[Any, Source], tell: Callable[[str], Any] = log.info,
) -> None:  # fmt: skip
    """Writes what finished seeds lack of it, by evaluating the models that they saved.

    Only a classifier's answers are right or wrong, and images that are split anew for each seed are
    not the same ones. `variants` are configurations by name, whose data are among `sources`.
    """
    for name, config in variants.items():
        if config.task != CLASSIFY.name or config.data.resplit:
            continue
        places = {seed: workdir / name / f"seed_{seed}" for seed in seeds}
        whose = {seed: identity._replace(variant=name, seeds=(seed,)) for seed in seeds}
        left = [seed for seed, place in places.items() if not _is_there(place, whose[seed])]
        if not left:
            continue
        tell(f"{name}: finding out which images {len(left)} seeds get right")
        answers = _judge(config, sources)
        for seed in left:
            result = read_json(places[seed] / RESULT)
            try:
                right = answers(load_model(places[seed]).variables)
            except UsageError as error:  # such as NaN in the weights
                log.warning("which images %s gets right is not known: %s", places[seed], error)
                continue
            data = f"{config.data.eval_split} of {config.data.root or config.data.name}"
            write_right(places[seed], data, right, result, whose[seed])


def _is_there(place: Path, whose: Identity) -> bool:
    try:
        read_right(place, read_json(place / RESULT), whose)
    except ValueError as error:
        if os.path.lexists(place / RIGHT):
            log.warning("%s: %s; it is made again", place, error)
        return False
    return True


def _judge(
    config: Any, sources: dict[Any, Source]
) -> Callable[[Mapping[str, Any]], Bool[np.ndarray, " n"]]:
    """Returns (variables) -> which images of the evaluation set are right, compiled once.

    The network, its precision and the images are those of the evaluation in training.
    """
    train, held_out = open_data(config.data, sources)
    classes, channels = CLASSIFY.classes(train), np.shape(first_record(train)["image"])[-1]
    held_out = by_name(CLASSIFY, held_out, classes, len(classes), "the data", "")
    model = make_model(config, len(classes), channels)
    on_device = lives_on_device(CLASSIFY, config, train)
    feed = eval_feed(CLASSIFY, config, held_out, on_device, channels, devices=1)

    def of_row(logits: Array, row: Batch) -> Array:
        batch = jax.tree.map(lambda v: v[None], row)
        return CLASSIFY.scores(model, logits[None], batch)["accuracy"][0]

    @jax.jit
    def of_batch(variables: Any, resident: Any, rows: Any) -> tuple[Array, Array]:
        batch = feed.fetch(resident, rows)
        return jax.vmap(of_row)(eval_outputs(model, variables, batch), batch), batch["mask"]

    resident = cache(lambda: jax.device_put(feed.resident()))

    def answers(variables: Mapping[str, Any]) -> np.ndarray:
        found = [
            jax.device_get(of_batch(variables, resident(), rows)) for rows in feed.batches((0,), 0)
        ]
        right, mask = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return right[mask > 0] > 0

    return answers
