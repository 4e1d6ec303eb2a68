"""What values may be: the rules of configurations, and of what describes a saved model."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from mnv2_jax.errors import UsageError, shown, unknown
from mnv2_jax.models.build import DTYPES, PARTS, look_up_part
from mnv2_jax.models.deeplab import ATROUS
from mnv2_jax.models.ssdlite import HEADS

MAX_SIDE = 2**13  # of images, and channels of a layer: what is more is a mistake or damage

# (value) -> what it has to be; "" if it is that.
Rule = Callable[[Any], str]


def number(low: float, high: float | None = None) -> Rule:
    """Finite numbers from `low` to `high`, both included; whole ones if `low` is an integer."""
    whole = isinstance(low, int)
    shown = [f"{bound}" if whole else f"{bound:g}" for bound in (low, high) if bound is not None]
    bounds = f"at least {shown[0]}" if high is None else f"between {' and '.join(shown)}"

    def rule(value: Any) -> str:
        if type(value) is not int and (whole or type(value) is not float):
            return f"{'an integer' if whole else 'a number'} {bounds}"
        inside = low <= value < math.inf and (high is None or value <= high)  # NaN is not
        return "" if inside else bounds

    return rule


def rate(value: Any) -> str:
    """A probability that leaves something: from 0 to below 1."""
    return "" if not number(0.0, 1.0)(value) and value < 1 else "a number of at least 0 and below 1"


def flag(value: Any) -> str:
    """True or False."""
    return "" if isinstance(value, bool) else "True or False"


def text(value: Any) -> str:
    """Any text."""
    return "" if isinstance(value, str) and "\0" not in value else "a text without null characters"


def part(kind: str) -> Rule:
    """The name of a part of the network; an unknown one is refused with the remedy.

    A dialect of imported weights may be a mapping, which `build` checks.
    """

    def rule(value: Any) -> str:
        if kind == "dialect" and isinstance(value, dict):
            return ""
        return text(value) or (look_up_part(kind, value, f"model.{kind}") and "")

    return rule


def optional(rule: Rule) -> Rule:
    """None, or what another rule allows."""
    return lambda value: "" if value is None else rule(value)


def each(rule: Rule) -> Rule:
    """A tuple whose every item a rule allows."""

    def all_of(value: Any) -> str:
        if not isinstance(value, tuple):
            return "a tuple"
        wrong = next(filter(None, map(rule, value)), "")
        return wrong and f"a tuple, each item {wrong}"

    return all_of


def rising(low: float, high: float) -> Rule:
    """Two numbers from `low` to `high`, the first not above the second."""
    items, must = each(number(low, high)), f"two numbers that rise, between {low:g} and {high:g}"
    return lambda v: "" if not items(v) and len(v) == 2 and v[0] <= v[1] else must


# The options of networks, of every task, and of how their images are prepared, by the keys that a
# configuration has them under, and a saved model.
MODEL: dict[str, Rule | Mapping[str, Any]] = {
    **{kind: part(kind) for kind in PARTS},
    "dtype": DTYPES, "dropout": number(0.0, 1.0), "width": number(0.001, 64.0),
    "bn_decay": optional(number(0.0, 1.0)), "expansion": optional(number(1, 64)),
    "output_stride": optional(number(1, 64)), "stochastic_depth": rate,
}  # fmt: skip
HEADS_OF = {
    "detect": {"heads": HEADS, "max_objects": number(1, 1024)},
    "segment": {
        "atrous": ATROUS, "aspp": flag, "decoder": flag, "rates": each(number(1, 1024)),
        "channels": number(1, MAX_SIDE),
    },
}  # fmt: skip
EVAL = {"crop": text, "fraction": number(0.001, 1.0)}


def check_value(key: str, value: Any, rule: Rule | Mapping[str, Any]) -> None:
    """Refuses what a rule, or a table of choices, does not allow, with a `UsageError`."""
    if isinstance(rule, Mapping):
        if not isinstance(value, str) or value not in rule:
            raise unknown(key, value, rule)
    elif must := rule(value):
        raise UsageError(f"{key} is {shown(value)}: it must be {must}.")
