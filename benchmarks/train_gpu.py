"""How many images a second does training reach on this GPU, beside PyTorch and the roofline?"""

from benchmarks.gpu import images_a_second

NETWORK = {"width": 1.0, "spec": "imagenet", "classes": 1000}


def main():
    images_a_second(
        "train_gpu",
        "A training step on a GPU, MobileNetV2 1.0, bfloat16",
        {
            "mnv2_jax": ("jax_train", {"dtype": "bfloat16"}),
            "plain Flax": ("jax_train", {"dtype": "bfloat16", "plain": True}),
            "PyTorch compiled": ("torch_train", {"compiled": True}),
            "PyTorch channels-last": ("torch_train", {}),
        },
        NETWORK,
        189e6 / 224**2,
    )


if __name__ == "__main__":
    main()
