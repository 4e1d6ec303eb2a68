"""A griffe extension: sets the doctests of docstrings as Python consoles."""

import re

import griffe

# A paragraph that begins with a prompt, at any indentation, up to the next empty line.
BLOCK = re.compile(r"^([ ]*)>>> .*?(?=\n[ ]*\n|\Z)", re.MULTILINE | re.DOTALL)


class Doctests(griffe.Extension):
    """Puts a fence around every doctest, which Markdown would take for quotations and links."""

    def on_object(self, *, obj, **_):
        """Changes the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = BLOCK.sub(_fenced, obj.docstring.value)


def _fenced(match):
    return f"{match[1]}```pycon\n{match[0]}\n{match[1]}```"
