"""Derivatives of every mode and order, of operations and networks, against XLA's own forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mnv2_jax import MobileNetV2, relu6
from mnv2_jax.models.spec import Row, Spec
from mnv2_jax.ops.batch_norm import Setting, expanded, normalized
from mnv2_jax.ops.convolution import convolution
from mnv2_jax.ops.platform import compiled_for

RNG = np.random.default_rng(0)
X, V = RNG.normal(size=(2, 3, 5, 4, 2)) * 2
DEPTHWISE, POINTWISE = RNG.normal(size=(2, 2, 1, 2)), RNG.normal(size=(2, 3))
STEM, NORM = RNG.normal(size=(3, 3, 2, 3)), RNG.normal(size=(4, 3)) + 1  # kernel, scale and bias
MASK = np.array([1.0, 0.0, 1.0])


pytestmark = pytest.mark.usefixtures("float64")


def convolve(x, kernel, form, **options):
    return form(x, kernel, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def plain_norm(x, scale, bias, mask, axis_name=None):
    """Batch norm as its definition says, differentiated by JAX."""
    kept = mask[:, None, None, None]
    n = mask.sum() * x.shape[1] * x.shape[2]
    sums = [n, (kept * x).sum((0, 1, 2))]
    n, total = sums if axis_name is None else lax.psum(sums, axis_name)
    mean = total / n
    square = (kept * (x - mean[None, None, None]) ** 2).sum((0, 1, 2))
    var = (square if axis_name is None else lax.psum(square, axis_name)) / n
    out = scale * lax.rsqrt(var + 1e-3)[None] * (x - mean[None, None, None]).reshape(-1, 3) + bias
    return jnp.tanh(out).reshape(x.shape), mean, var


def norm(x, operand, form, axis_name=None):
    kernel, scale, bias = operand[:2], operand[2], operand[3]
    setting = Setting(1e-3, jnp.tanh, axis_name, jnp.float64)
    if form == "plain":
        return plain_norm(x @ kernel, scale[None], bias[None], MASK, axis_name)
    if form == "normalized":
        return normalized(x @ kernel, scale, bias, MASK, setting)[:3]
    return expanded(x, kernel, scale, bias, MASK, setting)[:3]


# name -> (functions of X and a second operand, the last of them in plain form, and that operand)
CASES = {
    "norm": (*(lambda x, k, form=form: norm(x, k, form)
               for form in ("normalized", "expanded", "plain")), NORM),
    "depthwise": (*(
        lambda x, k, form=form: convolve(x, k, form, feature_group_count=2)
        for form in (convolution, lax.conv_general_dilated)), DEPTHWISE),
    "stem": (*(
        lambda x, k, form=form: convolve(x, k, form)
        for form in (convolution, lax.conv_general_dilated)), STEM),
    "pointwise": (*(
        lambda x, k, form=form: form(x, k[None, None], (1, 1), "VALID",
                                     dimension_numbers=("NHWC", "HWIO", "NHWC"))
        for form in (convolution, lax.conv_general_dilated)), POINTWISE),
}  # fmt: skip


def scalar(function):
    def total(*operands):
        leaves = jax.tree.leaves(function(*operands))
        return sum(
            (jnp.sin(y) * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum() for y in leaves
        )

    return total


MODES = {
    "jvp": lambda f, x, k: jax.jvp(f, (x, k), (V, k**2)),
    "linearize": lambda f, x, k: jax.linearize(f, x, k)[1](V, jnp.cos(k)),
    "transposed linearize": lambda f, x, k: jax.linear_transpose(
        lambda t: jax.jvp(lambda k: scalar(f)(x, k), (k,), (t,))[1], k)(1.0),
    "vmap of jvp": lambda f, x, k: jax.vmap(
        lambda t: jax.jvp(f, (x, k), (t * x, k)))(jnp.arange(3.0)),
    "jvp of vmap": lambda f, x, k: jax.jvp(
        jax.vmap(f, (None, 0)), (x, jnp.stack([k, -k])), (V, jnp.stack([k, k**2]))),
    "grad of vmap": lambda f, x, k: jax.grad(
        lambda x, ks: jax.vmap(scalar(f), (None, 0))(x, ks).sum(), (0, 1))(x, jnp.stack([k, -k])),
    "jvp of grad": lambda f, x, k: jax.jvp(jax.grad(scalar(f), (0, 1)), (x, k), (V, jnp.cos(k))),
    "grad of jvp": lambda f, x, k: jax.grad(
        lambda x, k: jax.jvp(scalar(f), (x, k), (V, k))[1], (0, 1))(x, k),
    "grad of grad": lambda f, x, k: jax.grad(
        lambda x, k: (jax.grad(scalar(f), 1)(x, k) ** 2).sum(), (0, 1))(x, k),
    "hessian": lambda f, x, k: jax.hessian(scalar(f), 1)(x, k),
    "forward over forward": lambda f, x, k: jax.jacfwd(jax.jacfwd(scalar(f), 1), 1)(x, k),
    "remat": lambda f, x, k: jax.jvp(
        jax.grad(jax.checkpoint(scalar(f)), (0, 1)), (x, k), (V, jnp.cos(k))),
}  # fmt: skip


def same(ours, theirs, tolerance=1e-9):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * (1 + abs(b).max()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("depthwise", tuple(MODES)),
        ("norm", ("jvp", "grad of vmap", "jvp of grad")),
        pytest.param("norm", tuple(MODES), marks=pytest.mark.nightly),
        # Made of what JAX differentiates by itself.
        ("stem", ("jvp", "hessian")),
        ("pointwise", ("jvp", "hessian")),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_every_mode_equals_what_jax_makes_of_the_plain_form(case, names):
    *ours, plain, k = CASES[case]
    for name, mode in ((name, MODES[name]) for name in names):
        *results, right = (jax.jit(partial(mode, f))(X, k) for f in (*ours, plain))
        for result in results:
            try:
                same(result, right)
            except AssertionError as error:
                raise AssertionError(name) from error


@pytest.mark.slow
def test_it_works_outside_of_jit():
    ours, plain, k = CASES["depthwise"]
    for mode in ("jvp", "jvp of grad"):
        same(*(MODES[mode](f, X, k) for f in (ours, plain)))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["normalized", "expanded"])
@pytest.mark.parametrize("how", [pytest.param("vmap", marks=pytest.mark.nightly), "shard_map"])
def test_statistics_over_an_axis(how, form):
    x = np.stack([X, V])

    def derivatives(form):
        def f(x, k):
            return norm(x, k, form, "rows")

        return lambda x: (
            jax.jvp(f, (x, jnp.asarray(NORM)), (jnp.cos(x), jnp.asarray(NORM) ** 2)),
            jax.jvp(jax.grad(lambda x: scalar(f)(x, NORM)), (x,), (jnp.cos(x),)),
        )

    def run(form):
        one = derivatives(form)
        if how == "vmap":
            return jax.jit(jax.vmap(one, axis_name="rows"))(x)
        mesh = Mesh(np.array(jax.devices()[:2]), ("rows",))
        local = jax.shard_map(
            lambda x: jax.tree.map(lambda v: v[None], one(x[0])),
            mesh=mesh, in_specs=P("rows"), out_specs=P("rows"), check_vma=False)  # fmt: skip
        return jax.jit(local)(x)

    same(run(form), run("plain"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_types_are_those_of_the_operands(dtype):
    for name in ("depthwise", "stem", "pointwise"):
        ours, plain, k = CASES[name]
        operands = jnp.asarray(X, dtype), jnp.asarray(k, dtype)
        a, b = (jax.jvp(f, operands, operands)[1] for f in (ours, plain))
        assert a.dtype == b.dtype == dtype
        wide = [np.asarray(v, np.float64) for v in (a, b)]
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(*wide, rtol=8 * eps, atol=40 * eps)


@pytest.mark.nightly
def test_a_whole_network_in_training_equals_its_plain_form():
    """Jacobian-vector and Hessian-vector products through every kind of layer at once."""
    spec = Spec(4, 2, (Row(1, 4, 1, 1), Row(6, 4, 2, 1), Row(6, 6, 1, 2)), last=None, divisor=2)
    model = MobileNetV2(None, spec=spec, dtype=jnp.float64, activation=jnp.tanh, in_channels=2)
    x = jnp.asarray(RNG.normal(size=(2, 12, 12, 2)))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x))
    variables = jax.tree.map(lambda v: jnp.asarray(RNG.uniform(-1, 1, v.shape)), variables)
    params = variables["params"]

    @jax.jit
    def products(params, x):
        def loss(params, x):
            given = {**variables, "params": params}
            return (model.apply(given, x, True, mutable=["batch_stats"])[0] ** 2).sum()

        moved = jax.tree.map(jnp.cos, params), jnp.sin(x)
        return (
            jax.jvp(loss, (params, x), moved),
            jax.jvp(jax.grad(loss, (0, 1)), (params, x), moved),
        )

    ours = products(params, x)
    with compiled_for("any"):
        same(ours, products(params, x), 1e-8)


@pytest.mark.slow
def test_relu6_and_masks_of_any_type():
    x = jnp.asarray(X) @ POINTWISE
    setting = Setting(1e-3, relu6, None, jnp.float64)
    results = [
        jax.jvp(lambda x, m=mask: normalized(x, NORM[2], NORM[3], m, setting), (x,), (x**2,))[1]
        for mask in (MASK, MASK > 0, MASK.astype(np.int32))
    ]
    same(results[1], results[0])
    same(results[2], results[0])
