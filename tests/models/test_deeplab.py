"""Mobile DeepLabv3: the counts of Table 7, the head and its interpolation against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import MobileNetV2, UsageError, account
from mnv2_jax.models.build import build_deeplab
from mnv2_jax.models.deeplab import (
    DECODER_TAP,
    HEAD,
    DeepLabV3,
    full_atrous,
    resize_aligned,
    separable_atrous,
)
from mnv2_jax.models.spec import Row, Spec

SMALL = Spec(stem=8, stem_stride=2, rows=(Row(1, 8, 1, 1), Row(3, 8, 2, 2)), last=None)


def small(**options):
    backbone = MobileNetV2(num_classes=None, spec=SMALL, output_stride=options.pop("stride", None))
    return DeepLabV3(**{"num_classes": 3, "channels": 4, "backbone": backbone} | options)


def structure(model, size):
    x = jax.ShapeDtypeStruct((2, *size, model.backbone.in_channels), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "params", "madds"),
    [
        ({}, 2.114e6, 2.741e9),
        ({"output_stride": 8}, 2.114e6, 8.83e9),
        ({"aspp": True}, 4.524e6, 5.36e9),
        ({"aspp": True, "atrous": "separable"}, 2.568e6, None),
    ],
)
def test_counts_of_table_7(options, params, madds):
    counted = account(build_deeplab(num_classes=21, **options), (1, 513, 513, 3))
    np.testing.assert_allclose(counted.params, params, rtol=3e-4)
    if madds is not None:
        np.testing.assert_allclose(counted.madds, madds, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((513, 513), {"width": 0.35}),
        ((97, 130), {"width": 1.4, "output_stride": 8, "aspp": True}),
        ((33, 1), {"decoder": True, "atrous": "separable", "aspp": True}),
        ((40, 24), {"spec": "small_32", "output_stride": 8, "decoder": True}),
        ((8, 8), {"spec": "tiny_8", "output_stride": 4, "in_channels": 1}),
    ],
)
def test_logits_have_the_size_of_the_images(size, options):
    logits, variables = structure(build_deeplab(num_classes=5, **options), size)
    assert logits.shape == (2, *size, 5) and logits.dtype == jnp.float32
    assert "last" not in variables["params"]["backbone"]
    assert variables["params"]["pooling"]["conv"]["kernel"].shape[-1] == 256


def aligned_by_loops(x, size):
    """Every output pixel from the four around its place, corner to corner."""
    out = np.zeros((*size, x.shape[-1]))
    for i in range(size[0]):
        for j in range(size[1]):
            y = i * (x.shape[0] - 1) / (size[0] - 1) if size[0] > 1 else 0
            z = j * (x.shape[1] - 1) / (size[1] - 1) if size[1] > 1 else 0
            for di in (0, 1):
                for dj in (0, 1):
                    a, b = int(y) + di, int(z) + dj
                    weight = max(0, 1 - abs(y - a)) * max(0, 1 - abs(z - b))
                    if a < x.shape[0] and b < x.shape[1]:
                        out[i, j] += weight * x[a, b]
    return out


@pytest.mark.parametrize(
    ("size", "new"),
    [((3, 4), (9, 16)), ((5, 5), (65, 65)), ((6, 7), (3, 2)), ((1, 3), (4, 1)), ((1, 1), (5, 3))],
)
def test_interpolation_against_loops(size, new):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    found = np.asarray(jax.jit(resize_aligned, static_argnums=1)(x, new))
    for image, expected in zip(found, x, strict=True):
        np.testing.assert_allclose(image, aligned_by_loops(expected, new), atol=1e-5)
    corners = np.ix_(range(2), (0, -1), (0, -1))
    if min(new) > 1:
        np.testing.assert_allclose(found[corners], x[corners], atol=1e-6)


def conv_norm(x, params, stats, rate=1):
    """Convolution, norm and ReLU of one image in numpy; depthwise where the kernel says so."""
    kernel = np.float64(params["conv"]["kernel"])
    reach = rate * (kernel.shape[0] - 1) // 2
    padded = np.pad(np.float64(x), ((reach, reach), (reach, reach), (0, 0)))
    out = np.zeros((*x.shape[:2], kernel.shape[3]))
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            for a in range(kernel.shape[0]):
                for b in range(kernel.shape[1]):
                    pixel = padded[i + a * rate, j + b * rate]
                    depthwise = kernel.shape[2] == 1 and len(pixel) > 1
                    out[i, j] += pixel * kernel[a, b, 0] if depthwise else pixel @ kernel[a, b]
    norm, stats = params["norm"], stats["norm"]
    out = (out - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]
    return out.clip(0)  # ReLU, without the 6


def head_in_numpy(model, params, stats, x, low):
    pooled = conv_norm(x.mean((0, 1), keepdims=True), params["pooling"], stats["pooling"])
    branches = [np.broadcast_to(pooled, (*x.shape[:2], 4)),
                conv_norm(x, params["aspp_0"], stats["aspp_0"])]  # fmt: skip
    names = {full_atrous: ("conv",), separable_atrous: ("filter", "project")}[model.atrous]

    def atrous(y, name, rate):
        for layer in names:
            spread = rate if layer != "project" else 1
            y = conv_norm(y, params[name][layer], stats[name][layer], spread)
        return y

    branches += [atrous(x, f"aspp_{i}", rate) for i, rate in enumerate(model.rates, 1)]
    y = conv_norm(np.concatenate(branches, -1), params["projection"], stats["projection"])
    if model.decoder_tap is not None:
        low = conv_norm(low, params["low_level"], stats["low_level"])
        y = np.concatenate([aligned_by_loops(y, low.shape[:2]), low], -1)
        for i in range(2):
            y = atrous(y, f"decoder_{i}", 1)
    return y @ params["classifier"]["kernel"][0, 0] + params["classifier"]["bias"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rates": (2, 3)},
        {"rates": (2,), "atrous": separable_atrous, "decoder_tap": "block_0/expansion"},
    ],
)
def test_the_head_against_numpy(randomize, options):
    model, size = small(**options), (17, 12)
    variables = randomize(model, (2, *size, 3))
    # Large enough that a ReLU6 in the head would show.
    variables["params"]["projection"]["norm"]["bias"] += 8
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    found = np.asarray(jax.jit(model.apply)(variables, images))
    endpoints = jax.jit(lambda v, x: model.backbone.apply(v, x, method="endpoints"))(
        {kind: tree["backbone"] for kind, tree in variables.items()}, images
    )
    features = np.asarray(endpoints["block_2"])
    low = np.asarray(endpoints["block_0/expansion"])
    for i in range(2):
        logits = head_in_numpy(
            model, variables["params"], variables["batch_stats"], features[i], low[i]
        )
        expected = aligned_by_loops(logits, size)
        np.testing.assert_allclose(found[i], expected, rtol=1e-3, atol=1e-3)
    assert np.abs(found).max() > 6


@pytest.mark.slow
def test_output_stride_keeps_resolution_and_parameters():
    whole, half = (small(stride=s, rates=(1,)) for s in (None, 2))
    assert jax.tree.map(jnp.shape, structure(whole, (32, 32))[1]) == jax.tree.map(
        jnp.shape, structure(half, (32, 32))[1]
    )
    assert account(half, (1, 32, 32, 3)).madds > 2 * account(whole, (1, 32, 32, 3)).madds


@pytest.mark.slow
def test_training_drops_features_and_spares_masked_rows(randomize):
    model = small(dropout=0.5)
    variables = randomize(model, (3, 16, 16, 3))
    x = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)

    @jax.jit
    def run(x, key):
        return model.apply(
            variables, x, train=True, mask=jnp.array([1.0, 1.0, 0.0]), mutable=["batch_stats"],
            rngs={"dropout": key},
        )  # fmt: skip

    logits, updates = run(x, jax.random.key(0))
    other, same = run(np.concatenate([x[:2], 100 * x[2:]]), jax.random.key(0))
    np.testing.assert_array_equal(logits[:2], other[:2])
    jax.tree.map(np.testing.assert_array_equal, updates, same)
    assert (run(x, jax.random.key(1))[0] != logits).any()


def test_values_of_the_authors():
    model = build_deeplab()
    assert model == DeepLabV3() and hash(model) == hash(DeepLabV3())
    assert (HEAD.bn_decay, HEAD.bn_epsilon, model.dropout) == (0.9997, 1e-5, 0.1)
    assert (model.backbone.dialect.bn_decay, model.backbone.dialect.bn_epsilon) == (0.997, 1e-3)
    assert build_deeplab(aspp=True).rates == (6, 12, 18)
    assert build_deeplab(aspp=True, rates=[1, 2, 3]).rates == (1, 2, 3)  # a list, as in JSON
    assert build_deeplab(decoder=True).decoder_tap == DECODER_TAP
    fast = build_deeplab(bn_decay=0.9)
    assert fast.dialect.bn_decay == fast.backbone.dialect.bn_decay == 0.9


@pytest.mark.slow
def test_the_decoders_tap_has_stride_4_and_144_channels():
    x = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    backbone = build_deeplab().backbone
    found, _ = jax.eval_shape(
        lambda x: backbone.init_with_output(jax.random.key(0), x, method="endpoints"), x
    )
    assert found[DECODER_TAP].shape == (1, 16, 24, 144)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_deeplab(num_classes=0), "num_classes is 0"),
        (lambda: build_deeplab(output_stride=12), "output_stride is 12"),
        (lambda: build_deeplab(atrous="ful"), "unknown atrous 'ful': did you mean 'full'"),
        (lambda: build_deeplab(aspp=True, output_stride=4), "known for 8, 16, 32"),
        (lambda: build_deeplab(rates=(1, 2)), r"rates are \(1, 2\) without aspp"),
        (lambda: DeepLabV3(rates=(0, 6)), r"rates are \(0, 6\)"),
        (lambda: DeepLabV3(backbone=MobileNetV2()), "classifier of 1000 .*num_classes=None"),
        (lambda: structure(small(decoder_tap="block_9"), (8, 8)), "decoder_tap is 'block_9'.*stem"),
    ],
)
def test_wrong_options_are_refused_in_one_line(build, message):
    with pytest.raises(UsageError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
