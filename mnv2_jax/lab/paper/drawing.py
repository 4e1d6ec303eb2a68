"""Pictures of one style, as PNG for Markdown and as SVG that takes the colors of its page."""

import io
import re
from pathlib import Path
from typing import Any

from mnv2_jax.lab.train.report import COLORS as PALETTE

COLORS = PALETTE[:6]  # black, the seventh, is the text's
INK = "#000000"
# What the page declares for light and dark: a color of the palette -> a variable of CSS.
VARIABLES = {color.lower(): f"--c{i}" for i, color in enumerate(COLORS)}
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("font.size", "axes.labelsize"), 9), "axes.titlesize": 9.5,
    **dict.fromkeys(("legend.fontsize", "xtick.labelsize", "ytick.labelsize"), 8.5),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.7),
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    "svg.fonttype": "none", "svg.hashsalt": "mnv2_jax",  # the same picture gets the same bytes
}  # fmt: skip


def figure(
    width: float, height: float, rows: int = 1, columns: int = 1, box: bool = False, **kwargs: Any
) -> Any:
    """Returns a figure of `width` × `height` inches without a backend, and its axes as an array.

    They have a faint grid and nothing above or on the right, unless they are to be a `box`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(width, height), layout="constrained")
        axes = fig.subplots(rows, columns, squeeze=False, **kwargs)
    for ax in [] if box else axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.2, linewidth=0.6)
        ax.set_axisbelow(True)
    return fig, axes


def write_png(fig: Any, path: Path) -> None:
    """Writes a figure on white."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        # Without the version of matplotlib the same picture is the same file.
        fig.savefig(path, dpi=120, facecolor="white", metadata={"Software": None})


def svg(fig: Any, prefix: str) -> str:
    """Returns a figure as SVG to stand inside HTML, in the colors that the page declares.

    Ids get a prefix, for several pictures share a page.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = "<svg" + buffer.getvalue().partition("<svg")[2]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # HTML needs no name spaces
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = text.replace(INK, "currentColor").replace("stroke: #b0b0b0", "stroke: currentColor")
    for color, name in VARIABLES.items():
        text = text.replace(color, f"var({name})")
    width = re.search(r'width="([\d.]+)pt"', text)
    # The box of coordinates is enough; the page decides the size, up to the drawn one.
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    limit = f' style="max-width:{float(width[1]) * 4 / 3:.0f}px"' if width else ""
    return text.replace("<svg", f"<svg{limit}", 1).strip()
