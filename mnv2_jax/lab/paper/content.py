"""What a page is made of: items of the paper, and the parts that each is shown by."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

PAPER, HERE, PLAIN = "paper", "here", ""


class Text(NamedTuple):
    """A paragraph; `code`, **bold** and `[label](address)` are understood."""

    text: str


class Note(NamedTuple):
    """Where the paper contradicts itself, or where this project reads it in its own way."""

    text: str


class Table(NamedTuple):
    """A table.

    Attributes:
      header: of the columns.
      rows: of cells, as wide as the header.
      origins: for each column `PAPER` (printed there), `HERE` (counted or measured by this
        project) or `PLAIN` (names). Empty makes all plain.
      caption: above the table.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    origins: tuple[str, ...] = ()
    caption: str = ""


class Picture(NamedTuple):
    """A figure of matplotlib, with the name of its file and the words for who cannot see it."""

    name: str
    figure: Any
    alt: str


class Image(NamedTuple):
    """A picture in PNG that a run drew, with the name of its copy and words for it."""

    name: str
    path: Path
    alt: str


class Missing(NamedTuple):
    """Something that only a training can give, and the command that gives it."""

    what: str
    command: str


Part = Text | Note | Table | Picture | Image | Missing


class Sources(NamedTuple):
    """What an item may draw on, besides the models.

    Attributes:
      runs: folders that hold results of experiments, the first one first.
      model: folder of the trained model whose channels Fig. 7 counts; None looks in `runs`.
    """

    runs: tuple[Path, ...] = ()
    model: Path | None = None


class Item(NamedTuple):
    """A table or figure of the paper.

    Attributes:
      key: names it on the command line and in addresses, e.g. `table-3`.
      name: as the paper calls it.
      title: what it shows.
      command: that makes what is new in it.
      parts: computes what it is shown by.
    """

    key: str
    name: str
    title: str
    command: str
    parts: Callable[[Sources], Iterable[Part]]
