"""How long does prediction take on this CPU, beside the runtimes made for it?"""

import argparse

from benchmarks.harness import Contender, compare, report

FORMS = {
    "mnv2_jax folded": ("jax_infer", {"form": "folded"}),
    "mnv2_jax folded, a device a core": ("jax_infer", {"form": "shared"}),
    "ONNX Runtime": ("onnxruntime_infer", {}),
    "LiteRT/XNNPACK": ("litert_infer", {}),
    "OpenVINO": ("openvino_infer", {}),
    "PyTorch compiled": ("torch_infer", {"compiled": True}),
    "PyTorch scripted": ("torch_infer", {"scripted": True}),
    "PyTorch channels-last": ("torch_infer", {}),
    "mnv2_jax module": ("jax_infer", {"form": "module"}),
    "plain Flax": ("jax_infer", {"form": "plain"}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases", nargs="+", default=["1x1", "1x2", "32x2"], help="batch x threads"
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--allocator", default="glibc")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    tables = {}
    for case in arguments.cases:
        batch, threads = map(int, case.split("x"))
        size = {"batch": batch, "size": arguments.size}
        contenders = [
            Contender(name, build, {**size, **options}, threads, arguments.allocator)
            for name, (build, options) in FORMS.items()
            if name in arguments.forms and (batch >= threads > 1 or options.get("form") != "shared")
        ]
        heading = f"batch {batch}, {threads} threads"
        tables[heading] = compare(contenders, arguments.rounds, 5 if batch == 1 else 1)
    report("infer_cpu", "Prediction on a CPU, MobileNetV2 1.0, float32", tables)


if __name__ == "__main__":
    main()
