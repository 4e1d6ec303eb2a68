"""The platform that a program is traced for, by which fast forms are chosen."""

import contextlib

import jax

_GIVEN = jax.make_user_context(default_value=None)  # part of the key of what `jax.jit` keeps


def compiled_for(name: str) -> contextlib.AbstractContextManager[None]:
    """Says what programs traced inside are compiled for: "cpu", "cuda", "tpu", or several.

    For compilation ahead of time. Of several, as in "cpu,tpu", every operation is left to XLA.
    """
    return _GIVEN(name)


def platform() -> str:
    """Returns what programs are compiled for: as `compiled_for` says, or where JAX computes."""
    if _GIVEN.value is not None:
        return _GIVEN.value
    device = jax.config.values["jax_default_device"]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform
