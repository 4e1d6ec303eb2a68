"""Every fast form of convolution against XLA's own, values and gradients, on random shapes."""

import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from mnv2_jax.ops import convolution as forms
from mnv2_jax.ops.convolution import convolution
from mnv2_jax.ops.platform import compiled_for

NHWC = ("NHWC", "HWIO", "NHWC")


pytestmark = pytest.mark.usefixtures("float64")


@st.composite
def convolutions(draw, groups):
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    sides = st.integers(0, 3)
    padding = draw(
        st.one_of(
            st.sampled_from(["SAME", "VALID"]),
            st.tuples(st.tuples(sides, sides), st.tuples(sides, sides)),
        )
    )
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [draw(st.integers(span, span + 9)) for span in spans]
    batch, channels = draw(st.sampled_from([1, 2, 3, 8])), draw(st.integers(1, 5))
    shape = (*kernel, 1, channels) if groups else (*kernel, channels, draw(st.integers(1, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x, k = rng.normal(size=(batch, *size, channels)), rng.normal(size=shape)
    options = {
        "window_strides": strides,
        "padding": padding,
        "rhs_dilation": dilation,
        "dimension_numbers": NHWC,
        "feature_group_count": channels if groups else 1,
    }
    return x, k, options


def check(x, k, options):
    @jax.jit
    def values_and_gradients(x, k):
        results = []
        for form in (convolution, lax.conv_general_dilated):
            convolve = functools.partial(form, **options)
            value, pullback = jax.vjp(convolve, x, k)
            dy = jnp.sin(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)
            moved = jax.jvp(convolve, (x, k), (jnp.cos(x), k**2))[1]
            results.append((value, *pullback(dy), moved))
        return results

    ours, xla = values_and_gradients(x, k)
    for mine, theirs in zip(ours, xla, strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(convolutions(groups=True), st.sampled_from([1, 8]), st.sampled_from([1, 40, 1 << 17]))
def test_depthwise_equals_xla(case, devices, band):
    with (
        mock.patch.object(jax, "device_count", return_value=devices),
        mock.patch.object(forms, "MAX_BAND", band),
    ):
        check(*case)


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(convolutions(groups=True))
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_forms_for_tpus_and_gpus_equal_xla(platform, case):
    with compiled_for(platform):
        check(*case)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(convolutions(groups=True))
def test_products_over_the_columns_of_rows_equal_xla(case):
    x, k, options = case
    given = options["window_strides"], options["padding"], options["rhs_dilation"]
    window = forms._window(x.shape[1:3], k.shape[:2], *given)
    expected = jax.jit(functools.partial(lax.conv_general_dilated, **options))(x, k)
    ours = jax.jit(forms.by_columns, static_argnums=2)(x, k, window)
    np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-11)


def test_few_channels_are_dense_on_a_tpu_and_many_are_not():
    def groups(channels):
        x, k = jnp.ones((1, 4, 4, channels)), jnp.ones((3, 3, 1, channels))
        with compiled_for("tpu"):
            text = str(jax.make_jaxpr(lambda x, k: depthwise(x, k, 1))(x, k))
        return int(re.search(r"feature_group_count=(\d+)", text)[1])

    assert [groups(n) for n in (8, 32, 33, 144)] == [1, 1, 33, 144]


def test_a_precision_that_was_asked_for_reaches_a_tpu():
    x, k = jnp.ones((1, 4, 4, 8)), jnp.ones((3, 3, 1, 8))
    asked = functools.partial(
        convolution, window_strides=(1, 1), padding="SAME", feature_group_count=8,
        precision=jax.lax.Precision.HIGHEST)  # fmt: skip
    with compiled_for("tpu"):
        assert "Precision.HIGHEST" in str(jax.make_jaxpr(asked)(x, k))


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(convolutions(groups=False))
def test_full_and_pointwise_equal_xla(case):
    check(*case)


def test_a_grouped_convolution_that_is_not_depthwise_equals_xla():
    rng = np.random.default_rng(0)
    x, k = rng.normal(size=(2, 6, 6, 4)), rng.normal(size=(3, 3, 2, 8))
    check(x, k, {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC,
                 "feature_group_count": 2})  # fmt: skip


def example(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 9, 8, 6)), dtype)
    k = jnp.asarray(rng.normal(size=(3, 3, 1, 6)), dtype)
    return x, k


def depthwise(x, k, stride=2, convolve=convolution):
    return convolve(
        x, k, (stride, stride), "SAME", dimension_numbers=NHWC, feature_group_count=x.shape[3]
    )


@pytest.mark.slow
def test_bfloat16_rounds_once():
    x, k = example(jnp.bfloat16)
    exact = depthwise(x.astype(jnp.float32), k.astype(jnp.float32), 1)
    ours = depthwise(x, k, 1)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, exact.astype(jnp.bfloat16))
    grads = jax.grad(lambda x, k: depthwise(x, k, 2).astype(jnp.float32).sum(), (0, 1))(x, k)
    assert [g.dtype for g in grads] == [jnp.bfloat16] * 2
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in grads)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_it_composes_with_vmap_remat_and_jit(devices, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    x, k = example(jnp.float64)
    ks = jnp.stack([k, 2 * k, -k])

    def loss(convolve):
        return jax.checkpoint(lambda k: (depthwise(x, k, 2, convolve) ** 2).sum())

    ours = jax.jit(jax.vmap(jax.grad(loss(convolution))))(ks)
    theirs = jax.vmap(jax.grad(loss(lax.conv_general_dilated)))(ks)
    np.testing.assert_allclose(ours, theirs, rtol=1e-11)


@pytest.mark.parametrize("devices", [1, 8])
def test_no_grouped_convolution_is_left_on_the_cpu(devices, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    x, k = example(jnp.float32)
    grad = jax.jit(jax.grad(lambda x, k: depthwise(x, k).sum(), (0, 1)))
    assert " convolution(" not in grad.lower(x, k).compile().as_text()
