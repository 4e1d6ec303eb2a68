"""ImageNet's tar files, their index, and what is wrong with those that are cut short."""

import io
import logging
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.io import savemat

from mnv2_jax.errors import UsageError
from mnv2_jax.files import replacing
from mnv2_jax.lab.data import BadRecord, open_source
from mnv2_jax.lab.data.readers import imagenet
from tests.lab.data.pictures import encoded, photo


def refused(name, split="train", root=None) -> str:
    with pytest.raises(UsageError) as error:
        open_source(name, split, root)
    assert "\n" not in str(error.value)
    return str(error.value)


WORDNET = ("n02084071", "n01440764", "n03000000")  # ILSVRC2012 ids 1, 2, 3


def tar_bytes(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def devkit_bytes(truth) -> bytes:
    """The development kit's layout; meta.mat also lists inner nodes, which have children."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(i + 1, name, "words", 0) for i, name in enumerate(WORDNET)]
    rows.append((4, "n00001740", "entity", 3))
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kind).reshape(-1, 1)})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in (
            ("data/meta.mat", meta.getvalue()),
            ("data/ILSVRC2012_validation_ground_truth.txt", "\n".join(map(str, truth)).encode()),
        ):
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def write_imagenet(root, truth=(2, 1, 3, 1)):
    classes = {
        f"{name}.tar": tar_bytes(
            {f"{name}_{i}.JPEG": encoded(photo(10 + i, 20, seed=i + label)) for i in (2, 10)}
        )
        for label, name in enumerate(WORDNET)
    }
    (root / imagenet.TRAIN).write_bytes(tar_bytes(classes))
    images = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": encoded(photo(10 + i, 20)) for i in range(4)}
    shuffled = dict(sorted(images.items(), key=lambda item: item[0][-6]))
    (root / imagenet.TEST).write_bytes(tar_bytes(shuffled))
    (root / imagenet.DEVKIT).write_bytes(devkit_bytes(truth))


def test_imagenet(tmp_path):
    write_imagenet(tmp_path)
    for _ in range(2):  # the second time from the index beside the archive
        train = open_source("imagenet2012", "train", str(tmp_path))
        assert train.classes == ("n01440764", "n02084071", "n03000000")
        assert [train[i]["label"] for i in range(len(train))] == [0, 0, 1, 1, 2, 2]
        assert [train[i]["image"].shape[0] for i in range(len(train))] == [20, 12] * 3
        assert (tmp_path / f"{imagenet.TRAIN}.index.npz").exists()
    test = open_source("imagenet2012", "validation", str(tmp_path))
    assert [test[i]["label"] for i in range(4)] == [0, 1, 2, 1]
    assert [test[i]["image"].shape[0] for i in range(4)] == [10, 11, 12, 13]
    assert test.classes == train.classes
    copy = pickle.loads(pickle.dumps(test))
    with ThreadPoolExecutor(4) as pool:
        labels = list(pool.map(lambda i: copy[i % 4]["label"], range(40)))
    assert labels == [0, 1, 2, 1] * 10


def test_the_index_follows_the_archive(tmp_path, monkeypatch, caplog):
    write_imagenet(tmp_path)
    open_source("imagenet2012", "train", str(tmp_path))
    index = tmp_path / f"{imagenet.TRAIN}.index.npz"
    whole = index.read_bytes()
    for damaged in (b"", b"garbage", whole[: len(whole) // 2]):
        index.write_bytes(damaged)
        assert len(open_source("imagenet2012", "train", str(tmp_path))) == 6
    assert "ignoring the damaged index" in caplog.text
    one_class = {"n01440764.tar": tar_bytes({"n01440764_1.JPEG": encoded(photo())})}
    (tmp_path / imagenet.TRAIN).write_bytes(tar_bytes(one_class))
    assert len(open_source("imagenet2012", "train", str(tmp_path))) == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_pipe_in_place_of_the_index_or_an_archive_is_not_waited_for(tmp_path, caplog):
    write_imagenet(tmp_path)
    index = tmp_path / f"{imagenet.TRAIN}.index.npz"
    os.mkfifo(index)
    train = open_source("imagenet2012", "train", str(tmp_path))
    assert train.counts == [2, 2, 2] and index.is_file()
    assert "not a regular file" in caplog.text
    (tmp_path / imagenet.DEVKIT).unlink()
    os.mkfifo(tmp_path / imagenet.DEVKIT)
    assert f"{imagenet.DEVKIT} is not in" in refused("imagenet2012", "test", str(tmp_path))


def test_an_archive_that_has_a_class_or_an_image_twice_is_refused(tmp_path):
    write_imagenet(tmp_path)
    inner = tar_bytes({"n01_1.JPEG": encoded(photo())})
    part, end = tar_bytes({"n01.tar": inner})[: 512 + len(inner)], bytes(1024)
    for split, name in (("train", imagenet.TRAIN), ("test", imagenet.TEST)):
        (tmp_path / name).write_bytes(part + part + end)
        assert "twice" in refused("imagenet2012", split, str(tmp_path))


def test_the_index_goes_to_the_cache_where_the_data_is_read_only(tmp_path, monkeypatch, caplog):
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    write_imagenet(data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    def refuse_beside(place):
        if place.parent == data:
            raise PermissionError("read-only")
        return replacing(place)

    monkeypatch.setattr(imagenet, "replacing", refuse_beside)
    with caplog.at_level(logging.INFO, "mnv2_jax"):
        for _ in range(2):
            assert len(open_source("imagenet2012", "train", str(data))) == 6
    assert len(list(cache.glob("mnv2_jax/*.index.npz"))) == 1
    assert caplog.text.count("indexing") == 1


def test_an_index_that_would_run_code_is_not_unpickled(tmp_path):
    write_imagenet(tmp_path)
    path = tmp_path / f"{imagenet.TRAIN}.index.npz"
    np.savez(path, stamp=np.array([{"object": 1}], dtype=object))
    assert len(open_source("imagenet2012", "train", str(tmp_path))) == 6


def test_imagenet_that_is_cut_short_is_refused(tmp_path):
    write_imagenet(tmp_path)
    root = str(tmp_path)
    (tmp_path / imagenet.DEVKIT).write_bytes(devkit_bytes((1, 2, 3)))
    assert "4 images and ILSVRC2012_devkit_t12.tar.gz 3 labels" in refused(
        "imagenet2012", "test", root
    )
    (tmp_path / imagenet.DEVKIT).write_bytes(devkit_bytes((1, 2, 3, 1001)))
    assert "no usable meta.mat" in refused("imagenet2012", "test", root)
    (tmp_path / imagenet.DEVKIT).write_bytes(devkit_bytes((1, 2, 3, 1))[:-30])
    assert "cannot be read" in refused("imagenet2012", "test", root)
    whole = (tmp_path / imagenet.TRAIN).read_bytes()
    (tmp_path / imagenet.TRAIN).write_bytes(whole[: len(whole) // 2 // 512 * 512])
    assert "is cut short" in refused("imagenet2012", "train", root)
    (tmp_path / imagenet.TRAIN).write_bytes((tmp_path / imagenet.TEST).read_bytes())
    assert "is not the tar file of a class" in refused("imagenet2012", "train", root)


def test_an_archive_cut_after_it_was_opened_gives_bad_records(tmp_path):
    write_imagenet(tmp_path)
    source = open_source("imagenet2012", "test", str(tmp_path))
    (tmp_path / imagenet.TEST).write_bytes(b"")
    with pytest.raises(BadRecord, match="bytes are left"):
        source[0]
