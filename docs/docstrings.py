"""A griffe extension: sets docstrings as the site's Markdown wants them."""

import re

import griffe

# A paragraph that begins with a prompt, at any indentation, up to the next empty line.
BLOCK = re.compile(r"^([ ]*)>>> .*?(?=\n[ ]*\n|\Z)", re.MULTILINE | re.DOTALL)
# An item of Args or Attributes: one name or several, and a text that may take further lines.
ITEM = re.compile(r"^([ ]+)(\w+(?:, \w+)*): (.*(?:\n\1[ ]+\S.*)*)$", re.MULTILINE)
SECTION = re.compile(r"^(?:Args|Attributes):\n(?:[ ]+\S.*\n?)+", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Puts a fence around every doctest, which Markdown would take for quotations and links.

    In lists of arguments and attributes, each name gets an item of its own, and an attribute its
    default.
    """

    def on_object(self, *, obj, **_):
        """Changes the docstring of a module, class, function or attribute."""
        if obj.docstring is None:
            return

        def item(match):
            return "\n".join(_item(obj, match, name) for name in match[2].split(", "))

        text = SECTION.sub(lambda section: ITEM.sub(item, section[0]), obj.docstring.value)
        obj.docstring.value = BLOCK.sub(_fenced, text)


def _item(obj, match, name):
    default = obj.members[name].value if obj.is_class and name in obj.members else None
    text = match[3] if default is None else f"{match[3].rstrip('.')}. Default: `{default}`."
    return f"{match[1]}{name}: {text}"


def _fenced(match):
    return f"{match[1]}```pycon\n{match[0]}\n{match[1]}```"
