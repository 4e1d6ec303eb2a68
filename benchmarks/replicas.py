"""Does training several seeds at once, under vmap, take less time than one after the other?"""

import argparse

from benchmarks.harness import Contender, compare, save

TINY = {"size": 8, "width": 1.0, "spec": "tiny_8", "classes": 10}
SMALL = {"size": 28, "width": 0.25, "spec": "small_32", "classes": 10}
CASES = {
    "tiny_8, 8×8, batch 64": {**TINY, "batch": 64},
    "tiny_8, 8×8, batch 8": {**TINY, "batch": 8},
    "small_32 × 0.25, 28×28, batch 32": {**SMALL, "batch": 32},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    tables, raw = {}, {}
    for heading, options in CASES.items():
        contenders = [
            Contender(f"{n} at once", "jax_replicas", {**options, "replicas": n}, arguments.threads)
            for n in arguments.replicas
        ]
        contenders = [c._replace(allocator="kept") for c in contenders]
        raw[heading] = compare(contenders, arguments.rounds, repeats=5)
        tables[heading] = [
            {
                "seeds": n,
                "ms for one step of all": f"{row['median_ms']:.2f}",
                "throughput of one after the other": f"{n * row['ratio']:.2f}×",
            }
            for n, row in zip(arguments.replicas, raw[heading], strict=True)
        ]
    note = f"{arguments.threads} thread(s); freed memory is kept, as the command line does it."
    save("replicas", "Several seeds at once", tables, note, raw)


if __name__ == "__main__":
    main()
