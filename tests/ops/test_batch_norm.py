"""Batch norm's own gradient, alone and behind a 1×1 convolution, against nn.BatchNorm's."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mnv2_jax import ConvNorm, linear, relu6
from mnv2_jax.models.layers import relu
from mnv2_jax.ops.batch_norm import BatchNorm, Operands
from mnv2_jax.ops.platform import compiled_for

OPTIONS = {"use_running_average": False, "momentum": 0.9, "epsilon": 1e-3}


class Ours(nn.Module):
    """A 1×1 convolution and batch norm; `together` computes them as one."""

    features: int
    activation: object = relu6
    together: bool = False
    axis_name: str | None = None
    dtype: object = jnp.float64
    peer: bool = False

    @nn.compact
    def __call__(self, x, mask=None):
        kernel = self.param("kernel", nn.initializers.normal(1.0), (x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = x @ kernel
        options = {**OPTIONS, "axis_name": self.axis_name, "dtype": self.dtype, "name": "norm"}
        if self.peer:
            rows = None if mask is None else mask.reshape(-1, 1, 1, 1) > 0
            with jax.numpy_dtype_promotion("standard"):
                return self.activation(nn.BatchNorm(**options)(y, mask=rows))
        given = Operands(x, kernel) if self.together else y
        return BatchNorm(**options)(given, mask, self.activation)


def variables_of(module, x, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.tree.map(lambda v: jnp.asarray(rng.uniform(0.5, 2, v.shape), v.dtype), shapes)


def everything(module, variables, x, mask=None):
    """The output, the new statistics, and the gradient of a loss that reads both."""

    def loss(params, x):
        out, update = module.apply(
            {**variables, "params": params}, x, mask, mutable=["batch_stats"]
        )
        weights = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        stats = sum((v**2).sum() for v in jax.tree.leaves(update))
        return (weights * out).sum() + stats.astype(out.dtype), (out, update)

    grads, aux = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)
    return aux, grads


def same(ours, theirs, tolerance=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, theirs
    )


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@settings(max_examples=8, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 5), st.integers(1, 5), st.integers(2, 4), st.integers(1, 4)),
    features=st.integers(1, 7),
    activation=st.sampled_from([relu6, relu, linear, jnp.tanh]),
    together=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 9),
)
def test_values_statistics_and_gradients(shape, features, activation, together, masked, seed):
    x = jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 4)
    mask = jnp.asarray([1.0, 0.0, 1.0, 1.0, 0.0][: shape[0]]) if masked else None
    ours = Ours(features, activation, together)
    peer = ours.clone(peer=True)
    variables = variables_of(ours, x, seed)
    assert jax.tree.structure(variables) == jax.tree.structure(variables_of(peer, x))
    run = jax.jit(everything, static_argnums=0)
    # Running statistics are float32, and so is the gradient that comes through them.
    same(run(ours, variables, x, mask), run(peer, variables, x, mask))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("together", [False, True])
def test_gradients_are_exact(together):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 5, 3)) * 4)
    ours = Ours(12, together=together)
    variables = variables_of(ours, x)

    def grads(module):
        def loss(params, x):
            out, _ = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sin(out).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(variables["params"], x)

    same(grads(ours), grads(ours.clone(peer=True)), 1e-11)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("how", ["vmap", "shard_map"])
def test_statistics_shared_over_an_axis(how, together):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)) * 4)
    mask = jnp.asarray([[1.0, 1, 0], [0, 1, 1]])
    ours = Ours(6, together=together, axis_name="rows")
    variables = variables_of(ours.clone(axis_name=None), x[0])

    def run(module):
        one = partial(everything, module, variables)
        if how == "vmap":
            return jax.jit(jax.vmap(one, axis_name="rows"))(x, mask)
        mesh = Mesh(np.array(jax.devices()[:2]), ("rows",))
        local = jax.shard_map(
            lambda x, m: jax.tree.map(lambda v: v[None], one(x[0], m[0])),
            mesh=mesh, in_specs=P("rows"), out_specs=P("rows"), check_vma=False)  # fmt: skip
        return jax.jit(local)(x, mask)

    same(run(ours), run(ours.clone(peer=True)))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("together", [False, True])
def test_it_composes_with_vmap_and_remat(together):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 4, 4, 2)) * 4)
    ours = Ours(6, together=together)
    variables = variables_of(ours, x[0])

    def run(module):
        @jax.checkpoint
        def loss(params, x):
            out, _ = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return (out**2).sum()

        return jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(variables["params"], x)

    same(run(ours), run(ours.clone(peer=True)), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
def test_bfloat16_keeps_statistics_in_float32_and_is_as_exact_as_flax(together):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)) + 3, jnp.bfloat16)
    ours = Ours(12, together=together, dtype=jnp.bfloat16)
    variables = variables_of(ours, x)

    def run(module, x):
        with compiled_for("cuda"):
            (out, stats), grads = jax.jit(everything, static_argnums=0)(module, variables, x)
        return out, stats["batch_stats"], grads

    found, flax = run(ours, x), run(ours.clone(peer=True), x)
    rounded = variables["params"]["kernel"].astype(jnp.bfloat16).astype(jnp.float32)
    variables["params"]["kernel"] = rounded
    exact = run(ours.clone(peer=True, dtype=jnp.float32), x.astype(jnp.float32))
    assert found[0].dtype == found[2][1].dtype == jnp.bfloat16
    assert {v.dtype for v in jax.tree.leaves((found[1], found[2][0]))} == {jnp.dtype("float32")}
    same(found[1], exact[1], 1e-3)
    for value, peer, true in zip(*map(jax.tree.leaves, (found, flax, exact)), strict=True):
        off = [np.linalg.norm(np.asarray(v, np.float32) - true) for v in (value, peer)]
        assert off[0] <= 1.5 * off[1] + 1e-3 * np.linalg.norm(true)


def test_on_gpus_an_expansion_takes_its_statistics_from_its_inputs_in_bfloat16_too():
    def is_one(platform, dtype):
        layer, x = ConvNorm(24, dtype=dtype), jnp.ones((2, 4, 4, 3))
        with compiled_for(platform):
            variables = jax.eval_shape(layer.init, jax.random.key(0), x)
            step = partial(layer.apply, train=True, mutable=["batch_stats"])
            return "reduce_sum[axes=(0, 1, 2)" not in str(jax.make_jaxpr(step)(variables, x))

    assert is_one("cuda", jnp.bfloat16) and is_one("cuda", jnp.float32)
    assert is_one("cpu", jnp.float32) and not is_one("cpu", jnp.bfloat16)
    assert not is_one("tpu", jnp.bfloat16) and not is_one("cpu,cuda", jnp.float32)


FIXED = {
    "expansion": (ConvNorm(24), 3), "projection": (ConvNorm(2, activation=linear), 12),
    "stem": (ConvNorm(8, kernel=3, stride=2), 3),
    "depthwise": (ConvNorm(6, kernel=3, stride=2, depthwise=True), 6),
    "dilated": (ConvNorm(6, kernel=3, dilation=2, depthwise=True), 6),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", FIXED)
def test_with_running_statistics_the_forms_for_gpus_equal_flax(name, dtype):
    """Values, and gradients through frozen statistics; bfloat16 is as exact as Flax's layers."""
    layer, channels = FIXED[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 8, channels)), dtype)
    variables = variables_of(layer, x)

    def run(platform, dtype):
        def loss(params, x):
            out = layer.clone(dtype=dtype).apply({**variables, "params": params}, x)
            weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
            return (weights * out.astype(jnp.float32)).sum(), out

        with compiled_for(platform):
            alone = jax.jit(layer.clone(dtype=dtype).apply)(variables, x.astype(dtype))
            moved = jax.jit(jax.grad(loss, has_aux=True))(variables["params"], x.astype(dtype))
        assert alone.dtype == dtype
        return jax.tree.map(lambda v: np.asarray(v, np.float64), (alone, moved))

    ours, flax = run("cuda", dtype), run("any", dtype)
    if dtype == jnp.float32:
        same(ours, flax, 1e-4)
        return
    exact = run("any", jnp.float32)
    for value, peer, true in zip(*map(jax.tree.leaves, (ours, flax, exact)), strict=True):
        off = [np.linalg.norm(v - true) for v in (value, peer)]
        assert off[0] <= 1.5 * off[1] + 1e-2 * np.linalg.norm(true)


