"""Derivatives written out for forward and reverse mode alike, where `jax.custom_vjp` has only one.

The tangent of an operation is a primitive of its own, linear in its last operands, whose transpose
is the gradient that is written out: reverse mode computes what `jax.custom_vjp` would.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def written_out(
    n: int, forward: Callable, tangent: Callable, backward: Callable, alone: Callable | None = None
) -> Any:
    """Returns an operation of (*operands, setting), differentiable in the first n operands.

    Args:
      n: the operands after these, and the setting, are constant.
      forward: (*operands, setting) -> (result, residuals).
      tangent: (setting, residuals, n tangents) -> tangent of the result.
      backward: (setting, residuals, cotangent of the result) -> n cotangents; its transpose.
      alone: (*operands, setting) -> result, in the form for where nothing is differentiated; by
        default as in `forward`.
    """
    last = len(inspect.signature(forward).parameters) - 1
    alone = alone or (lambda *given: forward(*given)[0])
    operation = jax.custom_jvp(alone, nondiff_argnums=(last,))

    @operation.defjvp
    def rule(setting: Any, primals: Any, tangents: Any) -> Any:
        out, residuals = forward(*primals, setting)
        leaves, tree = jax.tree.flatten(residuals)
        results, out_tree = jax.tree.flatten(out)

        def along(*values: Any) -> Any:
            residuals = jax.tree.unflatten(tree, values[: len(leaves)])
            return jax.tree.leaves(tangent(setting, residuals, values[len(leaves) :]))

        def back(*values: Any) -> Any:
            residuals = jax.tree.unflatten(tree, values[: len(leaves)])
            cotangents = jax.tree.unflatten(out_tree, values[len(leaves) :])
            return list(backward(setting, residuals, cotangents))

        avals = tuple(jax.typeof(result).strip_weak_type() for result in results)
        options = {"along": along, "back": back, "count": len(leaves), "avals": avals}
        moved = _tangent.bind(*leaves, *tangents[:n], **options)
        return out, jax.tree.unflatten(out_tree, moved)

    return operation


def bilinear(backward: Callable, forward: Callable | None = None) -> Callable[[Callable], Any]:
    """Makes a function of (a, b, setting) that is linear in a and in b an operation.

    `backward` is (a, b, cotangent, setting) -> the cotangents of both. Where it is differentiated,
    `forward`, if given, computes the function.
    """
    differentiated = forward

    def decorate(function: Callable) -> Any:
        def forward(a, b, setting):
            return (differentiated or function)(a, b, setting), (a, b)

        def tangent(setting, held, moved):
            (a, b), (da, db) = held, moved
            return operation(da, b, setting) + operation(a, db, setting)

        def back(setting, held, cotangent):
            gradients = backward(*held, cotangent, setting)
            return [g.astype(x.dtype) for g, x in zip(gradients, held, strict=True)]

        operation = written_out(2, forward, tangent, back, function)
        return functools.update_wrapper(operation, function)

    return decorate


# Operands: `count` residuals, then tangents. `along` and `back` map all residuals and all tangents,
# or all cotangents, to the list of the others; `avals` are the types of the results.
_tangent = Primitive("written_out_tangent")
_tangent.multiple_results = True


def _compute(*operands, along, back, count, avals):
    return along(*operands)


def _differentiate(primals, tangents, **options):
    """Through the tangents again as written out, through the residuals as JAX does it."""
    count = options["count"]
    residuals, linear = primals[:count], primals[count:]
    moving = {i: t for i, t in enumerate(tangents[:count]) if type(t) is not ad.Zero}
    parts = []
    if any(type(t) is not ad.Zero for t in tangents[count:]):
        moved = map(ad.instantiate_zeros, tangents[count:])
        parts.append(_tangent.bind(*residuals, *moved, **options))
    if moving:

        def of(values: dict[int, Any]) -> Any:
            return options["along"](*(values.get(i, r) for i, r in enumerate(residuals)), *linear)

        parts.append(jax.jvp(of, ({i: residuals[i] for i in moving},), (moving,))[1])
    moved = [functools.reduce(lax.add, part) for part in zip(*parts, strict=True)]
    return _tangent.bind(*primals, **options), moved


def _transpose(cotangents, *operands, along, back, count, avals):
    gradients = back(*operands[:count], *map(ad.instantiate_zeros, cotangents))
    wanted = map(ad.is_undefined_primal, operands[count:])
    return [None] * count + [g if w else None for g, w in zip(gradients, wanted, strict=True)]


def _batch(axis, operands, dims, *, along, back, count, avals):
    if all(d is None for d in dims):
        moved = _tangent.bind(*operands, along=along, back=back, count=count, avals=avals)
        return moved, [None] * len(moved)
    linear = [
        jnp.broadcast_to(x[None], (axis.size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in zip(operands[count:], dims[count:], strict=True)
    ]
    mapped = functools.partial(jax.vmap, axis_size=axis.size, axis_name=axis.name)
    along = mapped(along, in_axes=(*dims[:count], *(0 for _ in linear)))
    back = mapped(back, in_axes=(*dims[:count], *(0 for _ in avals)))
    avals = tuple(aval.update(shape=(axis.size, *aval.shape)) for aval in avals)
    operands = (*operands[:count], *linear)
    moved = _tangent.bind(*operands, along=along, back=back, count=count, avals=avals)
    return moved, [0] * len(moved)


_tangent.def_impl(_compute)
_tangent.def_abstract_eval(lambda *_, avals, **__: avals)
ad.primitive_jvps[_tangent] = _differentiate
ad.primitive_transposes[_tangent] = _transpose
batching.fancy_primitive_batchers[_tangent] = _batch
mlir.register_lowering(_tangent, mlir.lower_fun(_compute, multiple_results=True))
