"""Where does the time of a prediction or a training step go, op by op?"""

import argparse
import collections
import gzip
import json
import re
import tempfile
from pathlib import Path

import jax

from benchmarks import contenders
from benchmarks.harness import save
from benchmarks.train_cpu import CASES

WHAT = {
    "prediction, batch 1": ("jax_infer", {"batch": 1, "size": 224, "form": "folded"}),
    "prediction, batch 32": ("jax_infer", {"batch": 32, "size": 224, "form": "folded"}),
    "training, 224": ("jax_train", CASES["224"]),
    "training, 32": ("jax_train", CASES["32"]),
    "training, tiny": ("jax_train", CASES["tiny"]),
}
KINDS = {  # the first that is found in an op's name
    "ynn": "matrix products",
    "dot": "matrix products",
    "convolution": "convolutions",
    "transpose": "transposes and copies",
    "copy": "transposes and copies",
    "concatenate": "transposes and copies",
    "slice": "transposes and copies",
    "pad": "padding",
    "reduce": "reductions",
    "clamp": "element by element",
    "add": "element by element",
    "multiply": "element by element",
    "select": "element by element",
    "broadcast": "element by element",
}


def kind_of(op):
    """What sort of work an op is, by the names that XLA gives."""
    return next((kind for part, kind in KINDS.items() if part in op), "other")


def microseconds_by_op(step, repeats):
    """Time in each op of a step, as JAX's profiler tells."""
    step()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                step()
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    spent = collections.Counter()
    # A loop's event holds those of its body, which have their own.
    for event in events:
        if "hlo_op" in event.get("args", {}) and not re.match(r"(while|call)", event["name"]):
            spent[event["name"]] += event["dur"] / repeats
    return spent


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT)[:4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--top", type=int, default=12, help="ops to show")
    parser.add_argument("--threads", type=int, default=1, help="NPROC has to say the same")
    arguments = parser.parse_args()
    tables = {}
    for what in arguments.what:
        build, options = WHAT[what]
        spent = microseconds_by_op(
            getattr(contenders, build)(threads=arguments.threads, **options), arguments.repeats
        )
        kinds, total = collections.Counter(), sum(spent.values())
        for op, time in spent.items():
            kinds[kind_of(op)] += time
        for heading, found in (
            (what, kinds.most_common()),
            (f"{what}: the longest ops", spent.most_common(arguments.top)),
        ):
            tables[heading] = [
                {"": name, "ms": f"{time / 1e3:.2f}", "share": f"{time / total:.0%}"}
                for name, time in found
            ]
    save("profile_cpu", "Where the time goes", tables, "By JAX's own profiler, fused as XLA does.")


if __name__ == "__main__":
    main()
