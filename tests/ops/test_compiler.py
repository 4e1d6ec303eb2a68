"""Programs that wrong releases of XLA get wrong, and our networks' numbers against float64."""

import contextlib
import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxlib.version import __version__ as jaxlib_version

from mnv2_jax import build, relu6
from mnv2_jax.lab import cli
from mnv2_jax.models.spec import SPECS
from mnv2_jax.ops import compiler

PROGRAMS = """
import numpy as np, jax, jax.numpy as jnp
from mnv2_jax.ops import compiler
compiler.apply()

rows = np.zeros((32_769, 3), np.float32)
rows[:, 0] = np.arange(len(rows))
lengths = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
np.testing.assert_allclose(lengths, rows[:, 0] ** 2, rtol=1e-6)

u, v = np.random.default_rng(0).normal(size=(2, 3, 1, 2, 2, 8, 8, 8)).astype(np.float32)
sums = jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(u, v)
np.testing.assert_allclose(sums, (u * v).sum(3), rtol=1e-4, atol=1e-5)

evidence = np.ones((10, 4, 6, 1, 1, 1, 1, 1), np.float32)
sums = jax.jit(lambda a, b: jnp.log(jnp.sum(a * b, axis=2)))(
    evidence, np.ones((10, 4, 6, 9, 9, 9, 9, 9), np.float32)
)
np.testing.assert_allclose(sums, np.log(6), rtol=1e-6)
print("right")
"""


def python(program, *options, **environment):
    """Runs a program without the flags of the tests; returns its output and its warnings."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    done = subprocess.run(
        [sys.executable, *options, "-c", program],
        env=inherited | {"JAX_PLATFORMS": "cpu"} | environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


@pytest.mark.slow
def test_sums_that_were_wrong_are_right_under_our_settings():
    assert python(PROGRAMS)[0] == "right"


@pytest.fixture
def wrong(monkeypatch):
    """Takes the installed release for one that is wrong, and the environment for an empty one."""
    monkeypatch.setitem(compiler.KNOWN_WRONG, jaxlib_version, ("is wrong", "--a=b"))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(sys, "argv", ["someone.py"])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "--a=b"),
        ("--xla_cpu_use_thunk_runtime=true", "--xla_cpu_use_thunk_runtime=true --a=b"),
        (f"{compiler.OPTION}=+dot", f"{compiler.OPTION}=+dot"),
        ("flags.txt", "flags.txt"),
    ],
)
def test_the_flag_joins_those_of_the_user(wrong, monkeypatch, before, after):
    monkeypatch.setenv("XLA_FLAGS", before)
    monkeypatch.setattr(compiler, "OPTION", "--a" if before == "" else compiler.OPTION)
    compiler.apply()
    assert os.environ["XLA_FLAGS"] == after


def test_the_flag_is_added_once_and_only_for_releases_that_need_it(wrong, monkeypatch):
    monkeypatch.setitem(
        compiler.KNOWN_WRONG, jaxlib_version, ("is wrong", compiler.NO_FUSED_REDUCTIONS)
    )
    compiler.apply()
    compiler.apply()
    assert os.environ["XLA_FLAGS"] == compiler.NO_FUSED_REDUCTIONS
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.delitem(compiler.KNOWN_WRONG, jaxlib_version)
    compiler.apply()
    assert "XLA_FLAGS" not in os.environ


def test_a_program_of_someone_else_is_warned_in_one_line(wrong, monkeypatch):
    with pytest.warns(UserWarning, match="is wrong on CPUs: set XLA_FLAGS=--a=b") as caught:
        compiler.warn()
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    for change in (
        lambda patch: patch.setenv("XLA_FLAGS", f"{compiler.OPTION}=+dot"),
        lambda patch: patch.setattr(sys, "argv", ["/usr/bin/mnv2"]),
        lambda patch: patch.setattr(type(jax.config), "values", {"jax_platforms": "cuda,cpu"}),
    ):
        with monkeypatch.context() as patch, warnings.catch_warnings(action="error"):
            change(patch)
            compiler.warn()


@pytest.mark.slow
def test_importing_warns_once_where_needed_and_changes_nothing():
    program = """
import os
before = dict(os.environ)
import mnv2_jax, importlib
import mnv2_jax.models
from jax._src import xla_bridge
assert dict(os.environ) == before and not xla_bridge.backends_are_initialized()
"""
    _, said = python(program)
    assert said.count("XLA_FLAGS=") == (jaxlib_version in compiler.KNOWN_WRONG)


def test_the_command_line_sets_the_flag(wrong, capsys):
    assert cli.main(["account", "--spec", "tiny_8", "--resolution", "8"]) == 0
    assert os.environ["XLA_FLAGS"] == "--a=b"


@contextlib.contextmanager
def optimized(switch):
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", not switch)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


# What the experiments train: digits, several seeds at once; CIFAR-10; scenes. Every second row has
# two blocks, of which one has a shortcut, the others one. A rounding across one of ReLU6's kinks is
# another gradient, so that a large network is compared closely only without.
NETWORKS = {
    "digits": ({"spec": "tiny_8", "dialect": "torchvision"}, relu6, (64, 8, 8, 3), 1e-4),
    "32": ({"spec": "small_32", "width": 0.25}, jax.nn.silu, (32, 32, 32, 3), 1e-4),
    "96": ({"spec": "small_96", "output_stride": 8}, relu6, (4, 96, 96, 3), 5e-2),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["digits", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("32", "96"))]
)
def test_loss_gradients_and_statistics_agree_with_float64(name, randomize):
    """The reference is compiled otherwise too: hardly optimized, and without YNNPACK."""
    options, activation, shape, gradient_tolerance = NETWORKS[name]
    spec = SPECS[options["spec"]]
    rows = tuple(row._replace(n=min(row.n, 1 + i % 2)) for i, row in enumerate(spec.rows))
    model = build(**options, num_classes=10, dropout=0.0)
    model = model.clone(activation=activation, spec=spec._replace(rows=rows))
    seeds = [randomize(model, shape, seed=seed) for seed in ((0, 1) if name == "digits" else (0,))]
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(-1, 1, shape), rng.integers(10, size=shape[0])

    def step(variables, images):
        network = model.clone(dtype=images.dtype)

        def loss(params):
            values = {**variables, "params": params}
            out, update = network.apply(values, images, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean(), update

        (value, update), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return {"loss": value, "gradients": gradients, **update}

    def compute(dtype, **settings):
        variables = jax.tree.map(lambda *leaves: jnp.stack(leaves).astype(dtype), *seeds)
        compiled = jax.jit(jax.vmap(step, in_axes=(0, None)), **settings)
        return jax.device_get(compiled(variables, jnp.asarray(images, dtype)))

    with optimized(True):
        ours = compute(jnp.float32)
    mixed = jax.numpy_dtype_promotion("standard")
    with jax.enable_x64(True), mixed, optimized(False):
        exact = compute(jnp.float64, compiler_options={compiler.OPTION.removeprefix("--"): ""})

    for part, tolerance in {
        "loss": 1e-5,
        "batch_stats": 1e-5,
        "gradients": gradient_tolerance,
    }.items():
        whole = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(exact[part])))
        for (path, is_), wanted in zip(
            jax.tree_util.tree_leaves_with_path(ours[part]),
            jax.tree.leaves(exact[part]),
            strict=True,
        ):
            allowed = tolerance * (np.linalg.norm(wanted) + 1e-2 * whole)
            place = part + jax.tree_util.keystr(path)
            assert wanted.dtype == np.float64 and np.linalg.norm(is_ - wanted) < allowed, place
