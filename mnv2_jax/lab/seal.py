"""Small files of JSON that hold a hash over all of themselves, and whose they are."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import UnreadableFile, json_text, opened, read_file

OF, SEAL = "of", "seal"  # whose a record is, and the hash over all the rest of it
MAX_JSON, MAX_FILE = 1 << 28, 1 << 30  # bytes; what is more is no file of ours


class Foreign(ValueError):
    """A record that is another's."""


def digest(content: Any) -> str:
    """SHA-256 of a JSON value, however its file is laid out.

    >>> digest({"a": 1, "b": [2.5]})[:8] == digest({"b": [2.5], "a": 1})[:8]
    True
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(content: Mapping[str, Any], of: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns a copy of a record with whose it is, and the hash over both."""
    whole = json.loads(json_text({**content, OF: of} if of else content))
    return whole | {SEAL: digest(whole)}


def check_seal(record: Mapping[str, Any], must: bool, of: Mapping[str, Any] | None = None) -> None:
    """Checks that a record is as it was sealed, and that it says `of` of itself.

    Unless it `must` have a seal, one of an older release may lack it. Raises a ValueError if it was
    changed, Foreign if it is another's.
    """
    if SEAL not in record:
        if must or OF in record:
            raise ValueError("has no seal, so it was changed or is another run's")
        return
    if record[SEAL] != digest({k: v for k, v in record.items() if k != SEAL}):
        raise ValueError("is not what was written: its seal does not fit")
    theirs = record.get(OF) or {}
    for key, own in (of or {}).items():
        if theirs.get(key) != own:
            raise Foreign(f"belongs to {key} {theirs.get(key)!r}, not to {own!r}")


def read_json(path: Path) -> dict[str, Any]:
    """Reads an object of JSON without NaN or infinity; a ValueError says why it is none."""
    try:
        content = json.loads(read_file(path, MAX_JSON), parse_constant=_no_number)
    except UnreadableFile as error:
        raise ValueError(error.reason) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError("cannot be read: it is not an object of JSON")
    return content


@contextmanager
def readable(path: Path, remedy: str) -> Iterator[dict[str, Any]]:
    """Yields the content of a JSON file; what is wrong with it inside the block is a UsageError."""
    try:
        content = read_json(path)
        check_seal(content, must=False)
        yield content
    except UsageError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        why = f"{path} cannot be read ({first_line(error)}): {remedy}, or remove it."
        raise UsageError(why) from error


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def hash_file(path: Path) -> str:
    """SHA-256 of a regular file."""
    with opened(path, MAX_FILE) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
