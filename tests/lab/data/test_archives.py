"""IDX, CIFAR and tar files in their official layouts, whole, cut short, damaged and hostile."""

import gzip
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.data.readers.archives import CIFAR, read_idx, tar_members

MNIST_FILES = {
    ("train", 12): ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("test", 5): ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def refusal(read) -> str | None:
    try:
        read()
    except UsageError as error:
        return str(error)
    return None


def idx_bytes(values: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_mnist(root, compress=True):
    rng = np.random.default_rng(0)
    written = {}
    for (split, n), (images, labels) in MNIST_FILES.items():
        arrays = rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10
        written[split] = arrays
        for name, array in zip((images, labels), arrays, strict=True):
            if compress:
                (root / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
            else:
                (root / name).write_bytes(idx_bytes(array))
    return written


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_sets(tmp_path, name, compress):
    written = write_mnist(tmp_path, compress)
    for split in ("train", "test", "validation"):
        images, labels = written["train" if split == "train" else "test"]
        source = open_source(name, split, str(tmp_path))
        np.testing.assert_array_equal(source.arrays()["image"][..., 0], images)
        np.testing.assert_array_equal(source.arrays()["label"], labels)
        assert source[3]["image"].shape == (28, 28, 1)
        assert source[3]["label"] == 3


@given(cut=st.integers(0, 400), compress=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_cut_idx_file_is_refused(tmp_path_factory, cut, compress):
    content = idx_bytes(np.arange(200).reshape(2, 10, 10))
    content = gzip.compress(content) if compress else content
    path = tmp_path_factory.mktemp("idx") / ("x.gz" if compress else "x")
    path.write_bytes(content[: min(cut, len(content) - 1)])
    with pytest.raises(UsageError) as error:
        read_idx(path, dimensions=3)
    assert str(path) in one_line(error)


@given(content=st.binary(max_size=64))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_read_as_idx_or_refused(tmp_path_factory, content):
    for name in ("x", "x.gz"):
        path = tmp_path_factory.mktemp("idx") / name
        path.write_bytes(b"\0\0\x08\x01" + content if name == "x" else content)
        error = refusal(lambda path=path: read_idx(path, dimensions=1))
        assert error is None or "\n" not in error


def test_a_huge_idx_header_is_refused_before_reading(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1))
    with pytest.raises(UsageError, match="impossible IDX header"):
        read_idx(path, dimensions=3)


def test_labels_that_do_not_match_the_images_are_refused(tmp_path):
    write_mnist(tmp_path, compress=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(11)))
    with pytest.raises(UsageError, match="one label each"):
        open_source("mnist", "train", str(tmp_path))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(12, 10)))
    with pytest.raises(UsageError, match="labels run from 10 to 10 but there are 10 classes"):
        open_source("mnist", "train", str(tmp_path))


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def cifar_rows(name, n, seed):
    rng = np.random.default_rng(seed)
    classes = 10 if name == "cifar10" else 100
    images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return images, rng.integers(0, classes, n, dtype=np.uint8)


