"""Checks the shapes and dtypes that signatures state, at every call, while the tests run."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with the annotations of its arrays checked, and no others.

    What else a signature says is pyright's: to check it here would refuse the stand-ins of tests.
    """
    if isinstance(function, type):
        return function
    function.__annotations__ = {
        name: kind for name, kind in function.__annotations__.items() if "jaxtyping" in repr(kind)
    }
    if not function.__annotations__:
        function.__no_type_check__ = True  # jaxtyping then only calls it
        return function
    return beartype(function)
