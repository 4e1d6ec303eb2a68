"""The whole report: the items in the paper's order, computed and written."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mnv2_jax.errors import UsageError, first_line, unknown
from mnv2_jax.lab.paper import tables
from mnv2_jax.lab.paper.content import ONLY, TRAIN, Item, Picture, Sources
from mnv2_jax.lab.paper.drawing import write_png
from mnv2_jax.lab.paper.figure_1 import figure_1
from mnv2_jax.lab.paper.figure_5 import figure_5
from mnv2_jax.lab.paper.figure_6 import figure_6a, figure_6b
from mnv2_jax.lab.paper.figure_7 import figure_7
from mnv2_jax.lab.paper.page import Section, html_page, markdown_page
from mnv2_jax.lab.paper.section_5_1 import section_5_1
from mnv2_jax.lab.train.report import environment

HTML, MARKDOWN = "report.html", "report.md"

ITEMS = tuple(
    Item(*row) for row in (
        ("fig-1", "Fig. 1", "What ReLU leaves of a spiral", ONLY + "fig-1", figure_1),
        ("table-1", "Table 1", "The bottleneck residual block", ONLY + "table-1", tables.table_1),
        ("table-2", "Table 2", "The network", "python main.py account", tables.table_2),
        ("table-3", "Table 3", "The largest tensor at each size", ONLY + "table-3", tables.table_3),
        ("sec-5.1", "Sec. 5.1", "Memory-efficient inference", ONLY + "sec-5.1", section_5_1),
        ("fig-5", "Fig. 5", "Accuracy against multiply-adds", TRAIN + "tradeoff.py", figure_5),
        ("fig-6a", "Fig. 6a", "Linear or ReLU6 bottleneck", TRAIN + "ablate_linear.py", figure_6a),
        ("fig-6b", "Fig. 6b", "Where the shortcut is", TRAIN + "ablate_shortcut.py", figure_6b),
        ("table-4", "Table 4", "ImageNet classification", ONLY + "table-4", tables.table_4),
        ("table-5", "Table 5", "SSD and SSDLite", ONLY + "table-5", tables.table_5),
        ("table-6", "Table 6", "Detection on COCO", ONLY + "table-6", tables.table_6),
        ("table-7", "Table 7", "Segmentation on VOC 2012", ONLY + "table-7", tables.table_7),
        ("fig-7", "Fig. 7", "Positive channels in each layer", ONLY + "fig-7", figure_7),
    )
)  # fmt: skip


def choose(keys: Sequence[str]) -> list[Item]:
    """Returns the items of the given keys, written as in the paper too, in its order; none is all.

    >>> [item.key for item in choose(["Table 3", "fig6"])]
    ['table-3', 'fig-6a', 'fig-6b']
    """
    known = {item.key for item in ITEMS}
    chosen: set[str] = set()
    for word in keys:
        written = re.fullmatch(r"(table|fig|sec)[a-z]*[\W_]*(\d[\d.]*[a-z]?)", word.lower())
        key = f"{written[1]}-{written[2]}" if written else word
        meant = known & {key, f"{key}a", f"{key}b"}
        if not meant:
            raise unknown("item", word, known)
        chosen |= meant
    return [item for item in ITEMS if not keys or item.key in chosen]


def write_paper(
    out: Path, sources: Sources, keys: Sequence[str] = (), command: str = "python main.py paper",
    progress: Callable[[str], None] = lambda line: None,
) -> list[Path]:  # fmt: skip
    """Computes the items of the given keys, or all, and writes the report to a folder.

    `command` stands in the report; `progress` is called with a line for each item. Returns the
    paths of `report.html`, `report.md` and the latter's pictures. What cannot be read or written
    is a UsageError.
    """
    items = choose(keys)
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
    sections: list[Section] = []
    for number, item in enumerate(items, 1):
        began = time.monotonic()
        sections.append((item, tuple(item.parts(sources))))
        seconds = time.monotonic() - began
        progress(f"[{number:>2}/{len(items)}] {item.name:<8} {item.title:<34} {seconds:5.1f} s")
    facts = environment()
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    about = f"Made on {facts['device']}, {facts['platform']}, with {versions}."
    pictures = [part for _, parts in sections for part in parts if isinstance(part, Picture)]
    pages = {HTML: html_page, MARKDOWN: markdown_page}
    with _writing(out):
        for name, drawn, _ in pictures:
            if isinstance(drawn, Path):
                (out / f"{name}.png").write_bytes(drawn.read_bytes())
            else:
                write_png(drawn, out / f"{name}.png")
        for name, page in pages.items():
            (out / name).write_text(page(sections, command, about), "utf-8")
    return [*map(out.joinpath, pages), *(out / f"{picture.name}.png" for picture in pictures)]


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = f"{out} cannot be written: {first_line(error)}. Choose another --out."
        raise UsageError(why) from error
