"""What the `config.json` of a model hub says of the weights beside it, and their tensors cannot."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import read_file

CONFIG = "config.json"
MAX_CONFIG = 1 << 20  # bytes; that of a thousand classes takes 70 kB


class Described(NamedTuple):
    """What was found.

    Attributes:
      output_stride: of the backbone; None where the file does not say.
      names: of the classes, by index; empty where not every one is named.
    """

    output_stride: int | None
    names: tuple[str, ...]


def describe_segmenter(path: str | Path, classes: int) -> Described:
    """Reads Hugging Face's description of a segmenter from beside its weights, if there is one.

    Args:
      path: of the weights.
      classes: how many the network has.

    Raises:
      UsageError: the description is there and cannot be read.
    """
    file = Path(path).with_name(CONFIG)
    if not file.is_file():
        return Described(None, ())
    try:
        content = json.loads(read_file(file, MAX_CONFIG))
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{str(file)!r}, which describes the weights beside it, cannot be read: "
            f"{first_line(error)}. Mend it, or move the weights elsewhere."
        ) from error
    if not isinstance(content, dict):
        return Described(None, ())
    stride = content.get("output_stride")
    return Described(stride if type(stride) is int else None, _names(content, classes))


def _names(content: dict[str, Any], classes: int) -> tuple[str, ...]:
    table = content.get("id2label")
    if not isinstance(table, dict):
        return ()
    names = [table.get(str(i)) for i in range(classes)]
    given = tuple(name for name in names if isinstance(name, str) and name)
    return given if len(given) == classes else ()
