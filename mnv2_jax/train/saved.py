"""A trained model as a folder: `model.safetensors` and `model.json`, without any training state.

The tensors are named by their path (`params/block_0/filter/conv/kernel`); the JSON holds what
builds the network, its dialect among it, the class names and the image size. Nothing in either is
executed.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mnv2_jax.errors import UsageError
from mnv2_jax.models.build import build
from mnv2_jax.models.mobilenet import MobileNetV2

TENSORS, DESCRIPTION = "model.safetensors", "model.json"


class Saved(NamedTuple):
    """A model with its variables and what is needed to use it on images."""

    model: MobileNetV2
    variables: dict[str, Any]
    classes: tuple[str, ...]
    resolution: int
    description: dict[str, Any]


def save_model(folder: Path, variables: Any, description: dict[str, Any]) -> None:
    """Writes a model; an older one in the folder is replaced only once the new one is complete.

    Args:
      folder: made if needed.
      variables: `params` and `batch_stats`.
      description: `model` (options of `build`), `classes`, `resolution`, and anything else worth
        keeping.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flat = flatten_dict(jax.device_get(variables), sep="/")
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}
    for name, write in (
        (TENSORS, lambda path: save_file(tensors, path)),
        (DESCRIPTION, lambda path: path.write_text(json.dumps(description, indent=1))),
    ):
        partial = folder / f".{name}.partial"
        write(partial)
        os.replace(partial, folder / name)


def load_model(folder: str | Path) -> Saved:
    """Reads what `save_model` wrote.

    Raises:
      UsageError: the folder holds no model, or its parts do not fit each other.
    """
    folder = Path(folder)
    for name in (TENSORS, DESCRIPTION):
        if not (folder / name).is_file():
            raise UsageError(
                f"{str(folder)!r} is no saved model, for it has no {name}: give the folder of a "
                "finished run, such as runs/NAME/VARIANT/seed_0."
            )
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        tensors = load_file(folder / TENSORS)
        model = build(**description["model"])
        classes, resolution = tuple(description["classes"]), int(description["resolution"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"the model in {str(folder)!r} cannot be read: {reason}.") from error
    shape = (1, resolution, resolution, model.in_channels)
    expected: Any = flatten_dict(
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, np.float32)),
        sep="/",
    )
    wrong = [
        name
        for name in sorted(expected.keys() | tensors.keys())
        if name not in expected
        or name not in tensors
        or expected[name].shape != tensors[name].shape
    ]
    if wrong:
        raise UsageError(
            f"the tensors in {str(folder)!r} do not fit the network that {DESCRIPTION} describes: "
            f"{len(wrong)} differ, {wrong[0]} first."
        )
    variables = unflatten_dict(tensors, sep="/")
    return Saved(model, variables, classes, resolution, description)
