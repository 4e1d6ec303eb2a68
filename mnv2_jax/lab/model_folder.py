"""A trained model as a folder: `model.safetensors`, `config.json` and a model card, `README.md`.

These are the names that model hubs expect, so the folder can be uploaded as it is. The tensors are
named by their path (`params/block_0/filter/conv/kernel`); the JSON holds what builds the network,
its dialect among it, the class names and the image size. There is no training state, and nothing
in any of the files is executed.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import user_path, write_file, write_json
from mnv2_jax.lab.tasks import TASKS
from mnv2_jax.lab.tasks.task import TrainedModel
from mnv2_jax.models.build import look_up

TENSORS, DESCRIPTION, CARD = "model.safetensors", "config.json", "README.md"
EARLIEST = "classify"  # the task of folders that name none, as the first release wrote them
MAX_RESOLUTION = 2**13  # as in a configuration; what is more is damage


def save_model(folder: Path, variables: Any, description: dict[str, Any]) -> None:
    """Writes a model; an older one in the folder is replaced only once the new one is complete.

    Args:
      folder: made if needed.
      variables: `params` and `batch_stats`.
      description: `model` (options of the task's builder), `classes`, `resolution`, `task` (its
        name in `TASKS`, "classify" if left out), and anything else worth keeping.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flat = flatten_dict(jax.device_get(variables), sep="/")
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}
    write_file(folder / TENSORS, save(tensors, metadata={"format": "flax"}))
    write_file(folder / CARD, model_card(tensors, description))
    write_json(folder / DESCRIPTION, description)


def model_card(tensors: dict[str, np.ndarray], description: dict[str, Any]) -> str:
    """Returns the card that a hub shows: what the network is, where from, and how to load it."""
    task = TASKS[description.get("task", EARLIEST)]
    options = ", ".join(f"{name} {value}" for name, value in description["model"].items())
    parameters = sum(leaf.size for name, leaf in tensors.items() if name.startswith("params/"))
    size = description["resolution"]
    source = description.get("source")
    origin = (
        f"Imported from `{source['file']}` of {source['ecosystem']}, sha256 {source['sha256']}.\n\n"
        if source
        else ""
    )
    return (
        f"---\nlibrary_name: mnv2_jax\npipeline_tag: {task.pipeline}\n"
        f"tags:\n- mobilenetv2\n- jax\n- flax\n---\n\n"
        f"# {task.title}\n\n"
        f"{parameters:,} parameters; {len(description['classes'])} named classes; images of "
        f"{size}×{size} pixels.\n\nNetwork: {options}.\n\n{origin}"
        "```python\nfrom mnv2_jax.lab.model_folder import load_model\n\n"
        "saved = load_model(folder)\n"
        "outputs = saved.model.apply(saved.variables, images)\n```\n"
    )


def load_model(folder: str | Path) -> TrainedModel:
    """Reads what `save_model` wrote.

    Raises:
      UsageError: the folder holds no model, its parts do not fit each other, or its numbers are
        not finite.
    """
    folder = user_path(folder, "folder of the model")
    for name in (TENSORS, DESCRIPTION):
        if not (folder / name).is_file():
            raise UsageError(
                f"{str(folder)!r} is no saved model, for it has no {name}: give the folder of a "
                "finished run, such as runs/NAME/VARIANT/seed_0, or of `mnv2 import`."
            )
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        tensors = load_file(folder / TENSORS)
        task = look_up("task", description.get("task", EARLIEST), TASKS)
        model = task.build(**description["model"])
        classes, resolution = tuple(description["classes"]), int(description["resolution"])
        if not 1 <= resolution <= MAX_RESOLUTION:
            raise ValueError(f"its resolution is {resolution}, not from 1 to {MAX_RESOLUTION}")
    except KeyError as error:
        raise UsageError(
            f"{str(folder / DESCRIPTION)!r} has no {error} entry, so it was not written by "
            "mnv2_jax: bring in weights of other projects by `mnv2 import`."
        ) from error
    except (
        OSError, ValueError, TypeError, AttributeError, RecursionError, SafetensorError,
    ) as error:  # fmt: skip
        raise UsageError(
            f"the model in {str(folder)!r} cannot be read: {first_line(error)}."
        ) from error
    saved = TrainedModel(
        task, model, unflatten_dict(tensors, sep="/"), classes, resolution, description
    )
    shape = (1, resolution, resolution, saved.backbone.in_channels)
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
        or expected[name].dtype != tensors[name].dtype
    ]
    if wrong:
        raise UsageError(
            f"the tensors in {str(folder)!r} do not fit the network that {DESCRIPTION} describes: "
            f"{len(wrong)} differ, {wrong[0]} first."
        )
    diverged = next((name for name, leaf in tensors.items() if not np.isfinite(leaf).all()), None)
    if diverged is not None:
        raise UsageError(
            f"the model in {str(folder)!r} holds NaN or infinite numbers in {diverged}: its "
            "training diverged, or the file is damaged; take another one."
        )
    return saved
