"""Folded prediction against the network itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import DIALECTS, SPECS, MobileNetV2, UsageError, relu6
from mnv2_jax.inference.run import fold, folded_apply
from mnv2_jax.models.block import SHORTCUTS
from mnv2_jax.models.spec import Row, Spec


def check(randomize, model, shape, tolerance=1e-5, **options):
    variables = randomize(model, shape)
    x = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    expected = np.asarray(jax.jit(model.apply)(variables, x))
    ours = jax.jit(partial(folded_apply, model, **options))(fold(model, variables), x)
    assert ours.shape == expected.shape and ours.dtype == expected.dtype
    largest = np.abs(expected).max()
    np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(randomize, dialect):
    model = MobileNetV2(num_classes=7, spec=SPECS["tiny_8"], dialect=DIALECTS[dialect])
    check(randomize, model, (2, 9, 8, 3))


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("bottleneck", [relu6, lambda x: x])
def test_wirings_and_bottlenecks(randomize, shortcut, bottleneck):
    model = MobileNetV2(
        num_classes=7, spec=SPECS["tiny_8"], shortcut=SHORTCUTS[shortcut], bottleneck=bottleneck
    )
    check(randomize, model, (1, 8, 8, 3))


@pytest.mark.parametrize(
    "options",
    [{"width": 0.35}, {"output_stride": 8, "width": 0.5}, {"num_classes": None, "width": 0.5}],
)
def test_widths_output_strides_and_features(randomize, options):
    # Seventeen blocks of random weights multiply rounding errors.
    check(randomize, MobileNetV2(**{"num_classes": 5, **options}), (1, 65, 64, 3), 1e-4)


@pytest.mark.parametrize("band", [1, 700, 4000])  # bytes: a row a band, a few, and only some blocks
@pytest.mark.parametrize("padding", ["slim", "torchvision"])
@pytest.mark.parametrize(
    ("spec", "shape", "options"),
    [
        ("tiny_8", (1, 8, 8, 3), {}),
        ("tiny_8", (2, 11, 7, 3), {"shortcut": SHORTCUTS["none"]}),
        ("tiny_8", (1, 9, 10, 3), {"shortcut": SHORTCUTS["between_expansions"]}),
        ("tiny_8", (3, 10, 9, 1), {"bottleneck": relu6, "in_channels": 1}),
        ("dilated", (1, 13, 12, 3), {"output_stride": 2}),
    ],
)
def test_bands_of_rows(randomize, spec, shape, options, padding, band):
    """Strides, dilations, borders and row counts that no number of bands divides."""
    dilated = Spec(8, 2, (Row(1, 4, 1, 1), Row(3, 6, 2, 2), Row(2, 6, 2, 2)), 16, 2)
    spec = dilated if spec == "dilated" else SPECS[spec]
    model = MobileNetV2(num_classes=7, spec=spec, dialect=DIALECTS[padding], **options)
    check(randomize, model, shape, band=band)


def test_a_block_in_bands_never_holds_its_expanded_tensor():
    """At the paper's size, by XLA's own account of temporary memory (Sec. 5.1)."""
    model = MobileNetV2()
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    folded = jax.eval_shape(partial(fold, model), variables)

    def temporaries(band):
        apply = jax.jit(partial(folded_apply, model, band=band))
        return apply.lower(folded, images).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(5e5) < 0.4 * temporaries(np.inf)


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 4, 7])
def test_any_batch(randomize, batch):
    model = MobileNetV2(num_classes=7, spec=SPECS["tiny_8"])
    if batch:
        return check(randomize, model, (batch, 8, 8, 3))
    folded = fold(model, randomize(model, (1, 8, 8, 3)))
    assert folded_apply(model, folded, jnp.zeros((0, 8, 8, 3))).shape == (0, 7)


def test_folding_is_a_pure_function_under_jit_and_keeps_the_dtype(randomize):
    model = MobileNetV2(num_classes=7, spec=SPECS["tiny_8"], dtype=jnp.bfloat16)
    variables = randomize(model, (1, 8, 8, 3))
    folded = jax.jit(partial(fold, model))(variables)
    assert folded["stem"].kernel.dtype == jnp.bfloat16
    check(randomize, model, (3, 8, 8, 3), 0.1)


def test_nothing_of_batch_norm_or_grouped_convolution_is_left(randomize):
    model = MobileNetV2(num_classes=7, spec=SPECS["tiny_8"])
    folded = fold(model, randomize(model, (1, 8, 8, 3)))
    images = jnp.zeros((6, 8, 8, 3))
    text = str(jax.make_jaxpr(partial(folded_apply, model))(folded, images))
    assert "rsqrt" not in text and "conv_general_dilated" not in text


def test_images_are_checked(randomize):
    model = MobileNetV2(num_classes=7, spec=SPECS["tiny_8"])
    folded = fold(model, randomize(model, (1, 8, 8, 3)))
    with pytest.raises(UsageError, match="4 axes are needed"):
        folded_apply(model, folded, jnp.zeros((8, 8, 3)))
