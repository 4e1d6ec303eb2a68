"""How many images a second does prediction reach on this GPU, beside PyTorch and the roofline?"""

from benchmarks.gpu import images_a_second


def main():
    images_a_second(
        "infer_gpu",
        "Prediction on a GPU, MobileNetV2 1.0, bfloat16",
        {
            "mnv2_jax folded": ("jax_infer", {"form": "folded", "dtype": "bfloat16"}),
            "mnv2_jax module": ("jax_infer", {"form": "module", "dtype": "bfloat16"}),
            "PyTorch compiled": ("torch_infer", {"compiled": True}),
            "PyTorch channels-last": ("torch_infer", {}),
        },
        {},
        27.3e6 / 224**2,
    )


if __name__ == "__main__":
    main()
