"""How does cost grow with batch, resolution, width and devices?"""

import argparse
import json
import os
import statistics
import subprocess
import sys

from benchmarks.harness import ROOT, Contender, compare, save

BASE = {"batch": 8, "size": 224, "width": 1.0}
AXES = {
    "batch": (1, 2, 8, 32),
    "size": (96, 128, 160, 192, 224),
    "width": (0.35, 0.5, 0.75, 1.0, 1.4),
}
DEVICES = (1, 2, 4, 8)
# Steps of one global batch on virtual CPU devices; the cores stay the same, so what grows is what
# splitting and summing cost.
WORKER = """
import json, sys, time
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from mnv2_jax.lab.train.config import load_config
from mnv2_jax.lab.train.run import make_run
network = ["model.spec=small_32", "model.width=0.25"]
config = load_config("experiments/ablate_linear.py:fashion_mnist_small", network)
run = make_run(config, 1)
keys, rows = run.keys((0,)), run.rows((0,), 0)
state, resident = run.fresh(keys), jax.device_put(run.train.resident(), run.plan.everywhere)
seconds = []
for _ in range(int(sys.argv[2]) + 2):
    start = time.perf_counter()
    state, metrics = run.step(state, resident, next(rows), keys)
    jax.block_until_ready(state)
    seconds.append(time.perf_counter() - start)
print(json.dumps(seconds[2:]))
"""


def devices_table(rounds):
    rows, first = [], None
    for n in DEVICES:
        command = [sys.executable, "-c", WORKER, str(n), str(rounds)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        median = statistics.median(json.loads(out.stdout.splitlines()[-1]))
        first = first or median
        rows.append(
            {
                "virtual devices": n,
                "ms a step": f"{1e3 * median:.0f}",
                "of one": f"{median / first:.2f}",
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--axes", nargs="*", choices=[*AXES, "devices"], default=[*AXES, "devices"])
    arguments = parser.parse_args()
    tables, raw = {}, {}
    for axis in (axis for axis in AXES if axis in arguments.axes):
        contenders = [
            Contender(
                f"{axis} {value}",
                "jax_infer",
                {**BASE, axis: value, "form": "folded"},
                arguments.threads,
            )
            for value in AXES[axis]
        ]
        raw[axis] = compare(contenders, arguments.rounds)
        tables[f"Inference against {axis}"] = [
            {
                axis: value,
                "ms": f"{row['median_ms']:.1f}",
                "ms an image": f"{row['median_ms'] / {**BASE, axis: value}['batch']:.2f}",
            }
            for value, row in zip(AXES[axis], raw[axis], strict=True)
        ]
    if "devices" in arguments.axes:
        heading = "Training step of 128 images of 28×28, width 0.25, against devices"
        tables[heading] = raw["devices"] = devices_table(arguments.rounds)
    note = "Where not said otherwise: folded inference, batch 8, 224×224, width 1.0, float32."
    save("scaling", "Cost against batch, resolution, width and devices", tables, note, raw)


if __name__ == "__main__":
    main()
