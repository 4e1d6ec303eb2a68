"""A trained model as a folder: `model.safetensors`, `config.json` and a model card, `README.md`.

These are the names that model hubs expect, so the folder can be uploaded as it is. The tensors are
named by their path (`params/block_0/filter/conv/kernel`); the JSON holds what builds the network,
its dialect among it, the class names and the image size, sealed together with the hash of the
tensors. There is no training state, and nothing in any of the files is executed.
"""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load, save

from mnv2_jax.errors import UsageError, first_line, shown
from mnv2_jax.files import read_file, user_path, write_file, write_json
from mnv2_jax.lab import rules
from mnv2_jax.lab.rules import each, flag, number, optional, text
from mnv2_jax.lab.seal import MAX_FILE, OF, SEAL, check_seal, read_json, sealed
from mnv2_jax.lab.tasks import TASKS
from mnv2_jax.lab.tasks.task import TaskSpec, TrainedModel, backbone_of

TENSORS, DESCRIPTION, CARD = "model.safetensors", "config.json", "README.md"
EARLIEST = "classify"  # the task of folders that name none, as the first release wrote them
HASH = "tensors_sha256"
REMEDY = "Take the model anew; if you edited it yourself, remove "
REMEDY += f"{SEAL!r}, {OF!r} and {HASH!r} from {DESCRIPTION}."
# What a description may say, by group and key; other keys are the builders' and the preparations'.
RULES: dict[str, dict[str, Any]] = {
    "": {
        "task": TASKS, "classes": each(text), "resolution": number(1, rules.MAX_SIDE), HASH: text,
        "train_images": number(0, 2**62), "eval_images": number(0, 2**62),
    },
    "model": rules.MODEL | rules.HEADS_OF["detect"] | rules.HEADS_OF["segment"] | {
        "num_classes": optional(number(1, 2**20)), "in_channels": number(1, 1024),
        "class_offset": number(0, 1),
    },
    "eval": rules.EVAL | {"max_objects": number(1, 1024), "method": text, "antialias": flag},
    "source": {"ecosystem": text, "file": text, "sha256": text},
}  # fmt: skip


def save_model(folder: str | Path, variables: Any, description: dict[str, Any]) -> None:
    """Writes a model; an older one in the folder is replaced only once the new one is complete.

    Args:
      folder: made if needed.
      variables: `params` and `batch_stats`.
      description: `model` (options of the task's builder), `classes`, `resolution`, `task` (its
        name in `TASKS`, "classify" if left out), and anything else worth keeping.
    """
    folder = user_path(folder, "folder of the model")
    folder.mkdir(parents=True, exist_ok=True)
    flat = flatten_dict(jax.device_get(variables), sep="/")
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}
    content = save(tensors, metadata={"format": "flax"})
    write_file(folder / TENSORS, content)
    write_file(folder / CARD, model_card(tensors, description))
    own = {name: value for name, value in description.items() if name not in (SEAL, OF)}
    own[HASH] = hashlib.sha256(content).hexdigest()
    write_json(folder / DESCRIPTION, sealed(own))


def describe_weights(loaded: Any, classes: list[str]) -> dict[str, Any]:
    """Returns the description that `save_model` keeps beside loaded weights."""
    rule = loaded.preprocessing
    ecosystem, _, file = loaded.source.partition(":")
    options = {name: value for name, value in loaded.options.items() if value is not None}
    whole = ("crop", "fraction", "method", "antialias")
    kept = whole if loaded.task == "classify" else ("crop",)
    return {
        "task": loaded.task,
        "model": options | {"num_classes": loaded.classes},
        "classes": classes,
        "resolution": rule.size,
        "eval": {name: getattr(rule, name) for name in kept},
        "source": {"ecosystem": ecosystem, "file": Path(file).name, "sha256": loaded.sha256},
    }


def model_card(tensors: dict[str, np.ndarray], description: dict[str, Any]) -> str:
    """Returns the card that a hub shows: what the network is, where from, and how to load it."""
    task = TASKS[description.get("task", EARLIEST)]
    options = ", ".join(f"{name} {value}" for name, value in description["model"].items())
    parameters = sum(leaf.size for name, leaf in tensors.items() if name.startswith("params/"))
    size, source, origin = description["resolution"], description.get("source"), ""
    if source:
        origin = "Imported from `{file}` of {ecosystem}, sha256 {sha256}.\n\n".format(**source)
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
    description, task, model = read_description(folder / DESCRIPTION)
    classes, size = tuple(description["classes"]), description["resolution"]
    try:
        content = read_file(folder / TENSORS, MAX_FILE)
        tensors = load(content)
        expected = _expected(model, size)
    except Exception as error:  # Flax and safetensors raise what they meet
        why = f"the model in {str(folder)!r} cannot be read: {first_line(error)}."
        raise UsageError(why) from error
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
    if HASH in description and description[HASH] != hashlib.sha256(content).hexdigest():
        raise UsageError(
            f"{TENSORS} and {DESCRIPTION} in {str(folder)!r} are not of one model: the sha256 is "
            f"another. {REMEDY}"
        )
    return TrainedModel(task, model, unflatten_dict(tensors, sep="/"), classes, size, description)


def read_description(path: Path) -> tuple[dict[str, Any], TaskSpec, Any]:
    """Reads the `config.json` of a model; returns it with its task and its network.

    Raises:
      UsageError: it is not what was written with the model, or a value in it cannot be used.
    """
    try:
        description = read_json(path)
        check_seal(description, must=False)
    except ValueError as error:
        raise UsageError(f"{str(path)!r} {error}. {REMEDY}") from error
    for key in ("model", "classes", "resolution"):
        if key not in description:
            raise UsageError(
                f"{str(path)!r} has no {key!r} entry, so it was not written by mnv2_jax: bring in "
                "weights of other projects by `mnv2 import`."
            )
    try:
        _check_values(description)
        task = TASKS[description.get("task", EARLIEST)]
        model = task.build(**description["model"])
        named, known = len(description["classes"]), model.num_classes
        known = known and known - getattr(model, "class_offset", 0)
        if named and known and named != known:
            raise UsageError(f"it names {named} classes, and its network has {known}")
    except (ValueError, TypeError, ArithmeticError) as error:
        why = str(error).rstrip(".") if isinstance(error, UsageError) else first_line(error)
        raise UsageError(f"{str(path)!r} describes no model: {why}.") from error
    return description, task, model


def _check_values(description: dict[str, Any]) -> None:
    for group, own in RULES.items():
        values = description.get(group, {}) if group else description
        if not isinstance(values, dict):
            raise UsageError(f"{group} is {shown(values)}: it must be an object")
        for key in own.keys() & values.keys():
            value = tuple(values[key]) if isinstance(values[key], list) else values[key]
            rules.check_value(f"{group}.{key}".strip("."), value, own[key])


def _expected(model: Any, size: int) -> dict[str, Any]:
    """The tensors of a network, by path; it has to take images of its size."""
    shape = (1, size, size, backbone_of(model).in_channels)
    image = jax.ShapeDtypeStruct(shape, np.float32)
    tree: Any = jax.eval_shape(model.init, jax.random.key(0), image)
    return flatten_dict(tree, sep="/")
