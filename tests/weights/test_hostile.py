"""Files that lie, are damaged or mean harm: one line each, nothing executed, memory bounded."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mnv2_jax import UsageError
from mnv2_jax.weights import export_weights, load_weights
from mnv2_jax.weights.readers import read_tensors
from mnv2_jax.weights.readers.crc32c import crc32c
from mnv2_jax.weights.readers.hdf5 import write_hdf5
from tests.weights.bundles import write_bundle
from tests.weights.networks import network


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (os.mkdir, (self.target,))


def refused(source, match, peak=20e6, **options):
    """Loads, and checks that it ends in one readable line and little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=match) as caught:
            load_weights(source, **options)
        found = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert "\n" not in message and message.isprintable() and len(message) < 1200, message
    assert found < peak
    return message


def npy(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def archive(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("inside", [False, True])
def test_pickles_are_not_executed(tmp_path, suffix, inside):
    made = tmp_path / "made"
    data = pickle.dumps({"state_dict": Payload(made)}, protocol=2)
    path = tmp_path / f"model{suffix}"
    if inside:
        archive(
            path,
            {"m/data.pkl": data, "m/version": b"3\n", "m/byteorder": b"little"},
            zipfile.ZIP_STORED,
        )
    else:
        path.write_bytes(data)
    try:
        import torch  # noqa: F401
    except ImportError:
        refused(f"torchvision:{path}", "PyTorch is not installed.*safetensors")
    else:
        refused(f"torchvision:{path}", "cannot be read")
    assert not made.exists()


@pytest.mark.oracle
@pytest.mark.parametrize("legacy", [False, True])
def test_storages_of_pytorch_claim_no_more_than_there_is(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(10)}, path, _use_new_zipfile_serialization=not legacy)
    small, large = b"K\x0a", b"J\xff\xff\xff\x7f"
    if legacy:
        path.write_bytes(path.read_bytes().replace(small, large))
    else:
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        members["model/data.pkl"] = members["model/data.pkl"].replace(small, large)
        archive(path, members, zipfile.ZIP_STORED)
    refused(f"torchvision:{path}", "a storage claims 2147483647 elements")
    archive(path, {"model/data.pkl": b"x" * 10})
    refused(f"torchvision:{path}", "compressed archive")


def test_old_pytorch_is_refused(tmp_path, monkeypatch):
    import sys
    import types

    fake = types.ModuleType("torch")
    fake.__version__ = "2.9.1+cpu"
    monkeypatch.setitem(sys.modules, "torch", fake)
    (tmp_path / "model.pth").write_bytes(b"x")
    refused(f"torchvision:{tmp_path / 'model.pth'}", r"PyTorch is 2\.9\.1.*torch>=2\.10")


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    made = tmp_path / "made"
    objects = np.empty(1, object)
    objects[0] = Payload(made)
    np.savez(tmp_path / "model.npz", **{"features.0.0.weight": objects})
    refused(f"torchvision:{tmp_path / 'model.npz'}", "Python objects, which could run code")
    assert not made.exists()


@pytest.mark.parametrize("name", ["../a.npy", "/a.npy", "b/../../a.npy", "c:/a.npy", "..\\a.npy"])
def test_members_stay_inside(tmp_path, name):
    path = archive(tmp_path / "model.npz", {name: npy(np.zeros(3))})
    refused(f"timm:{path}", "points outside the archive")
    path = archive(tmp_path / "model.keras", {name: b"", "model.weights.h5": b""})
    refused(f"keras:{path}", "points outside the archive")
    assert {p.name for p in tmp_path.iterdir()} == {"model.npz", "model.keras"}


def test_bombs_do_not_go_off(tmp_path):
    zeros = npy(np.zeros(10_000_000, np.float32))
    path = archive(tmp_path / "model.npz", {"features.0.0.weight.npy": zeros})
    assert path.stat().st_size < 100_000
    del zeros
    refused(f"torchvision:{path}", "unpack to")
    # a member that understates its size is cut there, and its checksum is wrong then
    data = path.read_bytes().replace(struct.pack("<I", 40_000_128), struct.pack("<I", 900))
    path.write_bytes(data)
    refused(f"torchvision:{path}", "cannot be read")
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.create_dataset("Conv1/kernel", (100_000_000,), "f4", chunks=(10_000,), compression=9)
    refused(f"keras:{tmp_path / 'model.h5'}", "more than the file can hold")
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.create_dataset("Conv1/kernel", (1_000_000,), "f4")  # claimed, never written
    refused(f"keras:{tmp_path / 'model.h5'}", "more than the file can hold")


@pytest.mark.parametrize("shape", [(10**9,), (2**62, 4), (2**40,)])
def test_claims_are_checked(tmp_path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape!r}}}\n".encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"0" * 64
    path = archive(tmp_path / "model.npz", {"features.0.0.weight.npy": data})
    refused(f"torchvision:{path}", "claims shape")
    header = f'{{"a":{{"dtype":"F32","shape":{list(shape)},"data_offsets":[0,64]}}}}'.encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"0" * 64)
    refused(f"torchvision:{path}", "cannot be read")
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    refused(f"torchvision:{path}", "cannot be read")


