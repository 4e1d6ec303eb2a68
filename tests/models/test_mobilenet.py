"""The whole network: published counts, shapes, endpoints, training mode, variants, refusals."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import (
    DIALECTS,
    SPECS,
    MobileNetV2,
    UsageError,
    between_bottlenecks,
    between_expansions,
    build,
    linear,
    no_shortcut,
    relu6,
)
from mnv2_jax.models.layers import ACTIVATIONS
from mnv2_jax.models.spec import Row, Spec

# Two blocks and a head: every kind of layer, compiled in a second.
SMALL = Spec(stem=8, stem_stride=2, rows=(Row(1, 8, 1, 1), Row(3, 8, 2, 2)), last=16)
PARAMS = {0.35: 1_677_128, 0.5: 1_968_680, 0.75: 2_636_424, 1.0: 3_504_872, 1.3: 5_386_792,
          1.4: 6_108_776}  # fmt: skip


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def structure(model, size=(64, 64)):
    x = jax.ShapeDtypeStruct((2, *size, model.in_channels), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), x)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.parametrize(  # by day all of them are accounted for (tests/test_accounting.py)
    "width", [pytest.param(w, marks=[pytest.mark.nightly] * (w != 1.0)) for w in PARAMS]
)
def test_parameters_of_the_published_widths(width):
    logits, variables = structure(MobileNetV2(width=width))
    assert count(variables["params"]) == PARAMS[width]
    assert logits.shape == (2, 1000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "size"),
    [
        pytest.param(width, size, marks=[pytest.mark.nightly] * ((i + 2 * j) % 5 > 0))
        for i, width in enumerate((0.1, 0.27, 1.0, 1.8, 3))
        for j, size in enumerate(((32, 32), (97, 130), (224, 160), (1, 5)))
    ],
)
def test_any_width_and_size_gives_logits(width, size):
    logits, _ = structure(MobileNetV2(width=width, num_classes=7), size)
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32


@pytest.mark.slow
def test_the_shape_at_every_row_of_table_2():
    model = MobileNetV2()
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    _, variables = structure(model)
    found = jax.eval_shape(lambda v, x: model.apply(v, x, method="endpoints"), variables, x)
    shapes = {name: found[name].shape[1:] for name in found}
    table = {  # the input column of Table 2, and the output after its last row
        "stem": (112, 112, 32), "block_0": (112, 112, 16), "block_2": (56, 56, 24),
        "block_5": (28, 28, 32), "block_9": (14, 14, 64), "block_12": (14, 14, 96),
        "block_15": (7, 7, 160), "block_16": (7, 7, 320), "last": (7, 7, 1280),
        "pooled": (1280,), "logits": (1000,),
    }  # fmt: skip
    assert {name: shapes[name] for name in table} == table
    assert shapes["block_13/expansion"] == (14, 14, 576)  # SSDLite's first tap
    assert len(found) == 1 + 2 * 17 + 3


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_stride_sets_the_final_resolution(output_stride):
    model = MobileNetV2(num_classes=None, output_stride=output_stride)
    features, variables = structure(model, (128, 64))
    assert features.shape == (2, 128 // output_stride, 64 // output_stride, 1280)
    assert count(variables["params"]) == PARAMS[1.0] - 1_281_000  # no classifier, same backbone


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"output_stride": 16, "width": 0.5}, {"spec": SPECS["tiny_8"]}]
)
def test_the_pyramid_has_the_features_of_every_stride(options):
    model = MobileNetV2(num_classes=None, **options)
    _, variables = structure(model)
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, method="pyramid"), variables, images)
    assert {
        stride: (64 // stride, 96 // stride, channels)
        for stride, (_, channels) in model.layout.stages.items()
    } == {stride: x.shape[1:] for stride, x in maps.items()}
    assert list(maps) == sorted(set(model.layout.strides))


@pytest.mark.slow
def test_six_ablations_have_the_same_parameters():
    shapes = []
    placed = ("between_bottlenecks", "between_expansions", "none")  # others may add their own
    for shortcut, bottleneck in itertools.product(placed, ("linear", "relu6")):
        _, variables = structure(build(shortcut=shortcut, bottleneck=bottleneck))
        shapes.append(jax.tree.map(lambda leaf: leaf.shape, variables))
        assert count(variables["params"]) == 3_504_872
    assert all(shape == shapes[0] for shape in shapes) and len(shapes) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wiring", "expected"), [(between_bottlenecks, 10), (between_expansions, 10), (no_shortcut, 0)]
)
def test_number_of_shortcuts(wiring, expected):
    """Counts the additions of two whole activations in the traced network."""
    model = MobileNetV2(shortcut=wiring, convolve=jax.lax.conv_general_dilated)
    _, variables = structure(model)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(model.apply)(variables, x).jaxpr
    shapes = [
        [v.aval.shape for v in eqn.invars] for eqn in jaxpr.eqns if eqn.primitive.name == "add"
    ]
    # Batch norm adds a (1, 1, 1, c) offset; only a shortcut adds two tensors that fill space.
    assert sum(a == b and len(a) == 4 and a[1] > 1 for a, b in shapes if len(b)) == expected


@pytest.mark.slow
def test_small_specs_keep_resolution_for_small_images():
    for spec, size, final in (("small_32", 32, 4), ("tiny_8", 8, 2)):
        model = MobileNetV2(spec=SPECS[spec], num_classes=None, in_channels=1)
        features, _ = structure(model, (size, size))
        assert features.shape[1:3] == (final, final)


def test_features_only_without_the_last_convolution():
    model = MobileNetV2(num_classes=None, spec=SPECS["imagenet"]._replace(last=None))
    features, variables = structure(model)
    assert features.shape == (2, 2, 2, 320)
    assert count(variables["params"]) == 3_504_872 - 1_281_000 - 320 * 1280 - 2 * 1280


@pytest.mark.slow
def test_training_updates_statistics_and_evaluation_does_not(randomize):
    model = MobileNetV2(spec=SMALL, num_classes=5, dropout=0.0)
    variables = randomize(model, (4, 16, 16, 3))
    x = images(4, 16, 16, 3)
    train, evaluate = (
        jax.jit(partial(model.apply, train=train, mutable=["batch_stats"]))
        for train in (True, False)
    )
    (logits, update), (same, unchanged) = train(variables, x), evaluate(variables, x)
    jax.tree.map(np.testing.assert_array_equal, unchanged["batch_stats"], variables["batch_stats"])
    assert not np.allclose(logits, same)
    old, new = variables["batch_stats"]["stem"]["norm"], update["batch_stats"]["stem"]["norm"]
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    y = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = 0.997 * old["mean"] + 0.003 * y.mean((0, 1, 2))
    np.testing.assert_allclose(new["mean"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_frozen_norm_uses_running_statistics_in_training(randomize):
    model = MobileNetV2(spec=SMALL, num_classes=5, dropout=0.0, frozen_norm=True)
    variables = randomize(model, (2, 16, 16, 3))
    x = images(2, 16, 16, 3)
    train = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    logits, update = train(variables, x)
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, x), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, update["batch_stats"], variables["batch_stats"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.float32, marks=pytest.mark.nightly), jnp.bfloat16]
)
def test_gradients_are_finite_and_parameters_stay_float32(randomize, dtype):
    model = MobileNetV2(spec=SMALL, num_classes=5, dtype=dtype)
    variables = randomize(model, (4, 16, 16, 3))

    @jax.jit
    def grad(params):
        def loss(params):
            logits, update = model.apply(
                {**variables, "params": params}, images(4, 16, 16, 3), train=True,
                mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})  # fmt: skip
            return (logits**2).mean(), (logits, update)

        return jax.grad(loss, has_aux=True)(params)

    grads, (logits, update) = grad(variables["params"])
    assert logits.dtype == jnp.float32
    for leaf in jax.tree.leaves((grads, update)):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(randomize):
    model = MobileNetV2(spec=SMALL, num_classes=5)
    variables = randomize(model, (2, 16, 16, 3))
    exact, half = (
        jax.jit(model.clone(dtype=dtype).apply)(variables, images(2, 16, 16, 3))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    np.testing.assert_allclose(half, exact, atol=0.05 * np.abs(exact).max())


@pytest.mark.slow
@pytest.mark.parametrize("t", [pytest.param(2, marks=pytest.mark.nightly), 5])
def test_split_network_gives_the_same_logits(randomize, t):
    model = MobileNetV2(spec=SMALL, num_classes=5)
    variables = randomize(model, (2, 17, 16, 3))
    x = images(2, 17, 16, 3)
    whole, split = (jax.jit(m.apply)(variables, x) for m in (model, model.clone(split=t)))
    np.testing.assert_allclose(split, whole, rtol=1e-5, atol=1e-5)


def test_models_compare_and_hash_by_value():
    assert MobileNetV2(width=0.5) == MobileNetV2(width=0.5)
    assert hash(build(width=0.5)) == hash(build(width=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width is 0: it must be a number above 0"),
        ({"width": -0.5}, "width is -0.5: it must be a number above 0"),
        ({"output_stride": 12}, "output_stride is 12: this architecture can have 2, 4, 8, 16, 32"),
        ({"dialect": "slin"}, "unknown dialect 'slin': did you mean 'slim'"),
        ({"shortcut": "bottlenecks"}, "unknown shortcut 'bottlenecks'.*The choices are between_"),
        ({"bottleneck": "swish"}, "unknown bottleneck 'swish': .*linear, relu, relu6"),
        ({"spec": None}, "unknown spec None: The choices are imagenet, "),
        ({"widht": 1.0}, "unknown model option 'widht': did you mean 'width'"),
        ({"num_classes": 0}, "num_classes is 0: give at least 1, or None"),
        ({"expansion": 0}, "expansion is 0"),
        ({"split": 0}, "split is 0"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        build(**options)
    assert "\n" not in str(caught.value)


def test_a_name_where_the_value_is_meant():
    with pytest.raises(UsageError, match=r"give a Dialect, such as DIALECTS\['slim'\]"):
        MobileNetV2(dialect="slim")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match=r"give a Spec, such as SPECS\['imagenet'\]"):
        MobileNetV2(spec="small_32")  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((8, 8, 3), np.float32, r"shape \(8, 8, 3\): 4 axes are needed.* image\[None\]"),
        ((8, 8), np.float32, r"shape \(8, 8\): 4 axes are needed"),
        ((1, 8, 8, 1), np.float32, "1 channels where this network takes 3.*in_channels=1"),
        ((1, 8, 8, 4), np.float32, "4 channels where this network takes 3"),
        ((1, 8, 8, 3), np.uint8, r"images are uint8: .*normalize\(images, dialect\)"),
    ],
)
def test_wrong_images_are_refused_in_one_line(shape, dtype, message):
    with pytest.raises(UsageError, match=message) as caught:
        jax.eval_shape(MobileNetV2().init, jax.random.key(0), jnp.zeros(shape, dtype))
    assert "\n" not in str(caught.value)


def test_every_named_value_can_be_built():
    for dialect in DIALECTS:
        assert build(dialect=dialect).dialect.name == dialect
    assert build(bottleneck="relu6").bottleneck is relu6
    assert build().bottleneck is linear
    for activation in ACTIVATIONS:
        build(activation=activation)
