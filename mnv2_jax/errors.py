"""The one exception that means "what you gave cannot be used", and the wording of unknown names."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A value, file or name from the user that cannot be used.

    The message is one line: what was given, what is allowed, what to do about it. The command line
    prints it without a traceback and exits with status 2; in Python it is an ordinary `ValueError`.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    r"""Escapes what cannot be printed on a line, such as what a damaged list gives as file names.

    >>> print(one_line("no file 'a\n\x07'"))
    no file 'a\n\x07'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def unknown(kind: str, name: object, choices: Iterable[str]) -> UsageError:
    """Builds the error for a name that is in no table, with the nearest choice as a suggestion.

    >>> print(unknown("dialect", "slin", ["slim", "keras"]))
    unknown dialect 'slin': did you mean 'slim'? The choices are keras, slim.
    """
    choices = sorted(choices)
    near = difflib.get_close_matches(str(name), choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"unknown {kind} {name!r}: {hint}The choices are {', '.join(choices)}.")
