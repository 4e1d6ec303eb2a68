"""The inverted residual: its maps, its wirings, and Sec. 5.1's split."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import (
    DIALECTS,
    ConvNorm,
    InvertedResidual,
    MobileNetV2,
    UsageError,
    between_bottlenecks,
    between_expansions,
    no_shortcut,
    relu6,
)
from mnv2_jax.models.spec import Row, Spec

SHAPE = (2, 7, 6, 8)


def images(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def numpy_block(variables, x, block):
    """The block of Table 1 written as loops over positions, independent of any convolution."""
    params, stats = variables["params"], variables["batch_stats"]
    eps = block.dialect.bn_epsilon

    def norm(name, y):
        p, s = params[name]["norm"], stats[name]["norm"]
        return (y - s["mean"]) / np.sqrt(s["var"] + eps) * p["scale"] + p["bias"]

    y = x
    if block.expansion > 1:
        y = np.clip(norm("expand", y @ params["expand"]["conv"]["kernel"][0, 0]), 0, 6)
    b, h, w, c = y.shape
    s, d = block.stride, block.dilation
    ho, wo = -(-h // s), -(-w // s)
    pads = []
    for n, out in ((h, ho), (w, wo)):
        total = max(0, (out - 1) * s + 2 * d + 1 - n)
        pads.append((d, d) if block.dialect.padding == "symmetric" else (total // 2, total))
    (top, _), (left, _) = pads
    kernel = params["filter"]["conv"]["kernel"]
    z = np.zeros((b, ho, wo, c), np.float32)
    for i, j, u, v in np.ndindex(ho, wo, 3, 3):
        row, column = i * s + u * d - top, j * s + v * d - left
        if 0 <= row < h and 0 <= column < w:
            z[:, i, j] += y[:, row, column] * kernel[u, v, 0]
    z = np.clip(norm("filter", z), 0, 6)
    return norm("project", z @ params["project"]["conv"]["kernel"][0, 0])


@pytest.mark.parametrize("dialect", ["slim", "torchvision"])
@pytest.mark.parametrize(
    ("expansion", "stride", "dilation"), [(6, 1, 1), (6, 2, 1), (1, 1, 1), (3, 1, 2)]
)
def test_against_loops_in_numpy(randomize, dialect, expansion, stride, dilation):
    block = InvertedResidual(
        10, expansion, stride, dilation, dialect=DIALECTS[dialect], shortcut=no_shortcut
    )
    variables = randomize(block, SHAPE)
    out = jax.jit(block.apply)(variables, images())
    np.testing.assert_allclose(out, numpy_block(variables, images(), block), rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_the_shortcut_adds_the_input_where_shapes_agree(randomize):
    x = images()
    for channels, stride, added in ((8, 1, True), (10, 1, False), (8, 2, False)):
        block = InvertedResidual(channels, stride=stride)
        variables = randomize(block, SHAPE)
        with_shortcut = jax.jit(block.apply)(variables, x)
        without = jax.jit(block.clone(shortcut=no_shortcut).apply)(variables, x)
        expected = x + without if added else without
        np.testing.assert_allclose(with_shortcut, expected, rtol=1e-6, atol=1e-6)


def test_a_strided_block_has_no_shortcut_even_on_one_pixel(randomize):
    block = InvertedResidual(8, stride=2)
    variables = randomize(block, (1, 1, 1, 8))
    x = images((1, 1, 1, 8))
    without = jax.jit(block.clone(shortcut=no_shortcut).apply)(variables, x)
    np.testing.assert_array_equal(jax.jit(block.apply)(variables, x), without)


def test_the_relu6_bottleneck_is_clipped_before_the_shortcut(randomize):
    block = InvertedResidual(8, bottleneck=relu6)
    variables = randomize(block, SHAPE)
    plain = block.clone(bottleneck=lambda x: x, shortcut=no_shortcut)
    linear, out = (jax.jit(b.apply)(variables, images()) for b in (plain, block))
    np.testing.assert_allclose(out, images() + np.clip(linear, 0, 6), rtol=1e-5, atol=1e-5)


def test_between_expansions_passes_the_expanded_tensor_on():
    maps = (lambda x: x * 2, lambda x: x, lambda x: x + 1)
    thin = jnp.ones((1, 2, 2, 3))
    first, wide = between_expansions(*maps, thin, None, 1)
    np.testing.assert_array_equal(first, thin * 3)
    second, wide = between_expansions(*maps, thin, wide, 1)
    np.testing.assert_array_equal(second, thin * 5)  # 2 expanded + 2 passed on, + 1
    np.testing.assert_array_equal(wide, thin * 4)
    assert between_expansions(*maps, thin, None, 2)[1] is None
    other = jnp.ones((1, 2, 2, 4))
    np.testing.assert_array_equal(between_expansions(*maps, thin, other, 1)[0], thin * 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wiring", "stride"),
    [
        pytest.param(between_bottlenecks, 1, marks=pytest.mark.nightly),
        pytest.param(between_bottlenecks, 2, marks=pytest.mark.nightly),
        pytest.param(no_shortcut, 1, marks=pytest.mark.nightly),
        (no_shortcut, 2),
    ],
)
def test_split_inference_is_the_same_block(randomize, stride, wiring):
    block = InvertedResidual(8, stride=stride, shortcut=wiring, bottleneck=relu6)
    variables = randomize(block, SHAPE)

    @jax.jit
    def outputs(variables, x):  # 48 expanded channels: 5, 7 and 60 groups do not divide them
        return [block.clone(split=t).apply(variables, x) for t in (1, 2, 3, 4, 5, 6, 7, 60)]

    whole, *splits = outputs(variables, images())
    for split in splits:
        np.testing.assert_allclose(split, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_split_makes_the_same_parameters_and_trains_like_the_whole(randomize):
    block, split = InvertedResidual(8), InvertedResidual(8, split=3)
    shapes = [jax.eval_shape(b.init, jax.random.key(0), images()) for b in (block, split)]
    assert shapes[0] == shapes[1]
    variables = randomize(block, SHAPE)
    ours, theirs = (
        jax.jit(partial(b.apply, train=True, mutable=["batch_stats"]))(variables, images())
        for b in (block, split)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_split_never_holds_the_expanded_tensor(randomize):
    block = InvertedResidual(8, expansion=16)
    variables, shape = randomize(block, (1, 64, 64, 8)), (1, 64, 64, 8)

    def temporaries(t):
        apply = jax.jit(block.clone(split=t).apply)
        return apply.lower(variables, images(shape)).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.5 * temporaries(1)


@pytest.mark.parametrize("split", [0, -1, 1.5, "2", True])
def test_impossible_splits_are_refused(split):
    with pytest.raises(UsageError, match=r"split is .*: it must be an integer of at least 1"):
        InvertedResidual(8, split=split)


def test_split_refuses_a_shortcut_that_needs_the_whole_expansion():
    with pytest.raises(UsageError, match="use split=1, or the shortcut between_bottlenecks"):
        InvertedResidual(8, split=2, shortcut=between_expansions)


@pytest.mark.slow
def test_rows_masked_out_leave_statistics_and_other_rows_alone(randomize):
    block = InvertedResidual(8)
    variables = randomize(block, SHAPE)
    x = images((4, 7, 6, 8))
    kept = x[[0, 2]]
    garbage = x.copy()
    garbage[[1, 3]] = 1e6
    mask = np.array([1, 0, 1, 0], np.float32)
    train = jax.jit(partial(block.apply, train=True, mutable=["batch_stats"]))
    out, update = train(variables, garbage, mask=mask)
    expected, expected_update = train(variables, kept)
    np.testing.assert_allclose(out[jnp.array([0, 2])], expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), update, expected_update
    )


DEEP = Spec(
    stem=8, stem_stride=1, rows=(Row(1, 8, 1, 1), Row(3, 8, 3, 2), Row(2, 16, 2, 1)), last=16
)


def test_the_blocks_that_have_a_shortcut_are_dropped_and_the_later_the_more_often():
    """timm's rule, rate * block / blocks: _make_block of timm/models/_efficientnet_builder.py."""
    model = MobileNetV2(None, spec=DEEP, stochastic_depth=0.6)
    variables = jax.eval_shape(model.init, jax.random.key(0), x := images((1, 4, 4, 3)))
    rates = {}

    def seen(following, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            rates[context.module.parent.name] = context.module.rate
        return following(*args, **kwargs)

    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    with nn.intercept_methods(seen):
        jax.eval_shape(apply, variables, x, rngs={"dropout": jax.random.key(0)})
    # Block 0 has a shortcut and never goes; 1 is strided, and 4 changes the channels.
    assert rates == pytest.approx({"block_2": 0.6 * 2 / 6, "block_3": 0.6 * 3 / 6, "block_5": 0.5})


def test_a_dropped_block_is_the_identity_and_the_others_make_up_for_it(randomize):
    block = InvertedResidual(2, 2, stochastic_depth=0.3, frozen_norm=True)
    variables, x = randomize(block, (1, 1, 1, 2)), images((4000, 1, 1, 2))
    apply = jax.jit(block.apply, static_argnames="train")
    whole = apply(variables, x)
    np.testing.assert_array_equal(whole, block.clone(stochastic_depth=0.0).apply(variables, x))
    out = apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)})
    dropped = np.all(out == x, axis=(1, 2, 3))
    expected = np.where(dropped[:, None, None, None], x, x + (whole - x) / 0.7)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    assert abs(dropped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan"), "0.1", True])
def test_impossible_rates_of_stochastic_depth_are_refused(rate):
    with pytest.raises(
        UsageError, match=r"depth is .*: it must be a number of at least 0 and below"
    ):
        MobileNetV2(stochastic_depth=rate)


@pytest.mark.parametrize("shortcut", [between_expansions, no_shortcut])
def test_stochastic_depth_needs_the_shortcut_between_bottlenecks(shortcut):
    with pytest.raises(UsageError, match=r"depth is 0.1 with a shortcut other than .*, or this"):
        InvertedResidual(8, stochastic_depth=0.1, shortcut=shortcut)


# Maps of someone's own, as they would be written in an experiment.


def five(conv, x, block):
    """A 5×5 depthwise convolution."""
    window = {"kernel": 5, "stride": block.stride, "dilation": block.dilation}
    return conv(x, x.shape[-1], depthwise=True, name="filter", **window)


def no_activation(conv, x, block):
    return conv(x, block.expanded, activation=lambda x: x, name="expand")


class Excite(nn.Module):
    """A module of one's own in a map: its layers come from the same conv."""

    @nn.compact
    def __call__(self, conv, x):
        s = conv(x.mean((1, 2), keepdims=True), x.shape[-1] // 4, name="squeeze", norm=False)
        return x * conv(s, x.shape[-1], name="excite", norm=False, activation=nn.sigmoid)


def excited(conv, x, block):
    x = Excite(name="se")(conv, x)
    x = conv(x, block.channels, name="thin", activation=block.activation)  # a layer more
    return conv(x, block.channels, activation=block.bottleneck, name="project")


OWN = {"expand": no_activation, "filter": five, "project": excited}
SPEC = Spec(stem=8, stem_stride=2, rows=(Row(1, 8, 1, 1), Row(3, 8, 2, 2)), last=16)


@pytest.mark.slow
def test_every_layer_of_ones_own_trains_when_the_network_does(randomize):
    model = MobileNetV2(None, spec=SPEC, **OWN)
    variables = randomize(model, (4, 16, 16, 3))
    x = images((4, 16, 16, 3))
    apply = jax.jit(partial(model.apply, mutable=["batch_stats"]), static_argnames="train")
    _, still = apply(variables, x, train=False)
    jax.tree.map(np.testing.assert_array_equal, still["batch_stats"], variables["batch_stats"])
    _, moved = apply(variables, x, train=True)
    same = jax.tree.map(lambda new, old: bool((new == old).any()), moved, still)
    assert jax.tree.leaves(same) == [False] * 2 * (3 * 4 + 2)  # mean and var of every layer
    # What the masked half holds takes no part in any layer's statistics.
    mask = np.array([1, 1, 0, 0], np.float32)
    results = [
        apply(variables, jnp.asarray(x).at[2:].set(bad), train=True, mask=mask) for bad in (0, 9)
    ]
    jax.tree.map(np.testing.assert_array_equal, results[0][1], results[1][1])


@pytest.mark.slow
def test_maps_of_ones_own_against_their_parts(randomize):
    """Each layer of a block is a ConvNorm with the block's settings."""
    block = InvertedResidual(8, 3, 2, dialect=DIALECTS["torchvision"], **OWN)
    variables = randomize(block, SHAPE)

    def layer(name, features, x, **options):
        parts = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
        for step in name.split("/"):
            parts = {kind: tree[step] for kind, tree in parts.items() if step in tree}
        conv = ConvNorm(features, dialect=DIALECTS["torchvision"], **options)
        return conv.apply(parts, x)

    x = layer("expand", 24, images(), activation=lambda x: x)
    x = layer("filter", 24, x, kernel=5, stride=2, depthwise=True)
    s = layer("se/squeeze", 6, x.mean((1, 2), keepdims=True), norm=False)
    x = x * layer("se/excite", 24, s, norm=False, activation=nn.sigmoid)
    expected = layer("project", 8, layer("thin", 8, x), activation=lambda x: x)
    np.testing.assert_allclose(block.apply(variables, images()), expected, rtol=1e-5, atol=1e-5)


def refused(match, **maps):
    model = MobileNetV2(None, spec=SPEC, **maps)
    with pytest.raises(UsageError, match=match) as caught:
        jax.eval_shape(model.init, jax.random.key(0), images((1, 16, 16, 3)))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("make", [ConvNorm, InvertedResidual])
def test_a_layer_that_would_not_train_is_refused(make):
    def project(conv, x, block):
        return conv(make(8, name="more")(x), block.channels, name="project")

    def trained(conv, x, block):
        return conv(make(8, name="more")(x, block.train), block.channels, name="project")

    refused(
        "'more' in 'block_0' is called without train: make the layer by the conv", project=project
    )
    model = MobileNetV2(None, spec=SPEC, project=trained)
    jax.eval_shape(model.init, jax.random.key(0), images((1, 16, 16, 3)))


def test_maps_of_another_shape_are_refused():
    """The shortcut would be left out without a word."""

    def unstrided(conv, x, block):
        return conv(x, x.shape[-1], kernel=3, depthwise=True, name="filter")

    refused(
        r"maps of block_1 give .* \(8, 8, 8\), and the block's are \(4, 4, 8\)", filter=unstrided
    )


@pytest.mark.parametrize("name", OWN)
def test_split_refuses_maps_of_ones_own(name):
    with pytest.raises(UsageError, match="split is 2 with maps other than the paper's"):
        InvertedResidual(8, split=2, **{name: OWN[name]})
