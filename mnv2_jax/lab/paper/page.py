"""The report as one self-contained HTML page, and as Markdown."""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from mnv2_jax.lab.paper.content import Item, Missing, Note, Part, Picture, Table
from mnv2_jax.lab.paper.drawing import svg
from mnv2_jax.markdown import markdown_table

PAGE = Template(Path(__file__).with_suffix(".html").read_text("utf-8"))
STYLE = Path(__file__).with_suffix(".css").read_text("utf-8")  # light, dark and paper
ORIGINS = {"p": "paper", "h": "here", "-": ""}  # classes of cells
EMPTY = ("", "–", "not run", "reference", "no expansion")  # in columns of numbers
MARKS = {  # in a paragraph outside of code, in the order in which they are looked for
    r"\[([^\]]+)\]\((https://[^)\s]+)\)": r'<a href="\2">\1</a>',
    r"\*\*(.+?)\*\*": r"<strong>\1</strong>",
    r"(?<!\\)\*(\S.*?)(?<!\\)\*": r"<em>\1</em>",
    r"\\\*": "*",
}
KEY = '<p class="key"><span class="paper">printed in the paper</span> '
KEY += '<span class="here">counted or measured here</span></p>'
TITLE = "MobileNetV2, table by table"
Section = tuple[Item, tuple[Part, ...]]  # with what was computed for it
PAPER_LINK = "[arXiv 1801.04381](https://arxiv.org/abs/1801.04381)"


def introduction(command: str) -> list[str]:
    """Returns the paragraphs that say what the report is."""
    return [
        "Every table and figure with numbers in “MobileNetV2: Inverted Residuals and Linear "
        f"Bottlenecks” ({PAPER_LINK}), reproduced by this project.",
        "What the paper prints is headed “paper”. What is headed “counted” or “corrected” was "
        "counted on this project's own models, layer by layer, when the report was made; “here” "
        "was trained or measured by it. What only a training can give is taken from the results of "
        "experiments, and where there is none yet, the command that makes it is shown. Figures 2, "
        "3 and 4 are drawings without numbers and are left out.",
        f"Made by `{command}`.",
    ]


def html_page(sections: Sequence[Section], command: str, facts: str) -> str:
    """Composes the page; pictures stand in it as SVG, and nothing is loaded from elsewhere."""
    links = "".join(
        f'<li><a href="#{item.key}"><b>{item.name}</b> {html.escape(item.title)}</a></li>'
        for item, _ in sections
    )
    intro = "".join(f"<p>{inline(text)}</p>" for text in introduction(command))
    return PAGE.substitute(
        title=TITLE, style=STYLE, introduction=intro + KEY, links=links, facts=inline(facts),
        body="\n".join(map(_section, sections)),
    )  # fmt: skip


def markdown_page(sections: Sequence[Section], command: str, facts: str) -> str:
    """Composes the same as Markdown, with pictures in files of their own beside it."""
    parts = [f"# {TITLE}", *introduction(command)]
    for item, shown in sections:
        parts += [f"## {item.name}: {item.title}", f"`{item.command}`", *map(_markdown, shown)]
    return "\n\n".join([*parts, "---", facts]) + "\n"


def inline(text: str) -> str:
    r"""Turns a paragraph's marks into HTML, and everything else into itself.

    >>> inline("a < b, `c*d*`, **e**, *f* and \\*")
    'a &lt; b, <code>c*d*</code>, <strong>e</strong>, <em>f</em> and *'
    """
    pieces = html.escape(text, quote=False).split("`")
    pieces[1::2] = map(_code, pieces[1::2])
    for mark, tag in MARKS.items():
        pieces[::2] = [re.sub(mark, tag, piece) for piece in pieces[::2]]
    return "".join(pieces)


def _code(escaped: str) -> str:
    """Keeps an option in one piece, where a browser would break a line after its hyphens."""
    marked = re.sub(r"(?<!\S)(--[^ ]*)", r'<span class="word">\1</span>', escaped)
    return f"<code>{marked}</code>"


def _section(section: Section) -> str:
    item, parts = section
    shown = "\n".join(_html(part) for part in parts)
    return (
        f'<section id="{item.key}">\n<h2><span>{item.name}</span> {html.escape(item.title)}</h2>\n'
        f'<p class="command">{_code(html.escape(item.command))}</p>\n{shown}\n</section>'
    )


def _html(part: Part) -> str:
    if isinstance(part, Table):
        return _html_table(part)
    if isinstance(part, Picture):
        label = html.escape(part.alt, quote=True)
        if isinstance(part.drawn, Path):
            data = base64.b64encode(part.drawn.read_bytes()).decode()
            return f'<figure><img alt="{label}" src="data:image/png;base64,{data}"></figure>'
        drawn = svg(part.drawn, part.name.replace(".", "-"))
        return f'<figure role="img" aria-label="{label}">{drawn}</figure>'
    if isinstance(part, Missing):
        what, command = inline(part.what), _code(html.escape(part.command))
        return f'<p class="missing">{what}:<br>{command}</p>'
    kind = ' class="note"' if isinstance(part, Note) else ""
    return f"<p{kind}>{inline(part.text)}</p>"


def _html_table(table: Table) -> str:
    origins = [ORIGINS[letter] for letter in table.origins or "-" * len(table.header)]
    columns = zip(*table.rows, strict=True)
    numeric = [all(_is_number(cell) or cell in EMPTY for cell in column) for column in columns]

    def row(tag: str, cells: Iterable[object]) -> str:
        shown = ""
        for cell, origin, numbers in zip(cells, origins, numeric, strict=True):
            right = numbers or (tag == "td" and _is_number(cell))
            names = f"{origin} {'number' * right}".strip()
            mark = f' class="{names}"' if names else ""
            shown += f"<{tag}{mark}>{inline(str(cell))}</{tag}>"
        return f"<tr>{shown}</tr>"

    # Not HTML's caption, which would be broken to the width of a narrow table.
    caption = f'<p class="caption">{inline(table.caption)}</p>' if table.caption else ""
    body = "\n".join(row("td", cells) for cells in table.rows)
    return (
        f'{caption}<div class="table"><table><thead>{row("th", table.header)}</thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _is_number(cell: object) -> bool:
    return re.fullmatch(r"[-+]?\d[\d,.]*%?( .*)?", str(cell)) is not None


def _markdown(part: Part) -> str:
    if isinstance(part, Table):
        caption = f"*{part.caption}*\n\n" if part.caption else ""
        return caption + markdown_table(part.header, part.rows)
    if isinstance(part, Picture):
        return f"![{part.alt}]({part.name}.png)"
    if isinstance(part, Missing):
        return f"> {part.what}: `{part.command}`"
    return f"> **Note.** {part.text}" if isinstance(part, Note) else part.text
