"""The only tables from names to functions: how a configuration names a network."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from mnv2_jax.errors import UsageError, unknown
from mnv2_jax.models.block import SHORTCUTS
from mnv2_jax.models.deeplab import ATROUS, DECODER_TAP, HEAD, RATES, DeepLabV3
from mnv2_jax.models.dialect import DIALECTS
from mnv2_jax.models.layers import ACTIVATIONS
from mnv2_jax.models.mobilenet import MobileNetV2
from mnv2_jax.models.spec import SPECS, with_expansion
from mnv2_jax.models.ssdlite import DETECTION, HEADS, SSDLite

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

# What a configuration writes as a name, and the table that the name is looked up in.
NAMED: dict[str, Mapping[str, Any]] = {
    "spec": SPECS,
    "dialect": DIALECTS,
    "shortcut": SHORTCUTS,
    "bottleneck": ACTIVATIONS,
    "activation": ACTIVATIONS,
    "dtype": DTYPES,
}


def build(
    expansion: int | None = None,
    bn_decay: float | None = None,
    class_offset: int = 0,
    **options: Any,
) -> MobileNetV2:
    """Builds a network from plain values, as they stand in a configuration.

    Args:
      expansion: replaces the expansion factor of Table 2's rows; None keeps them.
      bn_decay: replaces the dialect's decay of the moving averages; None keeps it. Short trainings
        need a faster one than the published networks had.
      class_offset: 1 where class 0 of the logits is "background", as in some published weights;
        it belongs to a classifier, so the dialect does not decide it here.
      **options: attributes of `MobileNetV2`; `spec`, `dialect`, `shortcut`, `bottleneck`,
        `activation` and `dtype` by name.

    Raises:
      UsageError: an option or a name is unknown, or a value cannot be used.

    >>> build(width=0.5, shortcut="none", bottleneck="relu6").shortcut.__name__
    'no_shortcut'
    """
    fields = [f for f in MobileNetV2.__dataclass_fields__ if f not in ("parent", "name")]
    for option in options:
        if option not in fields:
            raise unknown(
                "model option", option, ["expansion", "bn_decay", "class_offset", *fields]
            )
    for option, table in NAMED.items():
        if option in options:
            options[option] = look_up(option, options[option], table)
    if expansion is not None:
        options["spec"] = with_expansion(options.get("spec", SPECS["imagenet"]), expansion)
    if class_offset not in (0, 1):
        raise UsageError(
            f"class_offset is {class_offset!r}: it is 1 where class 0 is background, else 0."
        )
    dialect = options.get("dialect", DIALECTS["slim"])
    if options.get("num_classes", 1000) is not None:  # without a classifier nothing is offset
        dialect = dialect._replace(class_offset=class_offset)
    options["dialect"] = dialect if bn_decay is None else dialect._replace(bn_decay=bn_decay)
    return MobileNetV2(**options)


def build_ssdlite(
    num_classes: int = 80,
    heads: str = "ssdlite",
    bn_decay: float | None = DETECTION.bn_decay,
    **backbone: Any,
) -> SSDLite:
    """Builds a detector (Sec. 6.2) from plain values.

    Args:
      num_classes: without background.
      heads: `ssdlite` or `ssd`.
      bn_decay: of the moving averages; None takes the dialect's.
      **backbone: options of `build`.

    Raises:
      UsageError: an option or a name is unknown, or a value cannot be used.

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
      aspp: adds the pyramid.
      rates: of its branches; none takes the authors' for this output stride.
      decoder: refines the result with features of stride 4 (DeepLabv3+).
      atrous: `full` or `separable`, the 3×3 convolutions of pyramid and decoder.
      channels: of every layer of the head.
      dropout: before the logits.
      bn_decay: of all moving averages; None keeps those of backbone and head.
      **backbone: options of `build`. The last 1×1 convolution is always left out.

    Raises:
      UsageError: an option or a name is unknown, or a value cannot be used.

    >>> build_deeplab(output_stride=8, aspp=True).rates
    (12, 24, 36)
    """
    features = build(num_classes=None, output_stride=output_stride, bn_decay=bn_decay, **backbone)
    if rates and not aspp:
        raise UsageError(f"rates are {tuple(rates)} without aspp, whose they are: leave them out.")
    if aspp and not rates and output_stride not in RATES:
        listed = ", ".join(str(stride) for stride in sorted(RATES))
        raise UsageError(
            f"aspp with output_stride {output_stride!r}: its rates are known for {listed}; give "
            "others as rates."
        )
    return DeepLabV3(
        num_classes,
        features.clone(spec=features.spec._replace(last=None)),
        tuple(rates or RATES[output_stride]) if aspp else (),
        look_up("atrous", atrous, ATROUS),
        DECODER_TAP if decoder else None,
        channels,
        dropout=dropout,
        dialect=HEAD if bn_decay is None else HEAD._replace(bn_decay=bn_decay),
    )


def look_up(kind: str, name: Any, table: Mapping[str, Any]) -> Any:
    """Returns the entry of a table.

    Raises:
      UsageError: there is none of this name; the message lists the choices.
    """
    if not isinstance(name, str) or name not in table:
        raise unknown(kind, name, table)
    return table[name]
