"""Thousands of malformed inputs: each is used, or refused in one line, soon, in bounded memory.

Weight files have theirs in `tests/weights/test_hostile.py`, checkpoints in `tests/lab/train`.
"""

import gzip
import io
import shutil
import struct
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnv2_jax import UsageError
from mnv2_jax.lab.data import BadRecord, open_source
from mnv2_jax.lab.data.scenes import Scenes
from mnv2_jax.lab.model_folder import load_model, save_model
from mnv2_jax.lab.predict import read_image
from mnv2_jax.lab.train.config import flatten, load_config
from mnv2_jax.lab.train.sweep import check_variants
from tests.lab.data.scene_files import write_coco, write_voc

SECONDS, BYTES = 1.0, 100e6


def mutate(content, rng):
    """Damages some bytes: bits, ends, holes, repeats, or a number where it hurts."""
    content = bytearray(content)
    at = int(rng.integers(len(content)))
    span = int(rng.integers(1, 40))
    match rng.integers(7):
        case 0:
            content[at] ^= 1 << int(rng.integers(8))
        case 1:
            del content[at:]
        case 2:
            del content[at : at + span]
        case 3:
            content[at:at] = content[at : at + span]
        case 4:
            content[at : at + span] = bytes(len(content[at : at + span]))
        case 5:
            content[at : at + 4] = struct.pack("<I", int(rng.choice([2**31 - 1, 2**32 - 1, 2**24])))
        case 6:
            content[at : at + span] = rng.bytes(span)
    return bytes(content)


def answer(use):
    """What `use` is refused with, or None, and the processor time that it took."""
    began = time.process_time()  # what other processes take does not count
    try:
        use()
        message = None
    except (UsageError, BadRecord) as refused:
        message = str(refused)
    return message, time.process_time() - began


def used_or_refused(use):
    """Runs `use`; returns whether it was refused. Anything but one clear line fails the test."""
    tracemalloc.start()
    try:
        message, took = answer(use)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < BYTES
    for _ in range(3):  # tracing and a first call are slow of themselves; what hangs, hangs again
        if took < SECONDS:
            break
        took = answer(use)[1]
    assert took < SECONDS
    if message is not None:
        assert message and "\n" not in message and message.isprintable() and len(message) < 1500
        assert "Traceback" not in message
    return message is not None


WORDS = (
    "None", "nan", "inf", "-1", "0", "1e400", "-0.0", "9" * 400, "True", "[]", "()", "{}", "''",
    "[1, 2", "(0.5,)", "('a', 'b')", "0x10", "1_000", "__import__('os').mkdir('executed')",
    "lambda: 0", "linear", "rmsprop", "../..", "\x00", "\n", "ü",
    "{'a': [1, {'b': ()}]}", "[" * 300, "1j",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 9))]
)
def test_configurations_and_overrides(seed):
    """Random values for random keys, some of them misspelt: 60 for each seed."""
    rng = np.random.default_rng(seed)
    keys = list(flatten(load_config("experiments/ablate_linear.py")))
    refused = 0
    for _ in range(60):
        key = str(rng.choice(keys))
        if rng.random() < 0.2:
            key = mutate(key.encode(), rng).decode("latin-1").replace("=", "")
        given = [f"{key}={rng.choice(WORDS)}"]

        def use(given=given):
            check_variants(load_config("experiments/ablate_linear.py", given))

        refused += used_or_refused(use)
    assert refused > 30  # a word may be right for a key
    assert not Path("executed").exists()


def picture(kind, size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_images(tmp_path, kind):
    whole, rng, path = picture(kind), np.random.default_rng(1), tmp_path / "image"
    refused = 0
    for _ in range(100):
        path.write_bytes(mutate(whole, rng))
        refused += used_or_refused(lambda: read_image(str(path), 3))
    assert refused > 5


def read_all(name, split, root):
    source = open_source(name, split, str(root))
    for i in range(min(4, len(source))):
        source[i]
    source.arrays()


def of_scenes(write, *files):
    """Data sets of detection and segmentation, and which of their files are damaged."""

    def make(root):
        write(Scenes(open_source("fashion_mnist_small", "test"), 3, (40, 48), max_objects=3), root)
        return [path for pattern in files for path in sorted(root.glob(pattern))]

    return make


def cifar(root):
    rng = np.random.default_rng(0)
    with tarfile.open(root / "cifar-10-binary.tar.gz", "w:gz") as archive:
        names = [f"data_batch_{i}.bin" for i in range(1, 6)] + [
            "test_batch.bin",
            "batches.meta.txt",
        ]
        for name in names:
            rows = rng.integers(0, 10, (2, 3073), np.uint8).tobytes()
            content = (
                b"\n".join(b"abcdefghij"[i : i + 1] for i in range(10)) if "meta" in name else rows
            )
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return [root / "cifar-10-binary.tar.gz"]


def idx(root):
    rng = np.random.default_rng(0)
    for part, n in (("train", 6), ("t10k", 4)):
        images = rng.integers(0, 255, (n, 28, 28), np.uint8)
        labels = rng.integers(0, 10, n).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3", images), (f"{part}-labels-idx1", labels)):
            header = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
            (root / f"{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return sorted(root.glob("*.gz"))


def folders(root):
    for part in ("train", "val"):
        for name in "ab":
            (root / part / name).mkdir(parents=True)
            (root / part / name / "1.png").write_bytes(picture("PNG"))
    return sorted(root.glob("*/*/*.png"))


SETS = {
    "coco": (of_scenes(lambda s, r: write_coco(s, r / "val"), "val/*.json", "val/images/*"), "val"),
    "voc": (of_scenes(write_voc, "**/*.xml", "**/ImageSets/**/*.txt"), "train"),
    "voc_segmentation": (of_scenes(write_voc, "**/SegmentationClass/*", "**/*.txt"), "train"),
    "cifar10": (cifar, "train"),
    "fashion_mnist": (idx, "train"),
    "folder": (folders, "train"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_data_sets(tmp_path, name):
    make, split = SETS[name]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    files = [path.relative_to(whole) for path in make(whole)]
    assert files
    read_all(name, split, whole)
    rng, refused = np.random.default_rng(2), 0
    for _ in range(80):
        shutil.copytree(whole, broken)
        file = broken / files[int(rng.integers(len(files)))]
        if rng.random() < 0.05:
            file.unlink()
        else:
            file.write_bytes(mutate(file.read_bytes(), rng))
        refused += used_or_refused(lambda: read_all(name, split, broken))
        shutil.rmtree(broken)
    assert refused > 10


@pytest.mark.slow
def test_saved_models(tmp_path, randomize):
    from mnv2_jax import MobileNetV2
    from tests.lab.train.setting import SPEC, tiny

    tiny()  # names its architecture
    variables = randomize(MobileNetV2(num_classes=3, spec=SPEC), (1, 8, 8, 3))
    description = {
        "model": {"spec": "one_block", "num_classes": 3}, "classes": list("abc"), "resolution": 8,
        "eval": {"crop": "none"},
    }  # fmt: skip
    save_model(tmp_path / "whole", variables, description)
    load_model(tmp_path / "whole")
    files = ["model.safetensors", "config.json"]
    rng, refused = np.random.default_rng(3), 0
    for _ in range(150):
        shutil.copytree(tmp_path / "whole", tmp_path / "broken")
        file = tmp_path / "broken" / files[int(rng.random() < 0.6)]
        file.write_bytes(mutate(file.read_bytes(), rng))
        refused += used_or_refused(lambda: load_model(tmp_path / "broken"))
        shutil.rmtree(tmp_path / "broken")
    assert refused > 50
