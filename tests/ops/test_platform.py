"""Forms follow what a program is compiled for, not where it is traced."""

import jax
import jax.numpy as jnp
import pytest

from mnv2_jax.ops.convolution import convolution
from mnv2_jax.ops.platform import compiled_for, platform


def program(x, k):  # with its derivative: on GPUs the convolution alone has another form
    return jax.jvp(lambda x: convolution(x, k, (1, 1), "SAME", feature_group_count=2), (x,), (x,))


ARGUMENTS = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2))


@pytest.mark.parametrize("name", ["tpu", "cuda", "cpu,tpu"])
def test_ahead_of_time_the_platform_given_decides(name):
    jitted = jax.jit(program)
    assert "conv_general_dilated" not in str(jitted.trace(*ARGUMENTS).jaxpr)
    with compiled_for(name):  # although the program was traced already
        assert platform() == name
        traced = jitted.trace(*ARGUMENTS)
    assert "conv_general_dilated" in str(traced.jaxpr)
    lowered = traced.lower(lowering_platforms=tuple(name.split(",")))
    assert "stablehlo.convolution" in lowered.as_text()
    assert platform() == "cpu"
    assert "conv_general_dilated" not in str(jitted.trace(*ARGUMENTS).jaxpr)


def test_the_default_device_decides(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert platform() == "tpu"
    for device in (jax.devices("cpu")[0], "cpu"):
        with jax.default_device(device):
            assert platform() == "cpu"
    with compiled_for("cuda"), jax.default_device("cpu"):
        assert platform() == "cuda"
