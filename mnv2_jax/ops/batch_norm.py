"""Batch normalization with its derivatives written out, alone and behind a 1×1 convolution.

In training on a CPU or GPU an expanded tensor is a trip to memory each time it is touched, and
automatic differentiation of batch norm touches it eleven times. With the results of `nn.BatchNorm`,
two forms touch it less: `normalized` is statistics, normalization and activation as one operation;
`expanded` is the same behind a 1×1 convolution to more channels, whose statistics follow from those
of its few inputs, so that it computes what is already normalized. With running statistics a 1×1
convolution, norm and activation are one kernel on GPUs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from mnv2_jax.ops import derivative
from mnv2_jax.ops.convolution import Operands, fused_product
from mnv2_jax.ops.platform import platform

Activation = Callable[[Array], Array]


class Setting(NamedTuple):
    """What is known while tracing; statistics are of all rows along the mapped axis, if any."""

    epsilon: float
    activation: Activation
    axis_name: str | None
    dtype: Any


class Normalized(NamedTuple):
    """The activated result, and the statistics of `count` positions that it was normalized by."""

    out: Float[Array, "b h w c"]
    mean: Float[Array, " c"]
    var: Float[Array, " c"]
    count: Float[Array, ""]


def is_written_out(axis_name: str | None) -> bool:
    """Whether training computes the forms of this module; over an axis they are right everywhere.

    Of a TPU's programs its compiler expects more cycles with them than with `nn.BatchNorm`.
    """
    return platform() in ("cpu", "cuda") or axis_name is not None


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm` of (b, h, w, c) and an activation, one operation in training on CPUs and GPUs.

    Over a mapped axis every row that counts weighs the same, on whichever device it lies;
    `nn.BatchNorm` averages the devices' means, and is NaN where one has no such row. Where no row
    counts at all the running statistics stay as they are.
    """

    @property
    def is_written_out(self) -> bool:
        """Whether the forms of this module compute the layer, and not `nn.BatchNorm`."""
        return is_written_out(self.axis_name) and not self.use_running_average

    @nn.compact
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Float[Array, "b h w c"] | Operands,
        mask: Float[Array, " b"] | None = None,
        activation: Activation = lambda x: x,
    ) -> Float[Array, "b h w c"]:
        """Applies the layer to a convolution's output, or to its operands.

        Of a training step they are only taken where `is_written_out`.

        Rows of the batch where the mask is 0 leave the statistics alone. The activation is applied
        last, element by element; it must not close over traced values.
        """
        if not (self.is_written_out or isinstance(x, Operands)):
            rows = None if mask is None else mask.reshape(-1, 1, 1, 1) > 0
            with jax.numpy_dtype_promotion("standard"):  # Flax mixes x with float32 statistics
                out = super().__call__(x, mask=rows)  # pyright: ignore[reportArgumentType]
            return activation(out)
        form, operands = (expanded, x) if isinstance(x, Operands) else (normalized, (x,))
        channels = operands[-1].shape[-1:]
        running = [
            self.variable("batch_stats", name, start, channels, jnp.float32)
            for name, start in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        scale = self.param("scale", self.scale_init, channels, self.param_dtype)
        bias = self.param("bias", self.bias_init, channels, self.param_dtype)
        if self.use_running_average and isinstance(x, Operands):
            mean, var = (variable.value for variable in running)
            factor = scale * lax.rsqrt(var + self.epsilon)
            return fused_product(x, bias - mean * factor, self.dtype, activation, factor)
        axis_name = None if self.is_initializing() else self.axis_name
        setting = Setting(self.epsilon, activation, axis_name, self.dtype)
        out, *moments, count = form(*operands, scale, bias, mask, setting)
        if not self.is_initializing():
            share = jnp.where(count > 0, 1 - self.momentum, 0.0)
            for variable, now in zip(running, moments, strict=True):
                variable.value = (1 - share) * variable.value + share * now
        return out


def _normalized(x, scale, bias, mask, setting):
    """Normalizes by the batch's own statistics, which are computed in at least float32."""
    wide = _wide(x)
    kept = _kept(wide, mask)
    sums = jnp.stack([kept.sum((0, 1, 2)), (kept * kept).sum((0, 1, 2))])
    (mean, square), count = _means(sums, x, mask, setting)
    var = jnp.maximum(0.0, square - mean * mean)
    rstd = lax.rsqrt(var + setting.epsilon)
    factor = scale * rstd
    out = _affine(wide, factor, bias - mean * factor).astype(setting.dtype)
    out = Normalized(setting.activation(out), mean, var, count)
    return out, (x, scale, bias, mask, mean, rstd, count)


def _normalized_tangent(setting, residuals, tangents):
    x, scale, bias, mask, mean, rstd, count = residuals
    dx, dscale, dbias = tangents
    wide, moved, factor = x.astype(mean.dtype), dx.astype(mean.dtype), scale * rstd
    centered, kept = wide - _channels(mean), _kept(moved, mask)
    sums = _total(jnp.stack([kept.sum((0, 1, 2)), (kept * centered).sum((0, 1, 2))]), setting)
    dmean, half_dvar = sums / jnp.maximum(count, 1)
    pre = _affine(wide, factor, bias - mean * factor).astype(setting.dtype)
    dpre = moved * _channels(factor) + _affine(
        centered, (dscale - factor * rstd * half_dvar) * rstd, dbias - factor * dmean
    )
    dout = jax.jvp(setting.activation, (pre,), (dpre.astype(pre.dtype),))[1]
    return Normalized(dout, dmean, 2 * half_dvar, jnp.zeros_like(count))


def _normalized_backward(setting, residuals, cotangents):
    x, scale, bias, mask, mean, rstd, _ = residuals
    # The barrier keeps XLA from storing what the forward pass made of x: that is cheap to redo.
    dout, x = lax.optimization_barrier((cotangents[0], x))
    wide, factor = x.astype(mean.dtype), scale * rstd
    pre = _affine(wide, factor, bias - mean * factor).astype(setting.dtype)
    dz = jax.vjp(setting.activation, pre)[1](dout)[0].astype(mean.dtype)
    dbias = dz.sum((0, 1, 2))
    dscale = ((dz * wide).sum((0, 1, 2)) - mean * dbias) * rstd
    slope, offset = _through_statistics(residuals[1:], dscale, dbias, cotangents, setting)
    dx = dz * _channels(factor) + _kept(_affine(wide, slope, offset), mask)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


def _expanded(x, kernel, scale, bias, mask, setting):
    """`normalized` of the product y = x·kernel, for more output than input channels.

    With m and C the mean and covariance of x, y has mean m·kernel and variance
    diag(kernelᵀ·C·kernel). What the gradient needs of y, Σ y·dy, is diag(kernelᵀ·Σ x·dy) likewise.
    """
    wide = _wide(kernel)
    kept = _flat(_kept(x, mask))
    total, gram = kept.sum(0, dtype=wide.dtype), _contract(kept, kept, _exact())
    (mean_x, *square), count = _means(jnp.concatenate([total[None], gram]), x, mask, setting)
    mean = _small(mean_x, wide)
    covariance = jnp.stack(square) - mean_x[:, None] * mean_x[None]
    var = jnp.maximum(0.0, (wide * _small(covariance, wide)).sum(0))
    rstd = lax.rsqrt(var + setting.epsilon)
    factor = scale * rstd
    product = _flat(x) @ (wide * factor[None]).astype(x.dtype)
    product = product.reshape(*x.shape[:3], kernel.shape[1])
    out = setting.activation(_shifted(product, bias - mean * factor, setting))
    residuals = (x, kernel, product, total, gram, scale, bias, mask, mean, rstd, count)
    return Normalized(out, mean, var, count), residuals


def _expanded_tangent(setting, residuals, tangents):
    x, kernel, *_, scale, bias, mask, mean, rstd, count = residuals
    dx, dkernel, *rest = tangents
    normal = (x @ kernel, scale, bias, mask, mean, rstd, count)
    return _normalized_tangent(setting, normal, (dx @ kernel + x @ dkernel, *rest))


def _expanded_backward(setting, residuals, cotangents):
    x, kernel, product, total, gram, scale, bias, mask, mean, rstd, _ = residuals
    wide, factor = _wide(kernel), scale * rstd
    dout, product = lax.optimization_barrier((cotangents[0], product))
    pre = _shifted(product, bias - mean * factor, setting)
    dz = _flat(jax.vjp(setting.activation, pre)[1](dout)[0])
    cross, dbias = _contract(_flat(x), dz), dz.sum(0, dtype=wide.dtype)
    dscale = ((wide * cross).sum(0) - mean * dbias) * rstd
    slope, offset = _through_statistics(residuals[5:], dscale, dbias, cotangents, setting)
    dkernel = cross * factor[None] + total[:, None] * offset[None]
    dkernel += _small(gram, wide) * slope[None]
    weights = (wide * factor[None]).astype(x.dtype)
    dx = lax.dot_general(dz, weights, (((1,), (1,)), ((), ())))
    through = _flat(x) @ _small(wide * slope[None], wide.T).astype(x.dtype)
    through += _small(wide, offset).astype(x.dtype)[None]
    dx = dx.reshape(x.shape) + _kept(through.reshape(x.shape), mask)
    return dx, dkernel.astype(kernel.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


normalized = derivative.written_out(3, _normalized, _normalized_tangent, _normalized_backward)
expanded = derivative.written_out(4, _expanded, _expanded_tangent, _expanded_backward)


def _through_statistics(residuals, dscale, dbias, cotangents, setting):
    """Returns (slope, offset): through mean and var, a row that counts gets slope·y + offset."""
    scale, _, _, mean, rstd, count = residuals
    dscale, dbias, dmean, dvar = _total(jnp.stack([dscale, dbias, *cotangents[1:3]]), setting)
    n = jnp.maximum(count, 1)
    factor = scale * rstd
    slope = (2 * dvar - factor * rstd * dscale) / n
    return slope, (dmean - factor * dbias) / n - slope * mean


def _total(values, setting):
    return values if setting.axis_name is None else lax.psum(values, setting.axis_name)


def _kept(x: Array, mask: Array | None) -> Array:
    """Zero in the rows that do not count, whatever they hold."""
    return x if mask is None else jnp.where(mask.reshape(-1, 1, 1, 1) > 0, x, 0)


def _means(sums: Float[Array, "k c"], x: Array, mask: Array | None, setting: Setting) -> Any:
    """Divides sums over this device's positions, added up over all devices, by their count.

    By one collective: two that do not depend on each other may start in another order on another
    host, and on CPUs then wait for each other for ever.
    """
    rows = x.shape[0] if mask is None else (mask > 0).sum()
    count = jnp.asarray(rows * x.shape[1] * x.shape[2], sums.dtype)
    both = _total(jnp.concatenate([sums.ravel(), count[None]]), setting)
    return both[:-1].reshape(sums.shape) / jnp.maximum(both[-1], 1), both[-1]


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0] * x.shape[1] * x.shape[2], x.shape[3])


def _wide(x: Array) -> Array:
    return x.astype(np.promote_types(x.dtype, jnp.float32))


def _exact() -> lax.Precision | None:
    """All digits for what is subtracted from its like: on GPUs float32 is otherwise TF32."""
    return None if platform() == "cpu" else lax.Precision.HIGHEST


def _small(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=_exact())


def _contract(
    a: Float[Array, "n i"], b: Float[Array, "n o"], precision: lax.Precision | None = None
) -> Float[Array, "i o"]:
    wide = np.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(
        a, b, (((0,), (0,)), ((), ())), precision=precision, preferred_element_type=wide
    )


def _shifted(product: Array, offset: Array, setting: Setting) -> Array:
    return (_wide(product) + _channels(offset)).astype(setting.dtype)


def _channels(values: Float[Array, " c"]) -> Float[Array, "1 1 1 c"]:
    return values.reshape(1, 1, 1, -1)


def _affine(x: Array, slope: Array, offset: Array) -> Array:
    return x * _channels(slope) + _channels(offset)
