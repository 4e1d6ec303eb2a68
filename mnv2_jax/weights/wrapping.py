"""Finds a network in a checkpoint, whatever wraps its names, and its moving averages beside it."""

import functools
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mnv2_jax.weights.limits import DamagedError, shown
from mnv2_jax.weights.names import ECOSYSTEMS
from mnv2_jax.weights.tensors import backbone_names

AVERAGES = {"ema", "averaged", "average", "averages", "avg", "swa", "shadow"}
"""Words in what wraps the names of moving averages."""

TRAINING = re.compile(r"(?i)(^|[./])(opt|\w*optim\w*|\w*sched\w*|\w*scaler\w*|rng\w*)([./]|$)")
"""Parts of names that belong to the state of a training."""

SLOTS = ("/RMSProp", "/RMSProp_1", "/Momentum", "/Adam", "/Adam_1")
"""Endings of the names of an optimizer's state in TensorFlow."""

AVERAGE = "/ExponentialMovingAverage"
"""Ending of the name of a variable's moving average in TensorFlow."""

HF = "mobilenet_v2."
"""What Hugging Face's networks with a head put before the names of its network without one."""


def choose_network(arrays: Mapping[str, Any], ema: bool) -> tuple[dict[str, Any], str]:
    """Takes the network out of a checkpoint: its weights, or their moving averages if it has any.

    What wraps its names is removed (`module.`, `state_dict.model.`, ...), from the entries beside
    it too as far as they share it; the state of an optimizer is dropped. With the arrays comes what
    became of moving averages: "absent", "used" or "left out".

    >>> names = {"conv_stem.weight": 1, "bn1.weight": 2, "bn1.bias": 3}
    >>> both = {f"model.module.{name}": array for name, array in names.items()}
    >>> both |= {f"model_ema.{name}": -array for name, array in names.items()}
    >>> choose_network(both | {"model.fc.weight": 4, "optimizer.0": 5}, ema=True)
    ({'conv_stem.weight': -1, 'bn1.weight': -2, 'bn1.bias': -3, 'fc.weight': 4}, 'used')
    """
    entries = {
        f"ema/{name.removesuffix(AVERAGE)}" if name.endswith(AVERAGE) else name: array
        for name, array in arrays.items()
        if not name.endswith(SLOTS) and not TRAINING.search(name)
    }
    counts = Counter(p for name in entries if (p := _prefix(name)) is not None)
    if not counts:
        return entries, "absent"
    prefixes = [p for p, count in counts.items() if 3 * count >= max(counts.values())]
    averages = [p for p in prefixes if AVERAGES & set(re.split(r"[./_]", p.lower()))]
    raw = [p for p in prefixes if p not in averages]
    if len(raw) > 1 or len(averages) > 1:
        named = ", ".join(shown(p) or "no prefix" for p in prefixes)
        raise DamagedError(f"it holds several networks ({named}): save the one that is meant alone")
    networks: dict[str, dict[str, Any]] = {p: {} for p in prefixes}
    for name, array in entries.items():
        prefix, inside = _place(name, prefixes)
        if inside in networks[prefix]:
            raise DamagedError(f"it holds {shown(inside)} twice")
        networks[prefix][inside] = array
    if not raw or not averages:
        return _as_with_head(networks[prefixes[0]]), "absent"
    weights = networks[raw[0]] | (networks[averages[0]] if ema else {})
    return _as_with_head(weights), "used" if ema else "left out"


@functools.cache
def _known() -> frozenset[str]:
    """Every name that a library gives to a tensor of the backbone."""
    names = frozenset[str]().union(*(backbone_names(ecosystem) for ecosystem in ECOSYSTEMS))
    return names | {name.removeprefix(HF) for name in names}


def _prefix(name: str) -> str | None:
    """What stands before the longest ending of a name that is a tensor's of the backbone."""
    starts = (0, *(match.end() for match in re.finditer(r"[./]", name[:1000])))
    return next((name[:start] for start in starts if name[start:] in _known()), None)


def _place(name: str, prefixes: list[str]) -> tuple[str, str]:
    """Returns the prefix of the network that an entry belongs to, and its name there."""
    for prefix in sorted(prefixes, key=len, reverse=True):
        if name.startswith(prefix):
            return prefix, name[len(prefix) :]

    def shared(prefix: str) -> int:
        ends = [match.end() for match in re.finditer(r"[./]", prefix)]
        return max((end for end in ends if name.startswith(prefix[:end])), default=0)

    prefix = max(prefixes, key=shared)
    return prefix, name[shared(prefix) :]


def _as_with_head(arrays: dict[str, Any]) -> dict[str, Any]:
    """Renames Hugging Face's network without a head as it is called with one."""
    known = backbone_names("hf")
    return {HF + name if HF + name in known else name: array for name, array in arrays.items()}
