"""How long does detection take on this CPU, and how much of it is not the network?"""

import argparse
from functools import partial

from benchmarks.harness import Contender, compare, madds_of, report_per_madd

OURS = "mnv2_jax SSDLite"
THEIRS = "torchvision SSDLite, MobileNetV3"
ALONE, SCRIPTED = "network alone", "network alone, scripted"
PLAIN, WHOLE = "not folded", "folded, no bands"
PARTS = (ALONE, SCRIPTED, PLAIN, WHOLE)
FORMS = {
    OURS: ("jax_detect", {"stage": "whole"}),
    f"{OURS}, {PLAIN}": ("jax_detect", {"stage": "whole", "folded": False}),
    f"{OURS}, {WHOLE}": ("jax_detect", {"stage": "whole", "band": float("inf")}),
    f"{OURS}, {ALONE}": ("jax_detect", {"stage": "network"}),
    f"{OURS}, decoding and suppression alone": ("jax_detect", {"stage": "boxes"}),
    THEIRS: ("torchvision_detect", {}),
    f"{THEIRS}, {ALONE}": ("torch_published", {"build": "Predictions"}),
    f"{THEIRS}, {SCRIPTED}": ("torch_published", {"build": "Predictions", "scripted": True}),
}


def ours(size):
    from mnv2_jax import SSDLite, account

    return account(SSDLite(), (1, size, size, 3)).madds


def theirs(size):
    from benchmarks import peers

    return peers.count_madds(peers.Predictions(), size)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--name", default="detect_cpu", help="of the result (detect_cpu)")
    arguments = parser.parse_args()
    count = {OURS: partial(ours, arguments.size), THEIRS: partial(theirs, arguments.size)}
    cost = madds_of(count)
    cost |= {f"{name}, {part}": cost[name] for name in cost for part in PARTS}
    tables = {}
    for batch in arguments.batches:
        given = {"batch": batch, "size": arguments.size}
        contenders = [
            Contender(name, build, {**given, **options}, arguments.threads, "kept")
            for name, (build, options) in FORMS.items()
        ]
        tables[batch] = compare(contenders, arguments.rounds)
    note = (
        "Float32, 80 classes. The whole is from pixels to at most 100 boxes an image; ours folds "
        "batch norm away and computes bands of rows, as `mnv2 predict` does, where no row says "
        "otherwise. The networks differ, so their time is also given for each multiply-add. The "
        "share is of the first row's time, the median over rounds."
    )
    title = f"Detection on a CPU at {arguments.size}×{arguments.size}"
    report_per_madd(arguments.name, title, tables, cost, note)


if __name__ == "__main__":
    main()
