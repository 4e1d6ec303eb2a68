"""What is learned: each task is one value of pure functions, in one file and one row of a table.

To add a task, write its `TaskSpec` in a file of its own, and its row here.
"""

from typing import Any

from mnv2_jax.lab.tasks.classify import CLASSIFY
from mnv2_jax.lab.tasks.detect import DETECT
from mnv2_jax.lab.tasks.segment import SEGMENT
from mnv2_jax.lab.tasks.task import Task, TaskSpec, evaluate

AUTO = "auto"  # a `model.dtype` that is chosen by the devices, see `train.run.settle`
TASKS: dict[str, TaskSpec] = {task.name: task for task in (CLASSIFY, DETECT, SEGMENT)}

__all__ = [
    "AUTO", "CLASSIFY", "DETECT", "SEGMENT", "TASKS", "Task", "TaskSpec", "evaluate", "make_model",
    "model_options",
]  # fmt: skip


def model_options(config: Any, classes: int, channels: int) -> dict[str, Any]:
    """Returns the options that build the configured network, as a model folder describes it.

    What the configuration leaves at None is left to the builder: the dialect's, or the authors'.
    """
    given = config.model.to_dict() | TASKS[config.task].options(config)
    given |= {"num_classes": classes, "in_channels": channels}
    if given["dtype"] == AUTO:  # until devices are known
        given["dtype"] = "float32"
    return {name: value for name, value in given.items() if value is not None}


def make_model(config: Any, classes: int, channels: int, norm_axis: str | None = None) -> Any:
    """Builds the configured network for a data set."""
    options = model_options(config, classes, channels) | {"frozen_norm": config.init.frozen_norm}
    return TASKS[config.task].build(norm_axis=norm_axis, **options)
