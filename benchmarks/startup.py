"""How long is it from the command to the first training step, without and with a warm cache?"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import ROOT, paired, save
from benchmarks.input_pipeline import write_photos

CONFIGS = {
    "MobileNetV2 1.0 at 224, batch 32": (
        "experiments/imagenet.py", "data.name=folder", "data.root=PHOTOS", "data.eval_split=train",
        "batch_size=32", "steps=100"),
    "digits": ("experiments/ablate_linear.py",),
    "Fashion-MNIST subset": (
        "experiments/ablate_linear.py:fashion_mnist_small", "model.spec=small_32",
        "model.width=0.25"),
}  # fmt: skip
WORKER = """
import sys
from mnv2_jax.lab.devices import process as host
host.use_compilation_cache()
import jax
from mnv2_jax.lab.train.config import load_config
from mnv2_jax.lab.train.run import make_run
config = load_config(sys.argv[1], sys.argv[2:])
run = make_run(config, 1)
keys = run.keys((0,))
state = run.fresh(keys)
resident = jax.device_put(run.train.resident(), run.plan.everywhere)
state, metrics = run.step(state, resident, next(run.rows((0,), 0)), keys)
jax.block_until_ready(state)
"""


def seconds_to_first_step(config, place):
    """Of one process, with the compilation cache and the photographs in the folder `place`."""
    config = [part.replace("PHOTOS", str(place / "photos")) for part in config]
    start = time.perf_counter()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(place)}
    subprocess.run([sys.executable, "-c", WORKER, *config], cwd=ROOT, env=env, check=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    for name, config in CONFIGS.items():
        cold, warm = [], []
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder)
                write_photos(place / "photos", 64)
                cold.append(seconds_to_first_step(config, place))
                warm.append(seconds_to_first_step(config, place))
        rows.append(
            {
                "experiment": name,
                "cold s": f"{statistics.median(cold):.1f}",
                "warm s": f"{statistics.median(warm):.1f}",
                "warm / cold": f"{paired(warm, cold):.2f}",
            }
        )
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        env = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", "import jax, flax, mnv2_jax.lab.train.run; jax.devices()"]
        subprocess.run(command, cwd=ROOT, env=env, check=True)
        imports = time.perf_counter() - start
    note = (
        "Seconds of a whole process: imports, data, initialisation, compilation, one step. "
        f"Imports alone take {imports:.1f} s, with any cache."
    )
    save("startup", "Start to first training step", {"One seed": rows}, note)


if __name__ == "__main__":
    main()
