"""Files written whole or not at all, and read within bounds."""

import gzip
import os
import resource
import stat
from pathlib import Path

import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.files import (
    UnreadableFile,
    read_file,
    read_gzip,
    read_json,
    read_text,
    replacing,
    user_path,
    writable_place,
    write_file,
    write_json,
)


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


def test_a_full_disk_is_told_by_the_path_that_was_meant(tmp_path: Path):
    path = tmp_path / "result.json"
    with pytest.raises(OSError, match="No space") as caught, replacing(path):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="No such file") as caught:
        write_file(tmp_path / "gone/a", "")
    assert caught.value.filename == str(tmp_path / "gone/a")
    with pytest.raises(OSError, match=r"^encoder error$"), replacing(path):
        raise OSError("encoder error")  # as Pillow raises, without a number


def test_a_place_to_write_to_is_checked_without_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_text("old")
    (tmp_path / "nowhere").symlink_to("gone")
    before = sorted(tmp_path.iterdir())
    assert writable_place("~/file", "model") == tmp_path / "file"
    assert writable_place("~/new", "model") == tmp_path / "new"
    assert writable_place("~/a/b", "model", parents=True) == tmp_path / "a/b"
    assert writable_place("~/a/b", "--out", folder=True) == tmp_path / "a/b"
    assert writable_place("~", "--out", folder=True) == tmp_path

    def refused(*given: object) -> str:
        with pytest.raises(UsageError, match="Give a place") as caught:
            writable_place(*given)  # type: ignore[arg-type]
        return str(caught.value)

    assert "the model '~' cannot be written: it is not a file" in refused("~", "model")
    assert "it is not a file" in refused("/dev/null", "model")
    assert "a' is not a folder" in refused("~/a/b", "model")
    for name in ("file", "file/b", "nowhere", "nowhere/b"):
        above = str(tmp_path / name.partition("/")[0])
        assert f"{above!r} is not a folder" in refused(f"~/{name}", "--out", True)
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)
    for given in (("~/new", "model"), ("~/file", "model"), ("~/a/b", "--out", True)):
        assert f"{str(tmp_path)!r} is not yours to write to" in refused(*given)
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_whose_name_begins_with_a_tilde_is_meant_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("~nobody-here.png").touch()
    assert user_path("~nobody-here.png").exists()
    with pytest.raises(UsageError, match="is of no user here"):
        user_path("~nobody-there.png")


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
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels"),
        (lambda path: path.write_bytes(bytes(11)), "is larger than 10 bytes"),
    ],
)
@pytest.mark.parametrize("read", [read_file, read_gzip, read_text, read_json])
def test_what_is_not_a_small_file_is_refused(tmp_path: Path, make, message: str, read):
    path = tmp_path / "a"
    make(path)
    if read is read_gzip and path.is_file():
        path.write_bytes(gzip.compress(bytes(11)))
        message = "has more than 10 bytes inside"
    with pytest.raises(UsageError, match=message) as caught:
        read(path, 10)
    assert isinstance(caught.value, UnreadableFile) and str(path) not in caught.value.reason


def test_a_file_of_the_largest_size_is_read(tmp_path: Path):
    write_file(tmp_path / "a", b"0123456789")
    assert read_file(tmp_path / "a", 10) == b"0123456789"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "loop/a"])
def test_what_no_path_can_be_is_refused_in_one_line(tmp_path: Path, name: str):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for use in (user_path, lambda path: read_file(path, 10)):
        with pytest.raises(UsageError, match=r"cannot be (used|read)") as caught:
            use(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "cannot be read as JSON: .*recursion"),
        (b"", "cannot be read as JSON: Expecting value"),
        (b'{"a": 1', "cannot be read as JSON"),
        (b"\xff\xd8\xff\xe0", "cannot be read as JSON"),
        (b"9" * 5000, "cannot be read as JSON"),
        (bytes(100), "holds zeros"),
    ],
)
def test_what_is_no_json_is_told_in_a_line(tmp_path: Path, content: bytes, message: str):
    write_file(tmp_path / "a.json", content)
    with pytest.raises(UnreadableFile, match=message) as caught:
        read_json(tmp_path / "a.json")
    assert len(str(caught.value)) < 500


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path):
    write_file(tmp_path / "a", b'\xef\xbb\xbf{"a": 1}')
    assert read_text(tmp_path / "a") == '{"a": 1}' and read_json(tmp_path / "a") == {"a": 1}
    write_file(tmp_path / "a", '{"a": 1}'.encode("utf-16"))
    assert read_json(tmp_path / "a") == {"a": 1}


def test_large_files_of_zeros_are_not_read(tmp_path: Path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 32)
    for read in (read_json, read_text):
        with pytest.raises(UnreadableFile, match="holds zeros"):
            read(tmp_path / "a", 1 << 32)
    with gzip.open(tmp_path / "a", "wb") as bomb:
        for _ in range(64):
            bomb.write(bytes(1 << 20))
    with pytest.raises(UnreadableFile, match="more than 1 MiB inside"):
        read_gzip(tmp_path / "a", 1 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-4], lambda b: b[:8] + b"xxxx" + b[12:], lambda b: b"x"]
)
def test_a_damaged_archive_is_told_in_a_line(tmp_path: Path, damage):
    write_file(tmp_path / "a.gz", damage(gzip.compress(bytes(range(256)))))
    with pytest.raises(UnreadableFile, match="cannot be read"):
        read_gzip(tmp_path / "a.gz", 1 << 10)


def test_messages_are_cut_and_keep_their_end():
    message = str(UsageError(f"unknown class {'x' * 5_000_000}: give another."))
    assert len(message) <= 1000 and message.endswith("x: give another.")
