"""Folded prediction against the network itself.

Networks of a few thin blocks: what a test costs is their compilation.
"""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import DIALECTS, MobileNetV2, UsageError, relu6
from mnv2_jax.inference import operations, run
from mnv2_jax.inference.run import fold, folded_apply
from mnv2_jax.models.block import SHORTCUTS
from mnv2_jax.models.build import build_deeplab, build_ssdlite
from mnv2_jax.models.spec import IMAGENET, Row, Spec
from mnv2_jax.ops.platform import compiled_for

THIN = Spec(6, 1, (Row(1, 4, 1, 1), Row(3, 6, 2, 2)), 8, 2)
DILATED = Spec(4, 2, (Row(1, 4, 1, 1), Row(3, 6, 1, 2), Row(2, 6, 2, 2)), None, 2)


def check(randomize, model, shape, tolerance=1e-5, bands=(None,)):
    variables = randomize(model, shape)
    x = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    expected = jax.jit(model.apply)(variables, x)
    folded = fold(model, variables)
    for band in bands:
        results = jax.jit(partial(folded_apply, model, band=band))(folded, x)
        assert jax.tree.structure(results) == jax.tree.structure(expected)
        for ours, theirs in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
            largest = np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dialect",
    [
        pytest.param(d, marks=[pytest.mark.nightly] * (d not in ("slim", "torchvision")))
        for d in DIALECTS
    ],
)
def test_dialects(randomize, dialect):
    check(randomize, MobileNetV2(7, spec=THIN, dialect=DIALECTS[dialect]), (2, 9, 8, 3))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_forms_for_gpus_and_tpus(monkeypatch, randomize, platform, dtype):
    """On GPUs no convolution is left, on TPUs no grouped one of stride 1 but of rows' columns."""
    for module in (operations, run):  # blocks of 12 channels are halved, and of 18 filtered by rows
        monkeypatch.setattr(module, "MAX_GROUP", 6)
    model, shape = MobileNetV2(7, spec=THIN), (2, 9, 8, 3)
    variables = randomize(model, shape)
    x = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    expected = jax.jit(model.apply)(variables, x)
    ours = model.clone(dtype=dtype)
    folded = fold(ours, variables)
    apply = partial(folded_apply, ours)
    with compiled_for(platform):
        found, program = jax.jit(apply)(folded, x), str(jax.make_jaxpr(apply)(folded, x))
    if platform == "cuda":
        assert "conv_general_dilated" not in program
        assert "preferred_element_type=float32" in program
    else:
        groups = [int(n) for n in re.findall(r"feature_group_count=(\d+)", program)]
        assert groups.count(18) == 1 and 12 not in groups
        assert program.count("dot_general") > 1
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shortcut", "bottleneck"),
    [
        ("between_bottlenecks", relu6),
        ("between_expansions", relu6),
        ("between_expansions", lambda x: x),
        ("none", relu6),
    ],
)
def test_wirings_and_bottlenecks(randomize, shortcut, bottleneck):
    model = MobileNetV2(7, spec=THIN, shortcut=SHORTCUTS[shortcut], bottleneck=bottleneck)
    check(randomize, model, (1, 8, 8, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"width": 0.35, "spec": THIN},
        pytest.param({"output_stride": 2, "spec": DILATED}, marks=pytest.mark.nightly),
        pytest.param({"num_classes": None, "spec": THIN, "split": 2}, marks=pytest.mark.nightly),
    ],
)
def test_widths_output_strides_and_features(randomize, options):
    check(randomize, MobileNetV2(**{"num_classes": 5, **options}), (1, 17, 16, 3))


def five_wide(conv, x, block):
    """A depthwise convolution of 5×5."""
    window = {"kernel": 5, "stride": block.stride, "dilation": block.dilation}
    return conv(x, x.shape[-1], depthwise=True, activation=jnp.tanh, name="filter", **window)


