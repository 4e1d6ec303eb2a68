"""Sec. 5.1: the memory of inference against t, as the paper counts it and as XLA allocates it."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mnv2_jax.accounting import bottleneck_memory
from mnv2_jax.inference.run import fold, folded_apply
from mnv2_jax.lab.paper.content import Note, Part, Picture, Sources, Table, Text
from mnv2_jax.lab.paper.drawing import COLORS, figure
from mnv2_jax.models.mobilenet import MobileNetV2
from mnv2_jax.models.spec import unroll

SIZE, LARGE = 224, 1024
SPLITS = (1, 2, 3, 4, 5, 6)  # the paper advises 2 to 5
COMPILED = (2, 3, 5)
SHOWN = (None, 1, 2, 5)  # in the profile
BAND = 1 << 20  # bytes of an expanded tensor above which `folded_apply` cuts a block by rows
WHOLE, BANDS = "whole tensors", "bands of rows"


def temporary_bytes(model: MobileNetV2, size: int = SIZE, band: float | None = None) -> int:
    """Returns what XLA allocates beside weights, input and output to run a model on one image.

    With `band`, it is folded, and its blocks are computed in bands of rows of so many bytes.
    """
    image = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    apply = model.apply
    if band is not None:
        variables = jax.eval_shape(partial(fold, model), variables)
        apply = partial(folded_apply, model, band=band)
    compiled = jax.jit(apply).lower(variables, image).compile()
    analysis: Any = compiled.memory_analysis()
    return int(analysis.temp_size_in_bytes)


def _measure(size: int) -> dict[str, int]:
    groups = {f"t = {t}": temporary_bytes(MobileNetV2(split=t), size) for t in COMPILED}
    whole, bands = (temporary_bytes(MobileNetV2(), size, band) for band in (None, BAND))
    return {WHOLE: whole, **groups, BANDS: bands}


def peak_elements(split: int | None, size: int = SIZE) -> int:
    """Returns the activations that must exist at once, as Sec. 5.1 counts them.

    >>> peak_elements(None), peak_elements(5)
    (1505280, 682394)
    """
    return max(n for _, n in bottleneck_memory(unroll(), (size, size), split))


def section_5_1(_: Sources) -> Iterator[Part]:
    """Memory against t."""
    measured = {size: _measure(size) for size in (SIZE, LARGE)}
    alt = "Activations alive through the network, whole and in t groups; and what XLA allocates."
    yield Picture("sec-5.1", _draw(measured), alt)
    yield Text(
        "Left: activations alive while each operation runs, at 16 bit, if every convolution is an "
        "operation (whole) or every block is one, its inner tensors in t groups. Right: the "
        f"temporaries of XLA's `memory_analysis()` on {jax.default_backend().upper()} for one "
        "image in 32 bit, as a share of those of whole tensors."
    )
    peaks = [(WHOLE, peak_elements(None)), *((f"t = {t}", peak_elements(t)) for t in SPLITS)]
    rows = [(name, f"{peak:,}", f"{2 * peak / 1000:,.0f}") for name, peak in peaks]
    header = ("blocks computed in", "peak, elements", "peak, kB at 16 bit")
    caption = f"By the paper's count: MobileNetV2 1.0, one image of {SIZE}×{SIZE}"
    yield Table(header, rows, "-hh", caption)
    header, cells = header[:1], {name: [name] for name in measured[SIZE]}
    for size, counts in measured.items():
        header += (f"MB at {size}×{size}", f"of whole at {size}")
        for name, count in counts.items():
            cells[name] += [f"{count / 1e6:.2f}", f"{count / counts[WHOLE]:.2f}"]
    caption = "As XLA allocates it: temporaries of the same network in 32 bit"
    yield Table(header, list(map(tuple, cells.values())), "-hhhh", caption)
    yield Note(
        "t = 1 is a block as one operation that still holds its inner tensors, which the paper's "
        "bound leaves out. The split as the paper has it folds batch norm and cuts the weights "
        "into groups within the program, so that copies of weights are among its temporaries; "
        "they do not grow with the image, the activations do. Bands of rows, which "
        f"`mnv2_jax/inference/run.py` cuts blocks into whose expanded tensor is large (here above "
        f"{BAND >> 20} MiB), save at both. What each costs in time: `python -m benchmarks.memory`."
    )


def _draw(measured: dict[int, dict[str, int]]) -> Any:
    fig, axes = figure(10.2, 3.3, columns=2, width_ratios=(3, 2))
    left, right = axes.flat
    for color, split in zip(COLORS, SHOWN, strict=False):
        peaks: dict[str, int] = {}
        for name, elements in bottleneck_memory(unroll(), (SIZE, SIZE), split):
            part = name.split("/")[0]
            peaks[part] = max(peaks.get(part, 0), elements)
        label = f"t = {split}" if split else "whole"
        profile = [2 * n / 1000 for n in peaks.values()]
        left.plot(profile, color=color, linewidth=1.6, drawstyle="steps-mid", label=label)
    left.set_xticks(range(19), ["stem", *map(str, range(17)), "last"])
    left.set(xlabel="block", ylabel="activations, kB at 16 bit")
    left.legend(frameon=False)
    for i, (size, counts) in enumerate(measured.items()):
        shares = [count / counts[WHOLE] for count in counts.values()]
        places = [j + 0.38 * i - 0.19 for j in range(len(shares))]
        right.bar(places, shares, color=COLORS[i], width=0.36, label=f"{size}²")
        for x, share in zip(places, shares, strict=True):
            right.text(x, share + 0.01, f"{share:.2f}", ha="center", fontsize=7.5)
    names = [name.replace(" tensors", "").replace(" of rows", "") for name in measured[SIZE]]
    right.set_xticks(range(len(names)), names)
    top = 1.12 * max(max(m.values()) / m[WHOLE] for m in measured.values())
    right.set(ylabel="XLA temporaries, share of whole", ylim=(None, top))
    right.legend(frameon=False, title="image", title_fontsize=8.5)
    right.grid(visible=False, axis="x")
    return fig
