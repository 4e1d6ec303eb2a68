"""How long is it from a folder of pictures to a model and its report?

The pictures are pieces of five that scikit-learn and matplotlib ship, one class each, so that they
are told apart with ease: what is measured is the time, from a cold cache, and not the accuracy.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.harness import ROOT, save
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.fit import look

OF_MATPLOTLIB = ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png", "logo2.png")


def write_pieces(root, count):
    """Writes `count` pieces of each picture, of 40 to 100 % of its sides, some of them mirrored."""
    rng = np.random.default_rng(0)
    shipped = Path(matplotlib.get_data_path()) / "sample_data"
    files = [Path(name) for name in load_sample_images().filenames]
    for file in [*files, *(shipped / name for name in OF_MATPLOTLIB)]:
        picture = Image.open(file).convert("RGB")
        place = root / file.stem
        place.mkdir(parents=True)
        for i in range(count):
            size = np.array(picture.size)
            sides = (size * rng.uniform(0.4, 1.0, 2)).astype(int)
            corner = rng.integers(0, size - sides + 1)
            piece = picture.crop((*corner, *(corner + sides)))
            if rng.random() < 0.5:
                piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            piece.save(place / f"{i}.jpg", quality=90)


def run_fit(root, folder):
    """Seconds of the whole command with nothing in the cache, and the choices it made."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "main.py", "fit", str(root), "--out", str(folder / "out"), "--quiet"]
    start = time.perf_counter()
    said = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    accuracy = next(line for line in said.stdout.splitlines() if line.startswith("accuracy"))
    choices = {
        key: value for key, value, _ in json.loads((folder / "out/fit.json").read_text())["choices"]
    }
    return seconds, accuracy.split(";")[0].removeprefix("accuracy "), choices


def run_listing(root, count):
    """Seconds to list `count` small files, and to read each of them for damage and copies."""
    rng = np.random.default_rng(1)
    for i in range(count):
        place = root / "train" / f"class_{i % 10}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(place)
    start = time.perf_counter()
    open_source("folder", "train", str(root))
    listed = time.perf_counter()
    look(root)
    return listed - start, time.perf_counter() - listed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=60, help="of each of the five classes")
    parser.add_argument("--files", type=int, default=20_000, help="to list")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_pieces(folder / "pictures", arguments.pictures)
        seconds, accuracy, chosen = run_fit(folder / "pictures", folder)
        listing, looking = run_listing(folder / "many", arguments.files)
    rows = {
        "From pictures to the report": [
            {
                "pictures": f"{5 * arguments.pictures} in 5 classes",
                "minutes": f"{seconds / 60:.1f}",
                "steps": chosen["steps"], "pixels": chosen["data.resolution"],
                "network": f"{chosen['model.spec']}, width {chosen['model.width']}",
                "accuracy": accuracy,
            }
        ],
        "Before it begins": [
            {
                "files": f"{arguments.files:,}", "listed in s": f"{listing:.1f}",
                "each read, hashed and checked in s": f"{looking:.1f}",
            }
        ],
    }  # fmt: skip
    note = "A fifth of the pictures is held out. The cache of compiled programs is empty at first."
    save("fit_photos", "`mnv2 fit` on a folder", rows, note)


if __name__ == "__main__":
    main()
