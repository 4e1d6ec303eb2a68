"""What a page is made of: items of the paper, and the parts that show each of them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ONLY, TRAIN = "python main.py paper ", "python main.py --config experiments/"


class Text(NamedTuple):
    """A paragraph; `code`, **bold** and `[label](address)` are understood."""

    text: str


class Note(NamedTuple):
    """Says where the paper contradicts itself, or how this project reads it."""

    text: str


class Table(NamedTuple):
    """A table: rows as wide as its header, and a caption above it."""

    header: tuple[str, ...]
    rows: Sequence[tuple[object, ...]]
    # A letter a column: p for what the paper prints, h for what was counted or measured here, - for
    # names. Empty stands for names only.
    origins: str = ""
    caption: str = ""


class Picture(NamedTuple):
    """The name of a picture's file, a figure or the path of a PNG, and what one sees in it."""

    name: str
    drawn: Any
    alt: str


class Missing(NamedTuple):
    """A result that needs a training, and the command that trains it."""

    what: str
    command: str


Part = Text | Note | Table | Picture | Missing


class Sources(NamedTuple):
    """Where items find results."""

    runs: tuple[Path, ...] = ()  # folders that hold results of experiments; earlier ones win
    model: Path | None = None  # whose channels Fig. 7 counts; None looks in runs


class Item(NamedTuple):
    """A table or figure of the paper, and what computes the parts that show it."""

    key: str  # on the command line and in addresses, such as table-3
    name: str  # in the paper
    title: str
    command: str  # makes what is new in it
    parts: Callable[[Sources], Iterable[Part]]
