"""Files of records and lists of names, read within bounds."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mnv2_jax import files
from mnv2_jax.errors import UsageError
from mnv2_jax.files import UnreadableFile
from mnv2_jax.lab.data.source import BadRecord, class_name

# How the names of images end, in small letters or capitals.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".webp", ".bmp", ".dib", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff",
)  # fmt: skip
MAX_RECORD_BYTES = MAX_UNZIPPED_BYTES = 1 << 28  # CIFAR takes 180 MB
MAX_LIST_BYTES = 1 << 26
MAX_JSON_BYTES = 1 << 31  # COCO's annotations take half a gigabyte, those of LVIS a whole one


def read_record(path: Path) -> bytes:
    """Reads the file of a record; `BadRecord` if it is missing, unreadable or too large."""
    try:
        return files.read_file(path, MAX_RECORD_BYTES)
    except UnreadableFile as error:
        raise BadRecord(str(path), error.reason) from error


def read_unzipped(path: Path) -> bytes:
    """Reads a file, decompressed where it ends in `.gz`; `UnreadableFile` if it is none."""
    if path.suffix != ".gz":
        return files.read_file(path, MAX_UNZIPPED_BYTES)
    try:
        return files.read_gzip(path, MAX_UNZIPPED_BYTES)
    except UnreadableFile as error:
        raise UnreadableFile(path, f"{error.reason}; download it again") from error


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a list that are not blank; `UnreadableFile` if it is not UTF-8."""
    return [s.strip() for s in files.read_text(path, MAX_LIST_BYTES).splitlines() if s.strip()]


def read_classes(path: Path) -> tuple[str, ...]:
    """Reads the names of classes, one a line, none of which may come twice."""
    names = tuple(map(class_name, read_lines(path)))
    if not names or max(map(len, names)) > 255:
        raise UsageError(f"{path} is no list of classes: write one a line, of 255 letters at most.")
    refuse_twice(names, path)
    return names


def refuse_twice(names: Sequence[str], path: Path) -> None:
    """Raises `UsageError` where a list has a name twice."""
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if (before := first.setdefault(name, number)) != number:
            both = f"number {before} and {number}"
            raise UsageError(f"{path} lists {name!r} twice, as {both}: remove one.")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that systems leave beside others."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")


def subfolders(folder: Path) -> list[str]:
    """Returns the sorted names of the folders in a folder, which may be missing."""
    try:
        with os.scandir(folder) as entries:
            links = [e for e in entries if e.is_symlink() or e.is_dir(follow_symlinks=False)]
    except (OSError, ValueError):
        return []
    return sorted(e.name for e in links if not is_hidden(e.name) and os.path.isdir(e.path))


def unwrapped(root: Path, known: Callable[[Path], bool]) -> Path:
    """Returns the folder of a known layout: the root, or what an archive has wrapped it in."""
    place = root
    for _ in range(3):
        if known(place) or len(inner := subfolders(place)) != 1:
            break
        place /= inner[0]
    return place if known(place) else root
