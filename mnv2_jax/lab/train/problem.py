"""What a task adds to a run: its network, what it reads of a record, its transforms, its loss.

`PROBLEMS` is the table of the tasks that a configuration can name. Everything else (loop, steps,
checkpoints, sweeps) is the same for all of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import (
    Source,
    Transform,
    detection_eval,
    detection_train,
    eval_transform,
    segmentation_eval,
    segmentation_train,
    train_transform,
)
from mnv2_jax.lab.model_folder import KINDS, load_model
from mnv2_jax.lab.tasks.augment import Augmentation
from mnv2_jax.lab.tasks.classify import Teacher, classify
from mnv2_jax.lab.tasks.detect import detect
from mnv2_jax.lab.tasks.segment import segment
from mnv2_jax.lab.tasks.task import Task
from mnv2_jax.models.mobilenet import MobileNetV2

Size = tuple[int, int, int]


class Problem(NamedTuple):
    """A task as configurations name it.

    Attributes:
      fields: what a batch holds of a record, and how many axes it has there.
      classes: (source) -> the names of the network's classes.
      options: (config) -> options of the builder in `saved.KINDS` besides the backbone's.
      train, evaluate: (config, channels) -> the transform of a record.
      task: (config, model, (h, w, c), augmentations on the device) -> the task.
    """

    fields: dict[str, int]
    classes: Callable[[Source], tuple[str, ...]]
    options: Callable[[Any], dict[str, Any]]
    train: Callable[[Any, int], Transform]
    evaluate: Callable[[Any, int], Transform]
    task: Callable[[Any, Any, Size, tuple[Augmentation, ...]], Task]


def model_options(config: Any, classes: int, channels: int) -> dict[str, Any]:
    """Returns the options that build the configured network, as a saved model describes it.

    What the configuration leaves at None is left to the builder: the dialect's, or the authors'.
    """
    given = config.model.to_dict() | PROBLEMS[config.task].options(config)
    given |= {"num_classes": classes, "in_channels": channels}
    return {name: value for name, value in given.items() if value is not None}


def make_model(config: Any, classes: int, channels: int, norm_axis: str | None = None) -> Any:
    """Builds the configured network for a data set."""
    return KINDS[config.task].build(
        norm_axis=norm_axis,
        frozen_norm=config.init.frozen_norm,
        **model_options(config, classes, channels),
    )


def check_fields(record: dict[str, Any], task: str, name: str) -> None:
    """Refuses a data set that lacks what a task learns from.

    Raises:
      UsageError: with what its records hold.
    """
    for field, axes in PROBLEMS[task].fields.items():
        if field not in record or np.ndim(record[field]) != axes:
            held = ", ".join(f"{key} {np.shape(value)}" for key, value in record.items())
            raise UsageError(
                f"task {task} needs {field!r} with {axes} axes, and records of {name} hold "
                f"{held}: choose another data.name, or another task."
            )


def _classify_train(config: Any, channels: int) -> Transform:
    options = config.data.train.to_dict()
    return train_transform(config.data.resolution, channels=channels, **options)


def _classify_eval(config: Any, channels: int) -> Transform:
    return eval_transform(config.data.resolution, channels=channels, **config.data.eval.to_dict())


def _classify(
    config: Any, model: MobileNetV2, size: Size, augmentations: tuple[Augmentation, ...]
) -> Task:
    teacher = None
    if config.teacher.model:
        saved = load_model(config.teacher.model)
        if saved.model.num_classes != model.num_classes:
            raise UsageError(
                f"teacher {config.teacher.model} knows {saved.model.num_classes} classes and the "
                f"data has {model.num_classes}: train a teacher on the same classes."
            )
        theirs, ours = saved.model.dialect, model.dialect
        if (theirs.mean, theirs.std) != (ours.mean, ours.std):
            raise UsageError(
                f"teacher {config.teacher.model} takes images in the range of the dialect "
                f"{theirs.name}, and the student in that of {ours.name}: set "
                "model.dialect to the teacher's."
            )
        teacher = Teacher(
            lambda images: jnp.asarray(saved.model.apply(saved.variables, images)),
            config.teacher.weight,
            config.teacher.temperature,
        )
    return classify(
        model,
        size,
        augmentations,
        config.loss.label_smoothing,
        config.loss.mixup,
        config.loss.cutmix,
        teacher,
    )


def _detect_train(config: Any, channels: int) -> Transform:
    train = config.data.train
    return detection_train(
        config.data.resolution,
        config.detect.max_objects,
        train.crop,
        tuple(train.area),
        train.flip,
        train.color,
        channels,
    )


def _detect_eval(config: Any, channels: int) -> Transform:
    return detection_eval(
        config.data.resolution, config.detect.max_objects, config.data.eval.crop, channels
    )


def _segment_train(config: Any, channels: int) -> Transform:
    train = config.data.train
    return segmentation_train(
        config.data.resolution,
        train.crop,
        tuple(config.segment.scale),
        train.flip,
        train.color,
        channels,
    )


def _segment_eval(config: Any, channels: int) -> Transform:
    return segmentation_eval(config.data.resolution, config.data.eval.crop, channels)


def _pixel_classes(source: Source) -> tuple[str, ...]:
    """The classes of label maps, which may begin with a background that boxes have not."""
    return getattr(source, "pixel_classes", source.classes)


# Options of `build_deeplab` that the configuration has in a group of their own.
SEGMENTER = ("aspp", "rates", "decoder", "atrous", "channels")

PROBLEMS: dict[str, Problem] = {
    "classify": Problem(
        fields={"label": 0},
        classes=lambda source: source.classes,
        options=lambda config: {},
        train=_classify_train,
        evaluate=_classify_eval,
        task=_classify,
    ),
    "detect": Problem(
        fields={"boxes": 2, "classes": 1},
        classes=lambda source: source.classes,
        options=lambda config: {"heads": config.detect.heads},
        train=_detect_train,
        evaluate=_detect_eval,
        task=lambda config, model, size, augmentations: detect(model, size),
    ),
    "segment": Problem(
        fields={"label": 2},
        classes=_pixel_classes,
        options=lambda config: {key: config.segment[key] for key in SEGMENTER},
        train=_segment_train,
        evaluate=_segment_eval,
        task=lambda config, model, size, augmentations: segment(model, size),
    ),
}
