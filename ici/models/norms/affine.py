"""What the norms written here share."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array


class AffineNorm(nnx.Module):
    """Base: a learned scale and bias per channel after the normalization, or none."""

    def __init__(self, features: int, *, affine: bool = True):
        self.scale = nnx.Param(jnp.ones(features)) if affine else nnx.data(None)
        self.bias = nnx.Param(jnp.zeros(features)) if affine else nnx.data(None)

    def transform(self, y: Array, dtype: jnp.dtype) -> Array:
        """``y · scale + bias`` in the type that inputs of `dtype` and the parameters have."""
        if self.scale is not None and self.bias is not None:
            y = y * along_last(self.scale[...], y.ndim) + along_last(self.bias[...], y.ndim)
            dtype = jnp.result_type(dtype, self.scale[...])
        return y.astype(dtype)


def at_least_float32(x: Array) -> Array:
    """`x` in float32 or wider: in half precision, sums over a batch lose the small differences."""
    return x.astype(jnp.promote_types(jnp.result_type(x), jnp.float32))


def along_last(values: Array, ndim: int) -> Array:
    """``values[D]`` as an array of `ndim` axes, all but the last of size 1."""
    return values.reshape((1,) * (ndim - 1) + (-1,))