@pytest.mark.parametrize("name", FIXED)
def test_on_gpus_a_prediction_has_no_convolutions_left(name):
    """What XLA fuses there: matrix products that stay in float32, and shifted multiply-adds."""
    layer, channels = FIXED[name]
    layer = layer.clone(dtype=jnp.bfloat16)
    x = jnp.ones((2, 9, 8, channels), jnp.bfloat16)
    variables = variables_of(layer, x)

    def step(variables):
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])[0].sum()

    with compiled_for("cuda"):
        text = str(jax.make_jaxpr(layer.apply)(variables, x))
        training = str(jax.make_jaxpr(jax.grad(step))(variables))
    assert "conv_general_dilated" not in text
    assert layer.depthwise or "preferred_element_type=float32" in text
    assert layer.kernel == 1 or "conv_general_dilated" in training


@pytest.mark.slow
def test_an_expansion_is_not_normalised_in_passes_of_its_own():
    """Of 3 → 24 channels, no sum over the 24 remains in the forward pass."""
    layer, x = ConvNorm(24), jnp.ones((2, 8, 8, 3))
    variables = layer.init(jax.random.key(0), x)
    text = str(
        jax.make_jaxpr(partial(layer.apply, train=True, mutable=["batch_stats"]))(variables, x)
    )
    assert "reduce_sum[axes=(0, 1, 2)" not in text


@pytest.mark.slow
def test_interceptors_of_convolutions_are_heard():
    """What one does to a convolution's input counts, in whatever form the layer is computed."""
    layer, x = ConvNorm(24), jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)))
    x = x.astype(jnp.float32)
    variables = layer.init(jax.random.key(0), x)

    def squared(call, args, kwargs, context):
        is_conv = isinstance(context.module, nn.Conv)
        return call(*((a**2 for a in args) if is_conv else args), **kwargs)

    for train in (False, True):
        run = partial(layer.apply, variables, train=train, mutable=["batch_stats"])
        with nn.intercept_methods(squared):
            changed = run(x)[0]
        np.testing.assert_array_equal(changed, run(x**2)[0])
