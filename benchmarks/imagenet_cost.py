"""What would training on ImageNet cost on many devices? A calculation, not a measurement.

The time of a step is taken from where it was measured on one device (`train_cpu` or `train_gpu`
results, or `--images-per-second`), and the time of its sums over devices from the bytes that they
move and the bandwidth of the links.
"""

import argparse
import functools
import json
import math

import jax

from benchmarks.harness import RESULTS, save
from mnv2_jax import MobileNetV2, account

TRAIN_IMAGES = 1_281_167
EPOCHS = 300  # experiments/imagenet.py
BATCH = 1536
# Bytes a second of one device's link, one way, and seconds of a message: what vendors state, halved
# for what collectives reach.
LINKS = {
    "within a machine (NVLink, TPU ICI)": (100e9, 5e-6),
    "100 Gb/s network": (6e9, 2e-5),
    "10 Gb/s network": (0.6e9, 5e-5),
}
DEVICES = (1, 8, 64, 256)


@functools.cache
def bytes_summed() -> tuple[int, int]:
    """Bytes that a step sums over devices: gradients, and batch statistics of every norm."""
    shapes = jax.eval_shape(
        lambda: MobileNetV2().init(jax.random.key(0), jax.numpy.zeros((1, 224, 224, 3)))
    )
    params = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    stats = sum(leaf.size for leaf in jax.tree.leaves(shapes["batch_stats"]))
    assert params == account(MobileNetV2(), (1, 224, 224, 3)).params
    # Forward, sums and squares of every channel; backward, two sums again.
    return 4 * params, 4 * 2 * stats


@functools.cache
def norms() -> int:
    """Layers of batch norm, each of which waits for a sum forward and one backward."""
    shapes = jax.eval_shape(
        lambda: MobileNetV2().init(jax.random.key(0), jax.numpy.zeros((1, 224, 224, 3)))
    )
    return len(jax.tree.leaves(shapes["batch_stats"])) // 2


def all_reduce(size: float, devices: int, bandwidth: float, latency: float) -> float:
    """Seconds of a sum over devices, by the quicker of a ring and a tree.

    In a ring every byte passes each link twice, less a share, in 2 (n - 1) messages; in a tree the
    whole goes up and down log2 n levels.
    """
    if devices == 1:
        return 0.0
    ring = 2 * (devices - 1) / devices * size / bandwidth + 2 * (devices - 1) * latency
    levels = 2 * math.ceil(math.log2(devices))
    return min(ring, levels * (latency + size / bandwidth))


def row(rate: float, devices: int, bandwidth: float, latency: float, scope: str) -> dict[str, str]:
    """One training: `rate` images a second on one device, `scope` of the batch statistics."""
    gradients, stats = bytes_summed()
    compute = BATCH / devices / rate
    messages = all_reduce(gradients, devices, bandwidth, latency)
    if scope == "global":
        each = stats / norms() / 2
        messages += 2 * norms() * all_reduce(each, devices, bandwidth, latency)
    step = compute + messages
    days = EPOCHS * TRAIN_IMAGES / BATCH * step / 86400
    return {
        "devices": f"{devices}",
        "batch norm": scope,
        "images a device": f"{BATCH / devices:g}",
        "step ms": f"{1e3 * step:,.1f}",
        "of which sums": f"{messages / step:.0%}",
        "efficiency": f"{compute / step:.0%}",
        "days": f"{days:,.2f}",
    }


def measured() -> dict[str, float]:
    """Images a second of one device, where a committed result says so."""
    found = {}
    for name, heading in (("train_cpu", "224×224, batch 32"), ("train_gpu", "batch")):
        path = RESULTS / f"{name}.json"
        content = json.loads(path.read_text()) if path.is_file() else {"tables": {}}
        for title, rows in content["tables"].items():
            if title.startswith(heading) and "mnv2_jax" in rows[0].get("name", ""):
                batch = rows[0]["options"]["batch"]
                what = f"{content['processor']}, {rows[0]['threads']} cores ({name}.md)"
                found.setdefault(what, 1e3 * batch / rows[0]["median_ms"])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--images-per-second", nargs="*", type=float, default=[2500.0], help="assumed devices"
    )
    arguments = parser.parse_args()
    rates = measured() | {
        f"an assumed accelerator of {rate:,.0f} images/s": rate
        for rate in arguments.images_per_second
    }
    tables = {}
    for device, rate in rates.items():
        for link, (bandwidth, latency) in LINKS.items():
            heading = f"{device}: {rate:,.1f} images/s alone; {link}"
            tables[heading] = [
                row(rate, devices, bandwidth, latency, scope)
                for devices in DEVICES
                for scope in (("global", "device") if devices > 1 else ("global",))
            ]
    gradients, stats = bytes_summed()
    note = (
        "**Calculated, not measured.** MobileNetV2 1.0 at 224, batch "
        f"{BATCH}, {EPOCHS} epochs of {TRAIN_IMAGES:,} images. A step sums {gradients / 1e6:.1f} MB"
        f" of gradients and, with global batch norm, {stats / 1e6:.2f} MB of statistics in "
        f"{2 * norms()} messages that cannot overlap with anything; no overlap of the gradients "
        "is assumed either. Input is assumed to keep up. Links: "
        + "; ".join(f"{k}: {b / 1e9:g} GB/s, {1e6 * s:g} µs" for k, (b, s) in LINKS.items())
        + "."
    )
    save("imagenet_cost", "ImageNet on many devices, calculated", tables, note)


if __name__ == "__main__":
    main()
