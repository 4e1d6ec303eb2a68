"""The only tables from names to functions: how a configuration names a network."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.models.block import SHORTCUTS, STANDARD, always_expand
from mnv2_jax.models.deeplab import ATROUS, DECODER_TAP, HEAD, RATES, DeepLabV3
from mnv2_jax.models.dialect import DIALECTS, Dialect
from mnv2_jax.models.layers import ACTIVATIONS
from mnv2_jax.models.mobilenet import MobileNetV2
from mnv2_jax.models.spec import SPECS, Spec, with_expansion
from mnv2_jax.models.ssdlite import DETECTION, HEADS, SSDLite

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

# The parts of a network that a configuration writes as a name, and the table of the names.
PARTS: dict[str, dict[str, Any]] = {
    "spec": SPECS, "dialect": DIALECTS, "shortcut": SHORTCUTS, "activation": ACTIVATIONS,
    "bottleneck": ACTIVATIONS,
    **{m: {"standard": f} for m, f in zip(("expand", "filter", "project"), STANDARD, strict=True)},
}  # fmt: skip
PARTS["expand"]["always"] = always_expand
VALUES = {"spec": Spec, "dialect": Dialect}  # every other part is a function


def add_parts(parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Gives names to parts of one's own, for configurations and saved models to use.

    They are given by kind and name, such as `{"filter": {"five": five}}`; the kinds are the keys of
    `PARTS`, and what they have to be `mnv2_jax.models.block` says. A function that is added again
    under its name, say because its file was loaded twice, replaces the earlier one. `UsageError` if
    a kind is unknown, a name is taken, or a part is not of its kind.
    """
    for kind, named in parts.items():
        if kind not in PARTS:
            raise unknown("kind of part", kind, PARTS)
        if not isinstance(named, Mapping):
            raise UsageError(
                f"the parts of kind {kind!r} are {named!r}: give a mapping, {{name: part}}."
            )
        for name, part in named.items():
            if not isinstance(name, str) or not _fits(kind, part):
                what = VALUES[kind].__name__ if kind in VALUES else "function"
                raise UsageError(f"{kind} {name!r} is {part!r}: give a {what} under a name.")
            taken = PARTS[kind].get(name, part)
            if taken != part and _origin(taken) != _origin(part):
                raise UsageError(
                    f"{kind} {name!r} is taken by {_origin(taken)}: give yours another name."
                )
            PARTS[kind][name] = part


def _fits(kind: str, part: Any) -> bool:
    return isinstance(part, VALUES[kind]) if kind in VALUES else callable(part)


def _origin(part: Any) -> str:
    """The qualified name of a function; anything else as it is written."""
    name = getattr(part, "__qualname__", None)
    return f"{part.__module__}.{name}" if name else repr(part)


def look_up_part(kind: str, given: Any, key: str = "") -> Any:
    """Returns the part of a name, or a part that is given itself; else raises a UsageError."""
    if _fits(kind, given):
        return given
    if kind == "dialect" and (isinstance(given, Mapping) or str(given).startswith("{")):
        return _changed_dialect(given)
    try:
        return look_up(key or kind, given, PARTS[kind])
    except UsageError as error:
        raise UsageError(
            f"{str(error).rstrip('.')}; one of your own stands in PARTS of the experiment's file, "
            "which other verbs take as --code FILE (add_parts in Python)."
        ) from None


def build(
    expansion: int | None = None, bn_decay: float | None = None, **options: Any
) -> MobileNetV2:
    """Builds a network from plain values, as they stand in a configuration.

    Args:
      expansion: replaces the expansion factor of Table 2's rows; None keeps them.
      bn_decay: replaces the dialect's decay of the moving averages; None keeps it.
      **options: attributes of `MobileNetV2`. The parts, which are `spec`, `dialect`, `shortcut`,
        `activation`, `bottleneck`, `expand`, `filter` and `project`, by the name that they have
        here or in `add_parts`, or as they are; `dtype` likewise. A dialect may also be a mapping of
        its `name` and of the fields that differ from the one of this name, or JSON of it.

    Raises:
      UsageError: an option or a name is unknown, or a value cannot be used.

    >>> build(width=0.5, shortcut="none", bottleneck="relu6").shortcut.__name__
    'no_shortcut'
    """
    fields = [f for f in MobileNetV2.__dataclass_fields__ if f not in ("parent", "name")]
    for option in options:
        if option not in fields:
            raise unknown("model option", option, ["expansion", "bn_decay", *fields])
    for kind in PARTS.keys() & options.keys():
        options[kind] = look_up_part(kind, options[kind])
    if not callable(options.get("dtype", jnp.float32)):
        options["dtype"] = look_up("dtype", options["dtype"], DTYPES)
    if expansion is not None:
        options["spec"] = with_expansion(options.get("spec", SPECS["imagenet"]), expansion)
    if bn_decay is not None:
        dialect = options.get("dialect", DIALECTS["slim"])
        options["dialect"] = dialect._replace(bn_decay=bn_decay)
    return MobileNetV2(**options)


