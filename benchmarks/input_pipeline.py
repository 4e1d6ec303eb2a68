"""How near does the input pipeline come to bare decoding in a loop?"""

import argparse
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness import paired, save
from mnv2_jax.lab.data import open_source, train_batches, train_transform
from mnv2_jax.lab.data.image import decode


def write_photos(folder, count, size=(500, 375)):
    """JPEG files with detail of every scale, as photographs have."""
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = np.zeros((size[1], size[0], 3))
        for octave in range(1, 10):
            grain = rng.normal(size=(2**octave, 2**octave, 3)).astype(np.float32)
            layers = [
                Image.fromarray(grain[..., c]).resize(size, Image.Resampling.BICUBIC)
                for c in range(3)
            ]
            pixels += np.stack(layers, -1) / 1.1**octave
        low, high = np.quantile(pixels, (0.01, 0.99))
        shown = ((pixels - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
        place = folder / "train" / f"class_{i % 4}" / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(shown).save(buffer, "JPEG", quality=90)
        place.write_bytes(buffer.getvalue())


def bare(files):
    """Reads and decodes every file, nothing else, one after the other."""
    for file in files:
        decode(file.read_bytes(), str(file))


def loop(files, transform):
    """Reads, decodes and transforms, without threads, order or batches."""
    for i, file in enumerate(files):
        transform({"image": decode(file.read_bytes(), str(file))}, np.random.default_rng(i))


def pipeline(source, batch, steps, transform, threads, seed):
    """What a training consumes."""
    options = {"batch_size": batch, "seed": seed, "steps": steps, "transform": transform}
    for _ in train_batches(source, threads=threads, **options):
        pass


def rate(images, work):
    start = time.perf_counter()
    work()
    return images / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    n, batch = arguments.images, arguments.batch
    transform = train_transform(224)
    cores = sorted(os.sched_getaffinity(0))
    rates = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder, n)
        files = sorted(folder.glob("train/*/*.jpg"))
        source = open_source("folder", "train", str(folder))
        contenders = {
            "bare decoding, one core": (1, lambda seed: bare(files)),
            "decoding and cropping in a loop, one core": (1, lambda seed: loop(files, transform)),
            "pipeline, one core": (
                1, lambda seed: pipeline(source, batch, n // batch, transform, 1, seed)),
            "pipeline, all cores": (
                len(cores),
                lambda seed: pipeline(source, batch, n // batch, transform, len(cores), seed)),
        }  # fmt: skip
        for seed in range(arguments.rounds + 1):
            for key, (used, work) in contenders.items():
                os.sched_setaffinity(0, cores[:used])
                found = rate(n, lambda work=work, seed=seed: work(seed))
                if seed:  # the first round warms up
                    rates.setdefault(key, []).append(found)
        os.sched_setaffinity(0, cores)
        kilobytes = sum(file.stat().st_size for file in files) / n / 1e3
    base = rates["bare decoding, one core"]
    rows = [
        {
            "": key,
            "images/s": f"{statistics.median(values):.0f}",
            "of bare decoding": f"{paired(values, base):.2f}",
        }
        for key, values in rates.items()
    ]
    note = (
        f"{n} JPEG files of 500×375, {kilobytes:.0f} kB each, to batches of {batch} crops of "
        "224×224 in uint8; medians of rounds that take turns."
    )
    save("input_pipeline", "Input pipeline", {"Images a second": rows}, note)


if __name__ == "__main__":
    main()
