"""Prints the table in README.md: `python -m tests.weights.parity_table > tests/weights/README.md`.

Every published implementation that is installed gets random weights and batch-norm statistics;
they are saved, loaded here by `load_weights`, and both networks see the same random images, of an
even, an odd and an oblong size. Exported files have one size; they are written here, and run by
ONNX Runtime and LiteRT.
"""

import itertools
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import numpy as np
import pytest

from mnv2_jax import normalize
from mnv2_jax.markdown import markdown_table
from mnv2_jax.weights import load_weights
from mnv2_jax.weights.readers.crc32c import crc32c
from tests.weights.bundles import write_bundle
from tests.weights.peers import SEGMENTERS, VARIANTS, Peer, peer, segmenter

SIZES = ((96, 96), (97, 97), (65, 128))
PACKAGES = ("jax", "keras", "torch", "torchvision", "timm", "transformers")
PACKAGES += ("onnxruntime", "ai-edge-litert")


def save(found: Peer, ecosystem: str, folder: Path) -> Path:
    """Saves a peer's weights as that ecosystem would."""
    if ecosystem == "slim":
        write_bundle(folder / "model.ckpt", found.tensors, crc32c)
        return folder / "model.ckpt"
    if ecosystem == "keras":
        found.native.save_weights(folder / "model.weights.h5")
        return folder / "model.weights.h5"
    from safetensors.numpy import save_file

    save_file(found.tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def difference(found: Peer, ecosystem: str, folder: Path, sizes=SIZES, stride=None) -> float:
    """The largest difference of any logit, as a share of the largest logit."""
    source = f"{ecosystem}:{save(found, ecosystem, folder)}"
    loaded = load_weights(source, output_stride=stride)
    worst = 0.0
    for size in sizes:
        images = np.random.default_rng(1).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
        ours = jax.jit(loaded.model.apply)(loaded.variables, images)
        theirs = found.logits(images)
        assert np.abs(theirs).max() > 0.1
        worst = max(worst, float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()))
    return worst


def rows():
    """Measures every ecosystem and variant whose package is there."""
    for ecosystem, variants in VARIANTS.items():
        for variant in variants:
            yield ecosystem, variant, *measured(peer, ecosystem, variant)
    for ecosystem, variants in SEGMENTERS.items():
        for width, stride in variants:
            title = f"DeepLabv3, {width}, output stride {stride}"
            yield ecosystem, title, *measured(segmenter, ecosystem, (width, stride), stride)


def exported():
    """Measures files whose names say nothing, each beside the runtime of its format."""
    from tests.weights.readers.test_exported import WRITE, logits, pictures, save

    for suffix in WRITE:
        for width in (0.35, 1.0, 1.4):
            with tempfile.TemporaryDirectory() as folder:
                path = save(Path(folder, f"m{suffix}"), width=width, classes=1001, class_offset=1)
                loaded, theirs = load_weights(path), logits(path, pictures())
            images = normalize(pictures(), loaded.dialect)
            ours = np.asarray(jax.jit(loaded.model.apply)(loaded.variables, images))
            leaves = jax.tree.leaves_with_path(loaded.variables["params"])
            count = sum(leaf.size for path, leaf in leaves if path[-1].key != "scale")
            worst = np.abs(ours - theirs).max() / np.abs(theirs).max()
            yield suffix, width, f"{count:,}", f"{worst:.1e}"


def measured(build, ecosystem: str, variant, stride=None) -> tuple[str, str]:
    """How many numbers a peer's file holds, and the difference."""
    try:
        found = build(ecosystem, variant)
    except pytest.skip.Exception:
        return "-", "not installed"
    with tempfile.TemporaryDirectory() as folder:
        worst = difference(found, ecosystem, Path(folder), stride=stride)
    count = sum(
        array.size
        for name, array in found.tensors.items()
        if not name.endswith(("num_batches_tracked",))
    )
    return f"{count:,}", f"{worst:.1e}"


def installed():
    """Versions of what was compared with."""
    for package in PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            continue


if __name__ == "__main__":
    print("# Parity with the published implementations\n")
    print("Largest difference of any logit as a share of the largest one, float32, random weights")
    print(
        "and batch-norm statistics (see `random_like` for their scale), images of 96×96, 97×97 and"
    )
    print("65×128, each implementation's own file loaded by `load_weights`. slim is computed by")
    print("Hugging Face's port of it; d-li14, tonylins and mmpretrain by their layers rebuilt in")
    print(
        "`torch.nn`, PaddleClas and mmsegmentation, of which the features of stride 8 are compared,"
    )
    print("in numpy.")
    print("Hugging Face's segmenter answers at the features' resolution: PyTorch interpolates it")
    print("to the images', corners aligned, as the authors' release does.\n")
    print(f"Measured with {', '.join(installed())};")
    print("made by `python -m tests.weights.parity_table > tests/weights/README.md`.\n")
    table = itertools.chain(rows(), exported())
    print(markdown_table(("weights", "variant", "numbers in the file", "difference"), table))
