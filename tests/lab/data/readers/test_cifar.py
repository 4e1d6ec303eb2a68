"""CIFAR's archives in their official layouts, whole, cut short and hostile."""

import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.data.readers.cifar import CIFAR


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
        for split, files in layout.files.items():
            for seed, file in enumerate(files):
                images, labels = cifar_rows(name, n, seed + (10 if split == "test" else 0))
                columns = [labels[:, None], planes(images)]
                if name == "cifar100":
                    columns = [labels[:, None] // 5, *columns]
                content = np.concatenate(columns, axis=1).tobytes()
                add(archive, f"{layout.binary_folder}/{file}.bin", content)
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
        for split, files in layout.files.items():
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


def doubled(times):
    """A list of 2^times zeros, each level of it once in memory."""
    values = [0]
    for _ in range(times):
        values = [values, values]
    return values


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
        pickle.dumps({b"data": 3, b"labels": doubled(60)}),
        b"",
        b"garbage",
    ],
)
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    write_cifar_python(tmp_path, "cifar10", replace={"data_batch_3": content})
    with pytest.raises(UsageError, match="data_batch_3") as error:
        open_source("cifar10", "train", str(tmp_path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("write", [write_cifar_binary, write_cifar_python])
def test_a_cut_cifar_archive_is_refused(tmp_path, write):
    path = write(tmp_path, "cifar10")
    whole = path.read_bytes()
    for part in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:part])
        with pytest.raises(UsageError, match="cifar-10-") as error:
            open_source("cifar10", "train", str(tmp_path))
        assert "\n" not in str(error.value)


def test_a_cifar_file_of_another_length_is_refused(tmp_path):
    with tarfile.open(tmp_path / "cifar-100-binary.tar.gz", "w:gz") as archive:
        add(archive, "cifar-100-binary/train.bin", bytes(3074 + 1))
        add(archive, "cifar-100-binary/fine_label_names.txt", b"a\nb\n")
    with pytest.raises(UsageError, match="not a multiple of 3074"):
        open_source("cifar100", "train", str(tmp_path))
