"""The strict merge: every tensor of a file in its place, or a diff and nothing at all."""

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from mnv2_jax.errors import UsageError
from mnv2_jax.models.spec import IMAGENET
from mnv2_jax.weights.architecture import Architecture
from mnv2_jax.weights.limits import shown
from mnv2_jax.weights.names import ECOSYSTEMS, Ecosystem
from mnv2_jax.weights.tensors import Tensor, our_shape, tensors, their_shape, to_ours, unused

SHOWN = 4  # entries of each kind in a diff
MAX_FLOAT = np.finfo(np.float32).max


def infer_ecosystem(names: Collection[str]) -> str | None:
    """Returns the ecosystem that the names in a file are from, or None.

    >>> infer_ecosystem({"conv_stem.weight", "blocks.0.0.conv_dw.weight"}) is None
    True
    """
    best, share = None, 0.9
    for ecosystem in ECOSYSTEMS.values():
        expected = _backbone(ecosystem.name)
        covered = sum(name in names for name in expected) / len(expected)
        if covered > share:
            best, share = ecosystem.name, covered
    return best


@functools.cache
def _backbone(ecosystem: str) -> frozenset[str]:
    """The names of Table 2's network without its classifier."""
    listed = tensors(ECOSYSTEMS[ecosystem], IMAGENET, 1.0, 3, None)
    return frozenset(tensor.theirs for tensor in listed)


def whose(path: str, found: Collection[str]) -> tuple[str, str]:
    """Says what names that are no ecosystem's are, and what to do about it."""
    if any(name.startswith("params/stem/") for name in found):
        return "this project's own", f"use its folder as it is: --model {Path(path).parent}"
    examples = ", ".join(shown(name) for name in sorted(found)[:3]) or "no tensor at all"
    return (
        f"none that is known: it has {examples}",
        f"give weights of MobileNetV2 from {', '.join(ECOSYSTEMS)}, and name one of them, as in "
        f"{next(iter(ECOSYSTEMS))}:{path}, to see what differs",
    )


def check_ecosystem(ecosystem: Ecosystem, found: Collection[str], path: str) -> None:
    """Refuses another ecosystem's weights, and what are no weights of MobileNetV2.

    Raises:
      UsageError: with the ecosystem that it looks like.
    """
    right = infer_ecosystem(found)
    if right is not None and right != ecosystem.name:
        raise UsageError(
            f"{path!r} is not {ecosystem.name}'s: this looks like {right}; load it as "
            f"{right}:{path}."
        )
    expected = _backbone(ecosystem.name)
    if expected.isdisjoint(found):
        examples = ", ".join(shown(name) for name in sorted(found)[:3]) or "no tensor at all"
        raise UsageError(
            f"{path!r} holds no MobileNetV2 of {ecosystem.title}: it has {examples}, and none of "
            f"the names that belong there, such as {sorted(expected)[0]}."
        )


def head_names(ecosystem: Ecosystem) -> tuple[str, str]:
    """Returns the names of the classifier's kernel and bias."""
    leaves = ecosystem.framework.leaves
    return (
        leaves["head_kernel"].format(head=ecosystem.head),
        leaves["head_bias"].format(head=ecosystem.head),
    )


def merge(
    ecosystem: Ecosystem,
    architecture: Architecture,
    found: Mapping[str, np.ndarray],
    path: str,
) -> dict[str, Any]:
    """Puts every tensor of a file in its place, or none.

    Raises:
      UsageError: something is missing, unexpected, of another shape, not float or not finite.
    """
    framework = ecosystem.framework
    expected = {tensor.theirs: tensor for tensor in tensors(ecosystem, *architecture)}
    spare = {tensor.theirs for tensor in _spare(ecosystem, architecture)}
    missing = [
        f"- {shown(name)} {list(their_shape(framework, tensor.kind, tensor.shape))}"
        for name, tensor in expected.items()
        if name not in found
    ]
    unexpected = [
        f"+ {shown(name)} {list(array.shape)}"
        for name, array in found.items()
        if name not in expected and name not in spare and not name.endswith(framework.ignored)
    ]
    shaped = [
        f"~ {shown(name)} {list(found[name].shape)} is not "
        f"{list(their_shape(framework, tensor.kind, tensor.shape))}"
        for name, tensor in expected.items()
        if name in found and our_shape(framework, tensor.kind, found[name].shape) != tensor.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shaped))
    differences = "; ".join(_listed(kind, entries) for kind, entries in kinds if entries)
    if differences:
        raise UsageError(
            f"{path!r} does not fit the {architecture.title} of {ecosystem.name}, and nothing was "
            f"loaded: {differences}. Give the whole state of a plain MobileNetV2"
            f"{', or of its DeepLabv3 without pyramid' if ecosystem.segmenter else ''}."
        )
    _check_values(path, expected, found)
    flat = {
        tensor.ours: np.ascontiguousarray(
            to_ours(framework, tensor.kind, found[name]), dtype=np.float32
        )
        for name, tensor in expected.items()
    }
    return unflatten_dict(flat, sep="/")


def _spare(ecosystem: Ecosystem, architecture: Architecture) -> list[Tensor]:
    """What the file may hold besides the network."""
    if architecture.head is None:
        return []
    return unused(ecosystem, architecture.spec, architecture.width)


def _listed(kind: str, entries: list[str]) -> str:
    more = f", and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return f"{len(entries)} {kind} ({', '.join(entries[:SHOWN])}{more})"


def _check_values(
    path: str, expected: Mapping[str, Tensor], found: Mapping[str, np.ndarray]
) -> None:
    """Refuses numbers that a trained network cannot have."""
    for name, tensor in expected.items():
        array = found[name]
        if array.dtype.kind != "f":
            raise UsageError(
                f"{path!r} holds {name} as {array.dtype}: floating point is needed; give the "
                "float model, not a quantized one."
            )
        if not np.isfinite(array).all() or np.abs(array).max(initial=0) > MAX_FLOAT:
            raise UsageError(
                f"{path!r} holds NaN or infinite numbers in {name}: the file is damaged or the "
                "training diverged; take another one."
            )
        if tensor.ours.endswith("/var") and array.min(initial=0) < 0:
            raise UsageError(
                f"{path!r} holds a variance below 0 in {name}: the file is damaged; take another."
            )
