"""Settings of the whole test run, made before JAX starts, and fixtures that several rooms share."""

import gc
import os
import signal
import warnings

# Eight virtual CPU devices, so that every sharding is tested on any machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Tests compile much and compute little; this halves their time and changes no result.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import jaxtyping
import numpy as np
import pytest

from tests import runtime_types

# A shell's background and nohup hand these signals on as ignored, and tests send them.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL),
):  # fmt: skip
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)

# Before the first import of the package: every call checks the shapes and dtypes that it states.
# An array of numpy's is as good as one of JAX's.
jaxtyping.Array = jax.Array | np.ndarray
jaxtyping.jaxtyped = runtime_types.where_arrays_are_stated
jaxtyping.install_import_hook("mnv2_jax", f"{runtime_types.__name__}.checked")

with warnings.catch_warnings(action="ignore"):  # that this is not done yet
    from mnv2_jax.ops import compiler

compiler.apply()

# Tracing makes millions of objects that live; looking through them less often saves a twelfth.
gc.set_threshold(50_000, 20, 50)


def pytest_collection_finish():
    """Leaves what was imported and collected, which lives to the end, out of every later look."""
    gc.collect()
    gc.freeze()


jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(request):
    """Keeps compiled programs between runs: the second run of the tests starts much faster."""
    jax.config.update("jax_compilation_cache_dir", str(request.config.cache.mkdir("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture
def promotion():
    """For code of others, such as Optax, Flax and a reader's own, which may mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def float64(promotion):
    """Forms are compared in float64, where a wrong term cannot hide behind rounding.

    Parameters and statistics stay float32, so that dtypes are mixed on purpose.
    """
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked():
    """For tests that hand in what a signature forbids, to read the error that a user gets."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def randomize():
    """Gives a module's variables with every leaf random, batch statistics too.

    Fresh initialisation hides mistakes: scales of 1 and means of 0 survive a wrong name or axis.
    Kernels are scaled by their fan-in, so that activations neither vanish nor saturate.
    """

    def make(module, *shapes, seed=0, **kwargs):
        shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
        variables = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, **kwargs), *shapes)
        rng = np.random.default_rng(seed)

        def fill(path, leaf):
            name = path[-1].key
            if name == "kernel":
                fan_in = np.prod(leaf.shape[:-1])
                return rng.normal(size=leaf.shape).astype(leaf.dtype) * (2 / fan_in) ** 0.5
            low, high = {"scale": (0.5, 1.5), "var": (0.5, 1.5)}.get(name, (-0.5, 0.5))
            return rng.uniform(low, high, leaf.shape).astype(leaf.dtype)

        return jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float32),
            jax.tree_util.tree_map_with_path(fill, variables),
        )

    return make
