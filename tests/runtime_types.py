"""Checks the shapes and dtypes that signatures state, at every call, while the tests run."""

import functools
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

jaxtyped = jaxtyping.jaxtyped


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with the annotations of its arrays checked, and no others.

    What else a signature says is pyright's: to check it here would refuse the stand-ins of tests.
    """
    if isinstance(function, type):
        return function
    function.__annotations__ = {
        name: kind for name, kind in function.__annotations__.items() if "jaxtyping" in repr(kind)
    }
    return beartype(function) if function.__annotations__ else function


def where_arrays_are_stated(function: Any = None, **options: Any) -> Any:
    """`jaxtyping.jaxtyped`, but leaves a function or class alone that states no array.

    jaxtyping itself would bind the arguments of every call, only to find nothing to check.
    """
    if function is None:
        return functools.partial(where_arrays_are_stated, **options)
    stated = function.__init__ if isinstance(function, type) else function
    for kind in getattr(stated, "__annotations__", {}).values():
        if "jaxtyping" in repr(kind) or (isinstance(kind, str) and "[" in kind):
            return jaxtyped(function, **options)
    return function
