"""The one exception that means "what you gave cannot be used", and the wording of messages."""

import difflib
from collections.abc import Iterable, Sequence

MAX_REASON = 200  # characters of a foreign error in one of our messages
MAX_MESSAGE = 1000  # characters of a message; the remedy, at its end, is kept
MAX_LISTED = 40  # choices that a message lists in full


class UsageError(ValueError):
    """A value, file or name from the user that cannot be used.

    The message is one line: what was given, what is allowed, what to do about it. The command line
    prints it without a traceback and exits with status 2; in Python it is an ordinary `ValueError`.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    r"""Escapes what cannot be printed on a line, such as what a damaged list gives as file names.

    Of what is longer than a few lines of a screen, the middle is left out.

    >>> print(one_line("no file 'a\n\x07'"))
    no file 'a\n\x07'
    """
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE - 301]} … {text[-298:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """Returns a given value as it is written, cut to a screen's width.

    >>> shown("a"), shown("a" * 1000)[-3:], shown(10**5000)
    ("'a'", 'aa…', 'a value of type int')
    """
    try:
        text = repr(value)
    except Exception:  # such as that of an integer of more than 4,300 digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"


def first_line(error: BaseException) -> str:
    r"""Returns the first line of an error that another library raised, cut to a screen's width.

    The system's errors lose their number and path, which our message states itself. An error
    without words is told by its type.

    >>> first_line(RuntimeError("\nRESOURCE_EXHAUSTED:  out of memory.\nAt step 3 ..."))
    'RESOURCE_EXHAUSTED: out of memory'
    >>> first_line(FileNotFoundError(2, "No such file or directory", "a.json"))
    'No such file or directory'
    >>> first_line(KeyError("label")), first_line(MemoryError())
    ("KeyError: 'label'", 'MemoryError')
    """
    text = str(getattr(error, "strerror", None) or error).strip()
    line = " ".join(text.split("\n", 1)[0].split()).rstrip(".: ")
    if isinstance(error, LookupError) and line:
        line = f"{type(error).__name__}: {line}"
    line = line or type(error).__name__
    return line if len(line) <= MAX_REASON else line[: MAX_REASON - 1] + "…"


def typed_line(error: BaseException) -> str:
    """Returns the type of an error and its first line.

    >>> typed_line(ValueError("no")), typed_line(KeyError("a")), typed_line(MemoryError())
    ('ValueError: no', "KeyError: 'a'", 'MemoryError')
    """
    kind, reason = type(error).__name__, first_line(error)
    return reason if reason.startswith(kind) else f"{kind}: {reason}"


def unknown(
    kind: str, name: object, choices: Iterable[str], nearest: Sequence[str] = ()
) -> UsageError:
    """Builds the error for a name that is in no table, with the nearest choice as a suggestion.

    Of very many choices only the nearest are listed; `nearest` are those that may have been meant,
    the likeliest first, where the caller knows better than the spelling does.

    >>> print(unknown("dialect", "slin", ["slim", "keras"]))
    unknown dialect 'slin': did you mean 'slim'? The choices are keras, slim.
    >>> print(unknown("key", "lr", ["rate", "momentum"], nearest=["rate", "momentum"]))
    unknown key 'lr': did you mean 'rate'? The nearest are rate, momentum.
    """
    choices = sorted(choices)
    near = nearest or difflib.get_close_matches(shown(name)[1:-1], choices, n=3)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = f"The choices are {', '.join(choices)}."
    if nearest or (near and len(choices) > MAX_LISTED):
        listed = f"The nearest are {', '.join(near)}." if len(near) > 1 else ""
    return UsageError(f"unknown {kind} {shown(name)}: {hint}{listed}".rstrip())
