"""Files with every name and shape of slim's, d-li14's and tonylins' own, listed here once more.

The names and shapes are written down from those projects, not made by our tables, and every tensor
has a number of its own in it, so that one in another's place is seen.
"""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mnv2_jax.models.spec import IMAGENET
from mnv2_jax.weights import load_weights

# (in, expanded, out) of the 17 blocks at width 1.
BLOCKS = (
    (32, 32, 16), (16, 96, 24), (24, 144, 24), (24, 144, 32), (32, 192, 32), (32, 192, 32),
    (32, 192, 64), (64, 384, 64), (64, 384, 64), (64, 384, 64), (64, 384, 96), (96, 576, 96),
    (96, 576, 96), (96, 576, 160), (160, 960, 160), (160, 960, 160), (160, 960, 320),
)  # fmt: skip


def slim():
    """Yields (their name, its shape, our path) of mobilenet_v2_1.0_224."""

    def layer(place, ours, shape, kernel="weights"):
        yield f"{place}/{kernel}", shape, f"params/{ours}/conv/kernel"
        channels = shape[2] if kernel == "depthwise_weights" else shape[3]
        norm = f"{place}/BatchNorm"
        yield f"{norm}/gamma", (channels,), f"params/{ours}/norm/scale"
        yield f"{norm}/beta", (channels,), f"params/{ours}/norm/bias"
        yield f"{norm}/moving_mean", (channels,), f"batch_stats/{ours}/norm/mean"
        yield f"{norm}/moving_variance", (channels,), f"batch_stats/{ours}/norm/var"

    yield from layer("MobilenetV2/Conv", "stem", (3, 3, 3, 32))
    for i, (entering, wide, leaving) in enumerate(BLOCKS):
        block = "MobilenetV2/expanded_conv" + (f"_{i}" if i else "")
        if i:
            yield from layer(f"{block}/expand", f"block_{i}/expand", (1, 1, entering, wide))
        yield from layer(
            f"{block}/depthwise", f"block_{i}/filter", (3, 3, wide, 1), "depthwise_weights"
        )
        yield from layer(f"{block}/project", f"block_{i}/project", (1, 1, wide, leaving))
    yield from layer("MobilenetV2/Conv_1", "last", (1, 1, 320, 1280))
    head = "MobilenetV2/Logits/Conv2d_1c_1x1"
    yield f"{head}/weights", (1, 1, 1280, 1001), "params/classifier/kernel"
    yield f"{head}/biases", (1001,), "params/classifier/bias"


def flat(last):
    """Yields the same of the two projects in PyTorch whose blocks are one flat `Sequential`."""

    def layer(conv, norm, ours, shape):
        yield f"{conv}.weight", shape, f"params/{ours}/conv/kernel"
        yield f"{norm}.weight", shape[:1], f"params/{ours}/norm/scale"
        yield f"{norm}.bias", shape[:1], f"params/{ours}/norm/bias"
        yield f"{norm}.running_mean", shape[:1], f"batch_stats/{ours}/norm/mean"
        yield f"{norm}.running_var", shape[:1], f"batch_stats/{ours}/norm/var"
        yield f"{norm}.num_batches_tracked", (), None

    yield from layer("features.0.0", "features.0.1", "stem", (32, 3, 3, 3))
    for i, (entering, wide, leaving) in enumerate(BLOCKS):
        block, first = f"features.{i + 1}.conv", 3 if i else 0
        if i:
            yield from layer(
                f"{block}.0", f"{block}.1", f"block_{i}/expand", (wide, entering, 1, 1)
            )
        yield from layer(
            f"{block}.{first}", f"{block}.{first + 1}", f"block_{i}/filter", (wide, 1, 3, 3)
        )
        yield from layer(
            f"{block}.{first + 3}", f"{block}.{first + 4}", f"block_{i}/project",
            (leaving, wide, 1, 1),
        )  # fmt: skip
    yield from layer(f"{last}.0", f"{last}.1", "last", (1280, 320, 1, 1))
    yield "classifier.weight", (1000, 1280), "params/classifier/kernel"
    yield "classifier.bias", (1000,), "params/classifier/bias"


@pytest.mark.parametrize(
    ("ecosystem", "listed", "classes"),
    [
        ("slim", list(slim()), 1001),
        ("d-li14", list(flat("conv")), 1000),
        ("tonylins", list(flat("features.18")), 1000),
    ],
)
def test_a_file_of_exactly_these_names_and_shapes(tmp_path, ecosystem, listed, classes):
    numbers = {name: np.float32(1 + i) for i, (name, _, _) in enumerate(listed)}
    file = {name: np.full(shape, numbers[name]) for name, shape, _ in listed}
    if ecosystem == "slim":  # as its trainings leave them, with averages beside the raw weights
        averages = {f"{name}/ExponentialMovingAverage": array for name, array in file.items()}
        file = {name: array + 1000 for name, array in file.items()} | averages
        file["global_step"] = np.int64(1)
    np.savez(tmp_path / "model.npz", **file)
    loaded = load_weights(f"{ecosystem}:{tmp_path / 'model.npz'}")
    model = loaded.model
    assert (model.spec, model.width, model.num_classes) == (IMAGENET, 1.0, classes)
    found = flatten_dict(loaded.variables, sep="/")
    expected = {ours: numbers[name] for name, _, ours in listed if ours is not None}
    assert found.keys() == expected.keys() and len(expected) == 262
    assert all((leaf == expected[ours]).all() for ours, leaf in found.items())
