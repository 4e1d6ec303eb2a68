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
    known = {name: backbone_names(name) for name in ECOSYSTEMS}
    found = {name: len(own.intersection(names)) for name, own in known.items()}
    # Of two whose names begin alike, the one with more of them, or else the one that lacks fewer.
    best = max(found, key=lambda name: (found[name], -len(known[name])))
    return best if found[best] > COVERED * len(known[best]) else None


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

    Returns the tensors, this layer's under the ecosystem's names, its bias zeros if it has none;
    its number of classes, None without such a layer; and why what there is instead is none.
    """
    backbone, leaves = tensors(ecosystem, *architecture[:3], None), ecosystem.framework.leaves
    inside, features = {tensor.theirs for tensor in backbone}, backbone[-1].shape[0]
    beside = [name for name in stored if name not in inside and not _is_inside(ecosystem, name)]
    matrices = {name: to_ours(ecosystem.framework, "head", stored[name]) for name in beside}
    weights = {name: matrix.shape for name, matrix in matrices.items() if matrix is not None}
    norms = [
        name
        for name in beside
        if stored[name].shape == (features,) and not name.endswith(leaves["head_bias"])
    ]
    if not weights:
        return dict(stored), None, ""
    if len(weights) > 1 or norms:
        return dict(stored), None, f"it has {_examples([*weights, *norms])}"
    ((name, (inputs, classes)),) = weights.items()
    if inputs != features:
        return dict(stored), None, f"{name} has {inputs} inputs, and the features are {features}"
    own = name.removesuffix(leaves["head_kernel"]) + leaves["head_bias"]
    rest = {key: array for key, array in stored.items() if key not in (name, own)}
    bias = stored.get(own, np.zeros(classes, np.float32))
    head = dict(zip(classifier_names(ecosystem), (stored[name], bias), strict=True))
    return rest | head, classes, ""


def _is_inside(ecosystem: Ecosystem, name: str) -> bool:
    """Whether a name lies in a part of the network that is the backbone's alone."""
    root, dot, _ = name.partition(".")
    return bool(dot) and any(k.startswith(f"{root}.") for k in backbone_names(ecosystem.name))


def merge(
    ecosystem: Ecosystem, architecture: Architecture, stored: Mapping[str, np.ndarray], path: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Puts every tensor of a network in its place, or none.

    Returns the variables, and the names of what lies beside the network in the file. `UsageError`
    if a tensor is missing, unexpected, of another shape, not float or not finite.
    """
    framework, flat = ecosystem.framework, {}
    expected = {tensor.theirs: tensor for tensor in tensors(ecosystem, *architecture)}
    idle = {t.theirs for t in unused(ecosystem, *architecture[:2])} if architecture.head else set()
    others = stored.keys() - expected.keys() - idle
    others = sorted(name for name in others if not name.endswith(framework.ignored))
    found: dict[str, list[str]] = {"missing": [], "unexpected": [], "of another shape": []}
    for name in others:
        # What has axes is no stray in a segmenter or detector, whose head is known.
        whole = architecture.head or architecture.detects
        if _is_inside(ecosystem, name) or (whole and stored[name].ndim > 1):
            found["unexpected"].append(f"+ {shown(name)} {list(stored[name].shape)}")
    for name, tensor in expected.items():
        needed = list(their_shape(framework, tensor))
        ours = to_ours(framework, tensor.kind, stored[name]) if name in stored else None
        if name not in stored:
            found["missing"].append(f"- {shown(name)} {needed}")
        elif ours is None or ours.shape != tensor.shape:
            shape = list(stored[name].shape)
            found["of another shape"].append(f"~ {shown(name)} {shape} is not {needed}")
        else:
            flat[tensor.ours] = ours
    differences = "; ".join(_listed(kind, entries) for kind, entries in found.items() if entries)
    if differences:
        raise UsageError(
            f"{path!r} does not fit the {architecture.title} of {ecosystem.name}, and nothing was "
            f"loaded: {differences}. Give all weights of {_networks(ecosystem, architecture)}."
        )
    for tensor in expected.values():
        _check_values(path, tensor, flat[tensor.ours])
    flat = {name: np.ascontiguousarray(array, np.float32) for name, array in flat.items()}
    return unflatten_dict(flat, sep="/"), tuple(others)


def _networks(ecosystem: Ecosystem, architecture: Architecture) -> str:
    if architecture.detects:
        return "its SSDLite, or load it with drop_head=True for its features"
    more = ", or of its DeepLabv3 without pyramid" if ecosystem.segmenter else ""
    return f"a plain MobileNetV2{more}"


def _listed(kind: str, entries: list[str]) -> str:
    more = f", and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return f"{len(entries)} {kind} ({', '.join(entries[:SHOWN])}{more})"


def _check_values(path: str, tensor: Tensor, array: np.ndarray) -> None:
    """Rejects numbers that a trained network cannot have."""
    what = ""
    if array.dtype.kind != "f":
        what = f"numbers of {array.dtype}, where floating point is needed,"
    elif not np.isfinite(array).all() or np.abs(array).max(initial=0) > MAX_FLOAT:
        what = "NaN or infinite numbers"
    elif tensor.ours.endswith("/var") and array.min(initial=0) < 0:
        what = "a negative variance"
    if what:
        raise UsageError(
            f"{path!r} holds {what} in {tensor.theirs}: it is quantized or damaged, or its "
            "training diverged; give another file of the float model."
        )
