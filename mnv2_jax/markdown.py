"""Tables for reports and terminals."""

from collections.abc import Iterable


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Formats rows as a Markdown table.

    >>> print(markdown_table(("t", "KB"), [(1, 400)]))
    | t | KB |
    |---|---|
    | 1 | 400 |
    """
    header = list(header)
    lines = [header, *([str(cell) for cell in row] for row in rows)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text[0], "|---" * len(header) + "|", *text[1:]])
