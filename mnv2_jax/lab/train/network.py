"""The network that a configuration describes, and the trained model that it starts from."""

from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.model_folder import TrainedModel
from mnv2_jax.lab.tasks import TASKS


def model_options(config: Any, classes: int, channels: int) -> dict[str, Any]:
    """Returns the options that build the configured network, as a model folder describes it.

    What the configuration leaves at None is left to the builder: the dialect's, or the authors'.
    """
    given = config.model.to_dict() | TASKS[config.task].options(config)
    given |= {"num_classes": classes, "in_channels": channels}
    return {name: value for name, value in given.items() if value is not None}


def make_model(config: Any, classes: int, channels: int, norm_axis: str | None = None) -> Any:
    """Builds the configured network for a data set."""
    return TASKS[config.task].build(
        norm_axis=norm_axis,
        frozen_norm=config.init.frozen_norm,
        **model_options(config, classes, channels),
    )


def variables_to_start_from(saved: TrainedModel, fresh: Any) -> Any:
    """Returns a trained model's variables; a classifier's as the backbone of another network.

    Its classification layer is left out, and so is what the segmenter's backbone leaves out.
    """
    if "backbone" in saved.variables["params"] or "backbone" not in fresh["params"]:
        return saved.variables
    variables = {}
    for kind, own in fresh.items():
        backbone = {k: v for k, v in saved.variables[kind].items() if k in own["backbone"]}
        variables[kind] = {**own, "backbone": backbone}
    return variables


# Layers whose shape depends on the number of classes.
OF_CLASSES = ("classifier/", "/classes_")


def start_from(saved: Any, fresh: Any) -> Any:
    """Replaces fresh variables by a saved model's, all but layers of other classes.

    Raises:
      UsageError: anything else differs in name or shape; the message lists what.
    """
    old: Any = flatten_dict(saved, sep="/")
    new: Any = flatten_dict(fresh, sep="/")
    lines = [
        f"{sign}{name}{side[name].shape}"
        for name in sorted(old.keys() | new.keys())
        for sign, side in (("-", old), ("+", new))
        if name in side and not _fits(name, old, new)
    ]
    if any(not any(part in line for part in OF_CLASSES) for line in lines):
        shown = ", ".join(lines[:6]) + (", …" if len(lines) > 6 else "")
        raise UsageError(
            f"the saved model does not fit this configuration (- saved, + configured): {shown}. "
            "Set model.width and model.spec to those of the saved model."
        )
    merged = {name: old[name] if _fits(name, old, new) else leaf for name, leaf in new.items()}
    return unflatten_dict(merged, sep="/")


def _fits(name: str, old: Any, new: Any) -> bool:
    return name in old and name in new and old[name].shape == new[name].shape


# What a network computes with other values of these is not what its weights were trained for.
TRAVELS = ("padding", "bn_epsilon", "mean", "std")


def check_dialect(saved: Any, configured: Any) -> None:
    """Refuses a saved model whose padding, epsilon or input range is not the configured one's."""
    theirs, ours = (getattr(model, "backbone", model).dialect for model in (saved, configured))
    for field in TRAVELS:
        was, now = getattr(theirs, field), getattr(ours, field)
        if was != now:
            raise UsageError(
                f"the saved model has {field} {was} and this configuration {now}: set "
                f"model.dialect to {theirs.name!r}, which it was trained with."
            )