def _changed_dialect(given: Any) -> Dialect:
    """A named dialect with other fields, as imported weights may have them."""
    try:
        fields = dict(json.loads(given) if isinstance(given, str) else given)
    except ValueError as error:
        raise UsageError(f"the dialect {given!r} is no JSON ({error}): correct it.") from error
    dialect: Dialect = look_up_part("dialect", fields.pop("name", ""))
    for field, value in fields.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        plain = all(type(number) in (int, float) for number in numbers)
        if field == "padding" and value in ("same", "symmetric"):
            dialect = dialect._replace(padding=value)
        elif field in ("mean", "std") and numbers and plain:
            dialect = dialect._replace(**{field: tuple(numbers)})
        elif field in ("bn_epsilon", "bn_decay") and plain and not isinstance(value, list | tuple):
            dialect = dialect._replace(**{field: value})
        else:
            raise UsageError(f"dialect.{field} is {value!r}: see Dialect for what it may be.")
    return dialect


def build_ssdlite(
    num_classes: int = 80,
    heads: str = "ssdlite",
    bn_decay: float | None = DETECTION.bn_decay,
    **backbone: Any,
) -> SSDLite:
    """Builds a detector (Sec. 6.2) from plain values.

    Classes are without background, heads `ssdlite` or `ssd`; a decay of None is the dialect's. The
    other options are those of `build`, which raises the same errors.

    >>> build_ssdlite(num_classes=20, width=0.5).grids((320, 320))[0]
    (20, 20)
    """
    features = build(num_classes=None, bn_decay=bn_decay, **backbone)
    return SSDLite(num_classes, features, look_up("heads", heads, HEADS))


def build_deeplab(
    num_classes: int = 21,
    output_stride: int = 16,
    aspp: bool = False,
    rates: Sequence[int] = (),
    decoder: bool = False,
    atrous: str = "full",
    channels: int = 256,
    dropout: float = 0.1,
    bn_decay: float | None = None,
    **backbone: Any,
) -> DeepLabV3:
    """Builds a segmenter (Sec. 6.3) from plain values; the defaults are the paper's choice.

    Args:
      num_classes: background included.
      output_stride: of the backbone; 16 and 8 are the paper's.
      aspp: adds the pyramid; `rates` are of its branches, none the authors' for this output stride.
      decoder: refines the result with features of stride 4 (DeepLabv3+).
      atrous: `full` or `separable`, the 3×3 convolutions of pyramid and decoder.
      channels, dropout: of every layer of the head, and before the logits.
      bn_decay: of all moving averages; None keeps those of backbone and head.
      **backbone: options of `build`, which raises the same errors. The last 1×1 convolution is
        always left out.

    >>> build_deeplab(output_stride=8, aspp=True).rates
    (12, 24, 36)
    """
    features = build(num_classes=None, output_stride=output_stride, bn_decay=bn_decay, **backbone)
    if rates and not aspp:
        raise UsageError(f"rates are {tuple(rates)} without aspp, whose they are: leave them out.")
    if aspp and not rates and output_stride not in RATES:
        listed = ", ".join(map(str, sorted(RATES)))
        raise UsageError(
            f"aspp with output_stride {output_stride!r}: its rates are known for {listed}; give "
            "others as rates."
        )
    backbone_ = features.clone(spec=features.spec._replace(last=None))
    head = HEAD if bn_decay is None else HEAD._replace(bn_decay=bn_decay)
    rates = tuple(rates or RATES[output_stride]) if aspp else ()
    tap, branch = DECODER_TAP if decoder else None, look_up("atrous", atrous, ATROUS)
    return DeepLabV3(num_classes, backbone_, rates, branch, tap, channels, dropout, head)


def look_up(kind: str, name: Any, table: Mapping[str, Any]) -> Any:
    """Returns the entry of a table, or raises a UsageError that lists the choices."""
    if not isinstance(name, str) or name not in table:
        raise unknown(kind, name, table)
    return table[name]
