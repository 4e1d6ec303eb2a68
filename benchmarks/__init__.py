"""The speed of this project beside its peers; every script answers one question."""

import warnings

with warnings.catch_warnings(action="ignore"):  # that this is not done yet
    from mnv2_jax.ops import compiler

compiler.apply()
