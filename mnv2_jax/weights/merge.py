"""The strict merge: every tensor of a file in its place, or a diff and nothing at all."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from mnv2_jax.errors import UsageError
from mnv2_jax.weights.architecture import Architecture
from mnv2_jax.weights.limits import shown
from mnv2_jax.weights.names import ECOSYSTEMS, Ecosystem
from mnv2_jax.weights.tensors import (
    Tensor,
    backbone_names,
    classifier_names,
    tensors,
    their_shape,
    to_ours,
    unused,
)

SHOWN = 4  # entries of each kind in a diff
COVERED = 0.9  # share of the backbone's names that identifies an ecosystem
MAX_FLOAT = np.finfo(np.float32).max


def infer_ecosystem(names: Collection[str]) -> str | None:
    """Returns the ecosystem that uses the names in a file, or None.

    >>> infer_ecosystem({"conv_stem.weight", "blocks.0.0.conv_dw.weight"}) is None
    True
    """
    shares = {
        name: sum(expected in names for expected in backbone_names(name))
        / len(backbone_names(name))
        for name in ECOSYSTEMS
    }
    best = max(shares, key=shares.__getitem__)
    return best if shares[best] > COVERED else None


def describe_unknown(path: str, names: Collection[str]) -> tuple[str, str]:
    """Describes tensor names that match no known library, and says what to do about it."""
    if any(name.startswith("params/stem/") for name in names):
        return "this project's own", f"use its folder as it is: --model {Path(path).parent}"
    first = next(iter(ECOSYSTEMS))
    return (
        f"not known: the file has {_examples(names)}",
        f"give weights of MobileNetV2 from {', '.join(ECOSYSTEMS)}; to see the differences, name "
        f"the ecosystem, as in {first}:{path}",
    )


def _examples(names: Collection[str]) -> str:
    return ", ".join(shown(name) for name in sorted(names)[:3]) or "no tensor at all"


def check_ecosystem(ecosystem: Ecosystem, names: Collection[str], path: str) -> None:
    """Raises a `UsageError` for weights of another ecosystem or of another network."""
    inferred = infer_ecosystem(names)
    if inferred is not None and inferred != ecosystem.name:
        raise UsageError(
            f"the tensors of {path!r} are not named as {ecosystem.name} names them: this looks "
            f"like {inferred}; load it as {inferred}:{path}."
        )
    expected = backbone_names(ecosystem.name)
    if expected.isdisjoint(names):
        raise UsageError(
            f"{path!r} holds no MobileNetV2 of {ecosystem.title}: it has {_examples(names)}, and "
            f"none of the expected names, such as {min(expected)}."
        )


def find_head(
    ecosystem: Ecosystem, architecture: Architecture, stored: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], int | None, str]:
    """Finds a classifier beside a backbone: the only linear layer there, whatever its name.

    Returns:
      The tensors, this layer's under the ecosystem's names, its bias zeros if it has none; its
      number of classes, None where there is no such layer; and why what there is instead is none.
    """
    backbone = tensors(ecosystem, *architecture[:3], None)
    inside, features = {tensor.theirs for tensor in backbone}, backbone[-1].shape[0]
    kernel, bias = classifier_names(ecosystem)
    leaf = ecosystem.framework.leaves["head_bias"]
    weights: dict[str, np.ndarray] = {}
    vectors = []
    for name, array in stored.items():
        if name in inside or _is_inside(ecosystem, name):
            continue
        matrix = to_ours(ecosystem.framework, "head", array)
        if matrix is not None and matrix.ndim == 2:
            weights[name] = matrix
        elif array.ndim == 1 and len(array) == features and not name.endswith(leaf):
            vectors.append(name)  # a normalization of the features
    if len(weights) != 1:
        return (
            dict(stored),
            None,
            f"{len(weights)} layers ({_examples(weights)})" if weights else "",
        )
    ((name, matrix),) = weights.items()
    if vectors or matrix.shape[0] != features:
        why = (
            f"{_examples(vectors)} before it" if vectors else f"{name} of {matrix.shape[0]} inputs"
        )
        return dict(stored), None, f"{why}, where the features are {features}"
    theirs = {kernel: stored[name]}
    own = name.removesuffix(ecosystem.framework.leaves["head_kernel"]) + leaf
    theirs[bias] = stored.get(own, np.zeros(matrix.shape[1], np.float32))
    rest = {key: array for key, array in stored.items() if key not in (name, own)}
    return rest | theirs, matrix.shape[1], ""


def _is_inside(ecosystem: Ecosystem, name: str) -> bool:
    """Whether a name lies in a part of the network that is the backbone's alone."""
    roots = {known.split(".")[0] + "." for known in backbone_names(ecosystem.name) if "." in known}
    return name.startswith(tuple(roots))


