"""Files written whole or not at all, and read within bounds."""

import os
import stat
from pathlib import Path

import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.files import UnreadableFile, read_file, replacing, write_file, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "result.json"
    write_file(path, "old")

    def write() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_names_that_are_not_utf_8_can_stand_in_a_file(tmp_path: Path):
    write_file(tmp_path / "a.md", "of " + os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "a.md").read_text("utf-8") == r"of caf\udce9"


def test_a_file_has_the_permissions_of_the_umask(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {"é": 1})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (os.mkfifo, "is not a regular file"),  # to open it for reading would wait for ever
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda path: path.write_bytes(bytes(11)), "is larger than 10 bytes"),
    ],
)
def test_what_is_not_a_small_file_is_refused(tmp_path: Path, make, message: str):
    path = tmp_path / "a"
    make(path)
    with pytest.raises(UsageError, match=message) as caught:
        read_file(path, 10)
    assert isinstance(caught.value, UnreadableFile) and str(path) not in caught.value.reason


def test_a_file_of_the_largest_size_is_read(tmp_path: Path):
    write_file(tmp_path / "a", b"0123456789")
    assert read_file(tmp_path / "a", 10) == b"0123456789"