def test_keras_files_point_to_no_others(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("Conv1/kernel", (16,), "f4", external=[(str(secret), 0, 64)])
    refused(f"keras:{path}", "in other files")
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((16,), "f4")
        layout[:] = h5py.VirtualSource(str(secret), "x", (16,))
        file.create_group("Conv1").create_virtual_dataset("kernel", layout)
    refused(f"keras:{path}", "in other files")
    with h5py.File(path, "w") as file:
        file["Conv1/kernel"] = np.zeros(3, np.float32)
        file["Conv1/link"] = h5py.ExternalLink(str(secret), "/")
        file["Conv1/self"] = h5py.SoftLink("/Conv1/kernel")
    assert read_tensors(path).tensors.keys() == {"Conv1/kernel"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"features.3.conv.2.weight": np.nan}, "NaN or infinite numbers in features.3.conv.2.weig"),
        ({"classifier.1.bias": -np.inf}, "NaN or infinite numbers in classifier.1.bias"),
        ({"features.2.conv.1.1.running_var": -0.25}, "a negative variance"),
    ],
)
def test_numbers_that_cannot_be_are_refused(tmp_path, change, match):
    path = tmp_path / "model.safetensors"
    export_weights(*network("torchvision"), "torchvision", path)
    theirs = load_file(path)
    for name, value in change.items():
        theirs[name].flat[-1] = value
    save_file(theirs, path)
    refused(f"torchvision:{path}", match)


def test_quantized_weights_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    export_weights(*network("torchvision"), "torchvision", path)
    theirs = {name: array.astype(np.int8) for name, array in load_file(path).items()}
    save_file(theirs, path)
    refused(f"torchvision:{path}", "numbers of int8, where floating point is needed")


def test_other_architectures_are_refused(tmp_path):
    path = tmp_path / "model.npz"
    np.savez(path, **{f"layer1.{i}.conv1.weight": np.zeros(3, np.float32) for i in range(9)})
    for ecosystem in ("torchvision", "timm", "hf", "slim", "keras"):
        refused(f"{ecosystem}:{path}", "holds no MobileNetV2.*layer1.0.conv1.weight")
    # MobileNetV3 begins like MobileNetV2
    names = [f"features.{i}.block.0.0.weight" for i in range(1, 16)]
    arrays = {name: np.zeros((16, 3, 3, 3), np.float32) for name in ["features.0.0.weight", *names]}
    np.savez(path, **arrays)
    message = refused(f"torchvision:{path}", "259 missing.*15 unexpected.*1 of another")
    assert "and 11 more" in message
    np.savez(path)
    refused(f"torchvision:{path}", "no tensor at all")


def test_names_cannot_spoil_the_message(tmp_path):
    path = tmp_path / "model.safetensors"
    export_weights(*network("torchvision"), "torchvision", path)
    theirs = load_file(path)
    theirs["features.\x1b[31m\nred" + "x" * 100_000] = np.zeros(1, np.float32)
    save_file(theirs, path)
    refused(f"torchvision:{path}", r"unexpected \(\+ features\.\\x1b\[31m\\nred")


def test_what_is_no_file(tmp_path):
    (tmp_path / "folder").mkdir()
    refused(f"timm:{tmp_path / 'folder'}", "is a folder: give a file of weights")
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"")
    refused(f"timm:{tmp_path / 'folder'}", "give a file in it, such as model.safetensors")
    refused(f"timm:{tmp_path / 'folder' / 'model.safetensors'}", "is empty")
    refused(f"timm:{tmp_path / 'missing.npz'}", "there is no file")
    refused(f"timm:{tmp_path / ('a' * 300)}.npz", "cannot be used")
    refused("timm:a\0b.npz", "cannot be used")
    (tmp_path / "model.zip").write_bytes(b"x")
    refused(f"timm:{tmp_path / 'model.zip'}", "does not tell its format.*safetensors")
    (tmp_path / "model.npz").write_bytes(b"x" * 100)
    refused(f"timm:{tmp_path / 'model.npz'}", "cannot be read as .npz")


def test_what_is_too_large(tmp_path):
    path = tmp_path / "model.npz"
    with path.open("wb") as file:
        file.truncate(300 * 2**20)  # sparse
    refused(f"timm:{path}", "larger than 256 MiB")