def merge(
    ecosystem: Ecosystem, architecture: Architecture, stored: Mapping[str, np.ndarray], path: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Puts every tensor of a network in its place, or none.

    Args:
      ecosystem, architecture: tell which tensors are expected.
      stored: the file's tensors.
      path: of the file, for messages.

    Returns:
      The variables, and the names of what lies beside the network in the file.

    Raises:
      UsageError: a tensor is missing, unexpected, of another shape, not float or not finite.
    """
    framework = ecosystem.framework
    expected = {tensor.theirs: tensor for tensor in tensors(ecosystem, *architecture)}
    idle = {t.theirs for t in unused(ecosystem, *architecture[:2])} if architecture.head else set()
    others = [
        name
        for name in stored
        if name not in expected and name not in idle and not name.endswith(framework.ignored)
    ]
    # What has axes is no stray in a segmenter, whose head is known.
    alien = [
        name
        for name in others
        if _is_inside(ecosystem, name) or (architecture.head and stored[name].ndim > 1)
    ]
    unexpected = [f"+ {shown(name)} {list(stored[name].shape)}" for name in alien]
    missing, shaped, flat = [], [], {}
    for name, tensor in expected.items():
        if name not in stored:
            missing.append(f"- {shown(name)} {list(their_shape(framework, tensor))}")
            continue
        ours = to_ours(framework, tensor.kind, stored[name])
        if ours is None or ours.shape != tensor.shape:
            shape, needed = list(stored[name].shape), list(their_shape(framework, tensor))
            shaped.append(f"~ {shown(name)} {shape} is not {needed}")
        else:
            flat[tensor.ours] = ours
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shaped))
    differences = "; ".join(_listed(kind, entries) for kind, entries in kinds if entries)
    if differences:
        raise UsageError(
            f"{path!r} does not fit the {architecture.title} of {ecosystem.name}, and nothing was "
            f"loaded: {differences}. Give all weights of a plain MobileNetV2"
            f"{', or of its DeepLabv3 without pyramid' if ecosystem.segmenter else ''}."
        )
    for tensor in expected.values():
        _check_values(path, tensor, flat[tensor.ours])
    flat = {name: np.ascontiguousarray(array, np.float32) for name, array in flat.items()}
    return unflatten_dict(flat, sep="/"), tuple(others)


def _listed(kind: str, entries: list[str]) -> str:
    more = f", and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return f"{len(entries)} {kind} ({', '.join(entries[:SHOWN])}{more})"


def _check_values(path: str, tensor: Tensor, array: np.ndarray) -> None:
    """Rejects numbers that a trained network cannot have."""
    name = tensor.theirs
    if array.dtype.kind != "f":
        raise UsageError(
            f"{path!r} holds {name} as {array.dtype}, but floating point is needed: give the float "
            "model, not a quantized one."
        )
    if not np.isfinite(array).all() or np.abs(array).max(initial=0) > MAX_FLOAT:
        raise UsageError(
            f"{path!r} holds NaN or infinite numbers in {name}: the file is damaged or the "
            "training diverged; use another file."
        )
    if tensor.ours.endswith("/var") and array.min(initial=0) < 0:
        raise UsageError(
            f"{path!r} holds a negative variance in {name}: the file is damaged; use another file."
        )
