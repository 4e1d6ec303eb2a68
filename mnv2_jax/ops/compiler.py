"""Releases of XLA's CPU compiler that are known to be wrong, and the flag that puts each right.

jaxlib 0.10.2 hands fused reductions to a library, YNNPACK, in a way that silently loses terms
(https://github.com/jax-ml/jax/issues/39103) or crashes (issue 40412); jaxlib 0.11.0 still crashes
(issue 39257). Without that fusion both are right. `mnv2` sets the flag by itself; a program that
imports this package is warned once, and sets the flag, or calls `apply` before its first
computation.
"""

import importlib.util
import os
import sys
import warnings
from pathlib import Path

OPTION = "--xla_cpu_experimental_ynn_fusion_type"
NO_FUSED_REDUCTIONS = f"{OPTION}=-reduce"
# jaxlib's release -> its fault, and the flag that avoids it. tests/ops/test_compiler.py has the
# programs that show the faults; every release from 0.10.0 to 0.12.0.1 was tried with them.
KNOWN_WRONG = {
    "0.10.2": ("computes some sums wrongly and crashes on others", NO_FUSED_REDUCTIONS),
    "0.11.0": ("crashes on some sums", NO_FUSED_REDUCTIONS),
}


def missing_flag() -> tuple[str, str, str] | None:
    """Returns the installed jaxlib's version, fault and flag, if that flag is needed and not set.

    A value that the user gave to the same option stands.
    """
    from jaxlib.version import __version__

    if __version__ not in KNOWN_WRONG or OPTION in os.environ.get("XLA_FLAGS", ""):
        return None
    return (__version__, *KNOWN_WRONG[__version__])


def apply() -> None:
    """Adds the flag that the installed jaxlib needs to `XLA_FLAGS`, for child processes too.

    Call it before the first computation: XLA reads the variable when its backend starts.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if (missing := missing_flag()) and (not flags or flags.startswith("-")):  # else a file of flags
        os.environ["XLA_FLAGS"] = f"{flags} {missing[2]}".lstrip()


def warn() -> None:
    """Warns another project's program that will compute on a CPU with a wrong jaxlib."""
    if not _is_ours() and _computes_on_cpu() and (missing := missing_flag()):
        version, fault, flag = missing
        warnings.warn(
            f"jaxlib {version} {fault} on CPUs: set XLA_FLAGS={flag} before Python starts, or "
            "install jaxlib 0.11.1 or newer (Python 3.12 or newer).",
            stacklevel=3,  # the line that imports mnv2_jax
        )


def _is_ours() -> bool:
    """Whether this process runs our command line, which calls `apply` itself."""
    program = Path((getattr(sys, "argv", None) or [""])[0])  # "-m" while it is looked for
    return (
        program.name in ("mnv2", "-m") or program.resolve() == Path(__file__).parents[2] / "main.py"
    )


def _computes_on_cpu() -> bool:
    """Whether JAX will choose the CPU, as far as can be told without starting a backend."""
    import jax

    if platforms := jax.config.values["jax_platforms"]:
        return platforms.split(",")[0] == "cpu"
    return not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))
