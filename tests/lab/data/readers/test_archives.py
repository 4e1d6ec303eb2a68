"""Tar files: where members lie, and archives that are cut short, damaged or hostile."""

import gzip
import io
import tarfile
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.data.readers.archives import read_tar_gz, tar_members


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def refusal(read) -> str | None:
    try:
        read()
    except UsageError as error:
        return str(error)
    return None


def tar_of(*names: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in names:
            add(archive, name, name.encode() * 100)
    return out.getvalue()


def members_of(path):
    with path.open("rb") as file:
        return list(tar_members(file.fileno(), str(path), 0, path.stat().st_size))


def test_tar_members_are_where_tarfile_says(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of("a.jpg", "folder/b.jpg", "c" * 99))
    with tarfile.open(path) as archive:
        expected = [(member.name, member.offset_data, member.size) for member in archive]
    assert members_of(path) == expected


def test_a_cut_tar_is_refused_wherever_it_is_cut(tmp_path):
    path = tmp_path / "x.tar"
    whole = tar_of("a.jpg", "b.jpg")
    end = 2 * 512 + 2 * 512  # two headers and two files of 500 bytes; then only zeros
    for cut in (0, 1, 511, 512, 700, 1023, 1024, 1100, end - 1, end):
        path.write_bytes(whole[:cut])
        with pytest.raises(UsageError, match="is cut short"):
            members_of(path)
    path.write_bytes(whole[: end + 512])
    assert len(members_of(path)) == 2


@pytest.mark.slow
@given(position=st.integers(0, 511), value=st.integers(0, 255))
@settings(max_examples=80, deadline=None)
def test_a_damaged_tar_header_is_refused(tmp_path_factory, position, value):
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    whole = bytearray(tar_of("a.jpg"))
    same = whole[position] == value
    whole[position] = value
    path.write_bytes(whole)
    error = refusal(lambda: members_of(path))
    if error is None:  # the same bytes, or another way to write the checksum
        assert same or members_of(path) == [("a.jpg", 512, 500)]
    else:
        assert "\n" not in error


def gzip_of(length: int) -> bytes:
    """Zeros, compressed in parts that are each the same."""
    part = gzip.compress(bytes(1 << 24))
    return part * (length >> 24)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar-10-binary.tar.gz", "train-images-idx3-ubyte.gz"])
def test_a_bomb_is_refused_before_it_is_large(tmp_path, name):
    (tmp_path / name).write_bytes(gzip_of(1 << 33))
    data = "cifar10" if name.startswith("cifar") else "mnist"
    tracemalloc.start()
    with pytest.raises(UsageError, match="has more than 256 MiB inside"):
        open_source(data, "train", str(tmp_path))
    assert tracemalloc.get_traced_memory()[1] < 512 << 20
    tracemalloc.stop()


def test_a_sparse_member_is_refused(tmp_path):
    member = tarfile.TarInfo("batches.meta.txt")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = tarfile.itn(1 << 32, 12)  # how large it claims to be
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(bytes(header) + bytes(1024)))
    with pytest.raises(UsageError, match="too large"):
        read_tar_gz(path, ["batches.meta.txt"])


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.jpg", "a/../../x.jpg"])
def test_an_unsafe_path_is_refused(tmp_path, name):
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of(name))
    with pytest.raises(UsageError, match="unsafe path"):
        members_of(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_a_link_or_device_is_refused(tmp_path, kind):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("x.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(UsageError, match="not a plain file"):
        members_of(path)
