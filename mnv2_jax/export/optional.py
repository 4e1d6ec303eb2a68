"""Packages that only an export needs."""

import importlib
from typing import Any

from mnv2_jax.errors import UsageError


def need(module: str, extra: str) -> Any:
    """Imports a module.

    Raises:
      UsageError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"this export needs the package {module.partition('.')[0]}, which is not installed: "
            f"pip install 'mnv2_jax[{extra}]'."
        ) from error