def planes(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def class_names(name):
    return [f"class_{i}" for i in range(10 if name == "cifar10" else 100)]


def write_cifar_binary(root, name, n=4):
    layout = CIFAR[name]
    path = root / f"{name.replace('cifar', 'cifar-')}-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for split, files in layout.binary_files.items():
            for seed, file in enumerate(files):
                images, labels = cifar_rows(name, n, seed + (10 if split == "test" else 0))
                columns = [labels[:, None], planes(images)]
                if name == "cifar100":
                    columns = [labels[:, None] // 5, *columns]
                content = np.concatenate(columns, axis=1).tobytes()
                add(archive, f"{layout.binary_folder}/{file}", content)
        names = "\n".join(class_names(name)) + "\n"
        add(archive, f"{layout.binary_folder}/{layout.binary_names}", names.encode())
    return path


def python2_pickle(values: dict) -> bytes:
    """Writes a pickle as Python 2 did: protocol 2, `str` as bytes, arrays by `_reconstruct`."""
    out = io.BytesIO()
    out.write(b"\x80\x02}(")
    for key, value in values.items():
        out.write(b"U" + bytes([len(key)]) + key)
        if isinstance(value, np.ndarray):
            out.write(
                b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            )
            out.write(b"(K\x01J" + struct.pack("<i", value.shape[0]))
            out.write(b"J" + struct.pack("<i", value.shape[1]) + b"\x86")
            out.write(b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff")
            out.write(b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", value.nbytes))
            out.write(value.tobytes() + b"tb")
        else:
            out.write(b"](")
            for item in value:
                out.write(
                    b"U" + bytes([len(item)]) + item
                    if isinstance(item, bytes)
                    else b"K" + bytes([item])
                )
            out.write(b"e")
    out.write(b"u.")
    return out.getvalue()


def write_cifar_python(root, name, n=4, replace=None):
    layout = CIFAR[name]
    path = root / f"{name.replace('cifar', 'cifar-')}-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for split, files in layout.python_files.items():
            for seed, file in enumerate(files):
                images, labels = cifar_rows(name, n, seed + (10 if split == "test" else 0))
                values = {b"data": planes(images), layout.python_labels: labels.tolist()}
                content = (replace or {}).get(file, python2_pickle(values))
                add(archive, f"{layout.python_folder}/{file}", content)
        meta, key = layout.python_names
        names = [item.encode() for item in class_names(name)]
        add(archive, f"{layout.python_folder}/{meta}", python2_pickle({key: names}))
    return path


def test_the_python2_pickle_of_this_test_is_a_real_one():
    values = {b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"labels": [1, 2, 3]}
    loaded = pickle.loads(python2_pickle(values), encoding="bytes")
    np.testing.assert_array_equal(loaded[b"data"], values[b"data"])
    assert loaded[b"labels"] == [1, 2, 3]


@pytest.mark.parametrize("write", [write_cifar_binary, write_cifar_python])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path, name, write):
    path = write(tmp_path, name)
    for split, batches in (("train", 5 if name == "cifar10" else 1), ("test", 1)):
        seeds = range(10, 11) if split == "test" else range(batches)
        images, labels = zip(*(cifar_rows(name, 4, seed) for seed in seeds), strict=True)
        source = open_source(name, split, str(tmp_path))
        np.testing.assert_array_equal(source.arrays()["image"], np.concatenate(images))
        np.testing.assert_array_equal(source.arrays()["label"], np.concatenate(labels))
        assert source.classes == tuple(class_names(name))
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    path.unlink()
    assert len(open_source(name, "train", str(tmp_path))) == 4 * (5 if name == "cifar10" else 1)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({b"data": Malicious()}, 2),
        pickle.dumps(Malicious()),
        b"cbuiltins\neval\n(U\x011tR.",
        b"cnumpy\nload\n(U\x011tR.",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": 3, b"labels": [1]}),
        pickle.dumps({b"labels": [1]}),
        b"",
        b"garbage",
    ],
)
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    write_cifar_python(tmp_path, "cifar10", replace={"data_batch_3": content})
    with pytest.raises(UsageError, match="data_batch_3") as error:
        open_source("cifar10", "train", str(tmp_path))
    one_line(error)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("write", [write_cifar_binary, write_cifar_python])
def test_a_cut_cifar_archive_is_refused(tmp_path, write):
    path = write(tmp_path, "cifar10")
    whole = path.read_bytes()
    for part in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:part])
        with pytest.raises(UsageError, match="cifar-10-") as error:
            open_source("cifar10", "train", str(tmp_path))
        one_line(error)


def test_a_cifar_file_of_another_length_is_refused(tmp_path):
    with tarfile.open(tmp_path / "cifar-100-binary.tar.gz", "w:gz") as archive:
        add(archive, "cifar-100-binary/train.bin", bytes(3074 + 1))
        add(archive, "cifar-100-binary/fine_label_names.txt", b"a\nb\n")
    with pytest.raises(UsageError, match="not a multiple of 3074"):
        open_source("cifar100", "train", str(tmp_path))


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
    with pytest.raises(UsageError, match="no plain file"):
        members_of(path)
