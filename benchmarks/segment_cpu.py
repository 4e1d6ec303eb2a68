"""How long does segmentation take on this CPU, beside Hugging Face's port of the same network?"""

import argparse

from benchmarks.harness import Contender, compare, madds_of, report_per_madd

OURS = "mnv2_jax DeepLabv3"
THEIRS = "transformers' MobileNetV2ForSemanticSegmentation"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=513)
    parser.add_argument("--output-stride", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--name", default="segment_cpu", help="of the result (segment_cpu)")
    arguments = parser.parse_args()
    stride = {"output_stride": arguments.output_stride}
    forms = {
        OURS: ("jax_segment", stride),
        f"{OURS}, not folded": ("jax_segment", {**stride, "folded": False}),
        f"{OURS}, folded, no bands": ("jax_segment", {**stride, "band": float("inf")}),
        THEIRS: ("torch_published", {"build": "LabelMaps", **stride}),
        f"{THEIRS}, scripted": (
            "torch_published",
            {"build": "LabelMaps", "scripted": True, **stride},
        ),
    }

    def ours():
        from mnv2_jax import account
        from mnv2_jax.models.build import build_deeplab

        return account(build_deeplab(**stride), (1, arguments.size, arguments.size, 3)).madds

    def theirs():
        from benchmarks import peers

        return peers.count_madds(peers.LabelMaps(**stride), arguments.size)

    cost = madds_of({name: ours if name.startswith(OURS) else theirs for name in forms})
    tables = {}
    for batch in arguments.batches:
        given = {"batch": batch, "size": arguments.size}
        contenders = [
            Contender(name, build, {**given, **options}, arguments.threads, "kept")
            for name, (build, options) in forms.items()
        ]
        tables[batch] = compare(contenders, arguments.rounds)
    note = (
        f"Float32, 21 classes, output stride {arguments.output_stride}, from images to the class "
        "of every pixel; ours folds batch norm away and computes bands of rows, as `mnv2 "
        "predict` does, where no row says otherwise. Hugging Face's also computes the last 1×1 "
        "convolution, of which nothing is used. The share is of the first row's time, the median "
        "over rounds."
    )
    title = f"Segmentation on a CPU at {arguments.size}×{arguments.size}"
    report_per_madd(arguments.name, title, tables, cost, note)


if __name__ == "__main__":
    main()
