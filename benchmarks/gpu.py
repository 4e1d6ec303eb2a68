"""What the two GPU benchmarks share: images a second, and the share of the memory roofline.

The roofline is the bytes that an image's layers must move, over the bandwidth of a copy measured
beside it: each convolution reads its input and writes its output once, and in training statistics,
normalisation and gradients take passes of their own.
"""

import argparse
import os
import time

from benchmarks.harness import Contender, compare, save


def copy_bandwidth(megabytes):
    """Bytes a second that a copy on the default device reads and writes."""
    import jax
    import jax.numpy as jnp

    x = jnp.zeros((megabytes << 20,), jnp.uint8)
    copy = jax.jit(lambda x: x + 1)
    copy(x).block_until_ready()
    start = time.perf_counter()
    for _ in range(10):
        y = copy(x)
    y.block_until_ready()
    return 20 * x.size / (time.perf_counter() - start)


def images_a_second(name, title, forms, options, bytes_a_pixel):
    """Times the forms at several batches.

    Args:
      name: of the script.
      title: of the report.
      forms: label -> (contender, its options).
      options: of every contender.
      bytes_a_pixel: that an image's layers must move, over its pixels.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 512, 1024])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--forms", nargs="+", choices=forms, default=list(forms))
    parser.add_argument("--copy", type=int, default=1024, help="MiB of the bandwidth's measurement")
    arguments = parser.parse_args()
    bandwidth = copy_bandwidth(arguments.copy)
    most = bandwidth / (bytes_a_pixel * arguments.size**2)
    tables, raw = {}, {}
    for batch in arguments.batches:
        shape = {"batch": batch, "size": arguments.size}
        cores = len(os.sched_getaffinity(0))
        contenders = [
            Contender(label, build, {**options, **shape, **more}, cores)
            for label, (build, more) in forms.items()
            if label in arguments.forms
        ]
        heading = f"batch {batch}"
        raw[heading] = compare(contenders, arguments.rounds, repeats=10)
        tables[heading] = [
            {
                "": row["name"],
                "images/s": f"{1e3 * batch / row['median_ms']:,.0f}",
                "of the roofline": f"{1e3 * batch / row['median_ms'] / most:.2f}",
                "ratio": f"{row['ratio']:.2f}",
            }
            for row in raw[heading]
        ]
    note = f"Roofline: {most:,.0f} images/s at the measured {bandwidth / 1e12:.2f} TB/s."
    save(name, title, tables, note, raw)
