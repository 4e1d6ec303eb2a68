"""What is learned: each task is one value of pure functions, in one file and one row of a table.

To add a task, write its `TaskSpec` in a file of its own, and its row here.
"""

from mnv2_jax.lab.tasks.classify import CLASSIFY
from mnv2_jax.lab.tasks.detect import DETECT
from mnv2_jax.lab.tasks.segment import SEGMENT
from mnv2_jax.lab.tasks.task import Task, TaskSpec, evaluate

TASKS: dict[str, TaskSpec] = {task.name: task for task in (CLASSIFY, DETECT, SEGMENT)}

__all__ = ["TASKS", "Task", "TaskSpec", "evaluate"]
