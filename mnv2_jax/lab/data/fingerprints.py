"""What a data set is made of, for a training that goes on to see whether it is still the same."""

import hashlib
import os
from typing import Any

from mnv2_jax.lab.data.source import Source

MAX_FILES = 50_000


def fingerprint(source: Source) -> dict[str, Any]:
    """Returns a set's number of records, and the size of each class and file; a hash of arrays.

    Of more than `MAX_FILES` files, each folder stands for those in it, by their number and hash.
    """
    arrays, counts = source.arrays(), getattr(source, "counts", None)
    made: dict[str, Any] = {"records": len(source)}
    made |= {f"class {name}": n for name, n in zip(source.classes, counts or (), strict=False)}
    if arrays is not None:
        made["contents"] = _hash(b"".join(arrays[name].tobytes() for name in sorted(arrays)))
    folder, names = getattr(source, "files", ("", ()))
    sizes = {name: _size(os.path.join(folder, name)) for name in sorted(names)}
    if len(sizes) <= MAX_FILES:
        return made | sizes
    inside: dict[str, list] = {}
    for name, size in sizes.items():
        inside.setdefault(f"{os.path.dirname(name)}/", []).append((name, size))
    for path, own in inside.items():
        made[path] = f"{len(own)} files, {_hash(ascii(own).encode())}"
    return made


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
