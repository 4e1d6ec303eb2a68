"""How long is a training step on this CPU, beside plain Flax and PyTorch?"""

import argparse

from benchmarks.harness import Contender, compare, report

CASES = {
    "224": {"batch": 32, "size": 224, "width": 1.0, "spec": "imagenet", "classes": 1000},
    "32": {"batch": 128, "size": 32, "width": 0.5, "spec": "small_32", "classes": 10},
    "tiny": {"batch": 4, "size": 8, "width": 1.0, "spec": "tiny_8", "classes": 10},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["224", "32"])
    parser.add_argument("--allocators", nargs="+", default=["glibc", "kept", "jemalloc"])
    parser.add_argument("--peers", nargs="*", default=["torch", "flax"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    tables = {}
    for case in arguments.cases:
        options = CASES[case]
        for allocator in arguments.allocators:
            contenders = [Contender("mnv2_jax", "jax_train", options)]
            if "torch" in arguments.peers:
                contenders.append(Contender("PyTorch channels-last", "torch_train", options))
            if "torch.compile" in arguments.peers and allocator == "glibc":
                compiled = {**options, "compiled": True}
                contenders.append(Contender("PyTorch compiled", "torch_train", compiled))
            if "flax" in arguments.peers and allocator == "glibc":
                contenders.append(Contender("plain Flax", "jax_train", {**options, "plain": True}))
            contenders = [
                c._replace(threads=arguments.threads, allocator=allocator) for c in contenders
            ]
            heading = f"{options['size']}×{options['size']}, batch {options['batch']}"
            heading += f", width {options['width']}, {allocator}"
            tables[heading] = compare(contenders, arguments.rounds)
    report("train_cpu", "A training step on a CPU, float32", tables)


if __name__ == "__main__":
    main()