# Strides, dilations, borders and row counts that no number of bands divides.
BANDED = {
    "strides": (THIN, (1, 8, 8, 3), {}),
    "no shortcut": (THIN, (2, 11, 7, 3), {"shortcut": SHORTCUTS["none"]}),
    "expansions": (THIN, (1, 9, 10, 3), {"shortcut": SHORTCUTS["between_expansions"]}),
    "clipped": (THIN, (3, 10, 9, 1), {"bottleneck": relu6, "in_channels": 1}),
    "dilated": (DILATED, (1, 13, 12, 3), {"output_stride": 2}),
    "own": (THIN, (1, 11, 8, 3), {"filter": five_wide, "activation": jax.nn.hard_swish}),
}


BY_DAY = [("own", "slim")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "padding"),
    [
        pytest.param(*pair, marks=[pytest.mark.nightly] * (pair not in BY_DAY))
        for pair in itertools.product(BANDED, ("slim", "torchvision"))
    ],
)
def test_bands_of_rows(randomize, case, padding):
    spec, shape, options = BANDED[case]
    model = MobileNetV2(num_classes=7, spec=spec, dialect=DIALECTS[padding], **options)
    check(randomize, model, shape, bands=(1, 1500))  # bytes: a row a band; a few, and not all


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size"),
    [
        pytest.param(
            build_ssdlite(num_classes=2, spec=THIN).clone(extras=(64,)),
            20,
            marks=pytest.mark.nightly,
        ),
        (build_deeplab(num_classes=3, spec=THIN, output_stride=2), 9),
    ],
)
def test_detectors_and_segmenters(randomize, model, size):
    check(randomize, model, (3, size, size + 1, 3), bands=(1500,))


@pytest.mark.slow
def test_a_block_in_bands_never_holds_its_expanded_tensor():
    """At the paper's size, of its first blocks, by XLA's own account of memory (Sec. 5.1)."""
    model = MobileNetV2(None, spec=IMAGENET._replace(rows=IMAGENET.rows[:2], last=None))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    folded = jax.eval_shape(partial(fold, model), variables)

    def temporaries(band):
        apply = jax.jit(partial(folded_apply, model, band=band))
        return apply.lower(folded, images).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(5e5) < 0.4 * temporaries(np.inf)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [0, 1, 2, 4, 7])
def test_any_batch(randomize, batch):
    model = MobileNetV2(7, spec=THIN._replace(rows=THIN.rows[:1]))
    if batch:
        return check(randomize, model, (batch, 8, 8, 3))
    folded = fold(model, randomize(model, (1, 8, 8, 3)))
    assert folded_apply(model, folded, jnp.zeros((0, 8, 8, 3))).shape == (0, 7)


@pytest.mark.slow
def test_folding_is_a_pure_function_under_jit_and_keeps_the_dtype(randomize):
    model = MobileNetV2(7, spec=THIN, dtype=jnp.bfloat16)
    variables = randomize(model, (1, 8, 8, 3))
    folded = jax.jit(partial(fold, model))(variables)
    assert folded["stem"].kernel.dtype == jnp.bfloat16
    assert folded["classifier"].kernel.dtype == jnp.float32
    check(randomize, model, (3, 8, 8, 3), 0.1)


@pytest.mark.slow
def test_nothing_of_batch_norm_or_grouped_convolution_is_left(randomize):
    model = MobileNetV2(7, spec=THIN)
    folded = fold(model, randomize(model, (1, 8, 8, 3)))
    images = jnp.zeros((6, 8, 8, 3))
    text = str(jax.make_jaxpr(partial(folded_apply, model))(folded, images))
    assert "rsqrt" not in text and "conv_general_dilated" not in text


@pytest.mark.usefixtures("unchecked")
def test_images_are_checked(randomize):
    model = MobileNetV2(7, spec=THIN)
    folded = fold(model, randomize(model, (1, 8, 8, 3)))
    with pytest.raises(UsageError, match="4 axes are needed"):
        folded_apply(model, folded, jnp.zeros((8, 8, 3)))