@pytest.mark.slow
def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    """Nor read without end; beside the weights as little."""
    os.mkfifo(tmp_path / "model.safetensors")
    (tmp_path / "model.pth").symlink_to("/dev/zero")
    for name in ("model.safetensors", "model.pth"):
        refused(f"timm:{tmp_path / name}", "is not a regular file")
    (tmp_path / "model.npz").symlink_to("model.npz")
    refused(f"timm:{tmp_path / 'model.npz'}", "cannot be used")
    export_weights(*network("hf"), "hf", tmp_path / "other.npz")
    os.mkfifo(tmp_path / "config.json")
    refused(f"hf:{tmp_path / 'other.npz'}", "config.json' is not a regular file")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.pth.tar", io.BytesIO(), "packed by gzip or tar"),
        ("a.pth", gzip.compress(bytes(10**7)), "packed by gzip or tar"),
        ("a.safetensors", struct.pack("<Q", 50) + b"[" * 50, "cannot be read"),
        ("a.safetensors", struct.pack("<Q", 1 << 25) + b" " * (1 << 25), "header claims"),
        ("a.npz", b"PK\1\2" * 20_000, "an archive of 20000 members"),
        ("a.keras", b"PK\1\2" * 20_000, "an archive of 20000 members"),
    ],
)
def test_what_packs_much_into_little(tmp_path, name, content, match):
    if not isinstance(content, bytes):
        with tarfile.open(fileobj=content, mode="w") as archive:
            archive.add(__file__, "a.pth")
        content = content.getvalue()
    (tmp_path / name).write_bytes(content)
    peak = 20e6 + 2 * len(content)
    refused(f"timm:{tmp_path / name}", match, peak=peak)


def test_programs_are_told_from_weights(tmp_path):
    members = {"m/code/__torch__.py": b"x", "m/data.pkl": b"x", "m/constants.pkl": b"x"}
    refused(f"timm:{archive(tmp_path / 'a.pt', members)}", r"TorchScript program.*torch\.jit\.load")
    refused(f"timm:{archive(tmp_path / 'b.pt', {'b.pth': b'x'})}", "without PyTorch's data.pkl")


def mutated(data, rng):
    """Damages a file in one of the ways that files get damaged, or that an attacker would try."""
    data = bytearray(data)
    start = int(rng.integers(len(data)))
    # the beginning and the end are where formats keep what they claim
    if rng.random() < 0.5:
        start = min(start, int(rng.integers(1, 400)))
    elif rng.random() < 0.5:
        start = max(0, len(data) - int(rng.integers(1, 400)))
    kind = rng.integers(6)
    if kind == 0:
        data[start] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        size = int(rng.integers(1, 16))
        data[start : start + size] = rng.bytes(size)
    elif kind == 3:
        data[start : start + 8] = rng.choice([b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7])
    elif kind == 4:
        data[start:start] = rng.bytes(int(rng.integers(1, 64)))
    else:
        del data[start : start + int(rng.integers(1, 64))]
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ecosystem", "name", "count"),
    [
        ("torchvision", "model.safetensors", 300),
        ("timm", "model.npz", 300),
        ("slim", "model.index", 250),
        ("slim", "model.data-00000-of-00001", 50),
        ("keras", "model.h5", 100),
        ("keras", "model.weights.h5", 100),
        ("paddleclas", "model.pdparams", 200),
        pytest.param("timm", "model.pth", 200, marks=pytest.mark.oracle),
        pytest.param("timm", "legacy.pth", 200, marks=pytest.mark.oracle),
    ],
)
def test_damage_ends_in_one_line(tmp_path, ecosystem, name, count):
    path = tmp_path / name
    if ecosystem == "slim":
        model, variables = network("slim")
        export_weights(model, variables, "slim", tmp_path / "slim.npz")
        with np.load(tmp_path / "slim.npz") as found:
            write_bundle(tmp_path / "model", dict(found), crc32c)
    elif ecosystem == "keras":  # HDF5 takes its time over many data sets
        layer = {"gamma": 2, "beta": 2, "moving_mean": 2, "moving_variance": 2}
        tensors = {f"bn_Conv1/{name}": np.ones(n, np.float32) for name, n in layer.items()}
        with path.open("w+b") as file:
            write_hdf5(file, tensors, numbered=".weights" in name)
    elif ecosystem == "paddleclas":
        export_weights(*network(ecosystem), ecosystem, tmp_path / "paddle.npz")
        with np.load(tmp_path / "paddle.npz") as found:
            path.write_bytes(pickle.dumps(dict(found), protocol=2))
    elif name.endswith(".pth"):
        torch = pytest.importorskip("torch")
        export_weights(*network("timm"), "timm", tmp_path / "timm.npz")
        with np.load(tmp_path / "timm.npz") as found:
            tensors = {key: torch.from_numpy(array) for key, array in found.items()}
        torch.save(tensors, path, _use_new_zipfile_serialization=name == "model.pth")
    else:
        export_weights(*network(ecosystem), ecosystem, path)
    original, rng, refusals = path.read_bytes(), np.random.default_rng(0), 0
    assert read_tensors(path if ecosystem != "slim" else tmp_path / "model").tensors
    for _ in range(count):
        path.write_bytes(mutated(original, rng))
        try:
            load_weights(f"{ecosystem}:{path}")
        except UsageError as error:
            refusals += 1
            message = str(error)
            assert message.isprintable() and len(message) < 1200, message
    # without a checksum, damage to a number is a number
    assert refusals > count * (0.9 if ecosystem == "slim" or name.endswith(".npz") else 0.3)
