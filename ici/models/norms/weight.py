"""Weight normalization (Salimans & Kingma 2016): the length of each weight vector is learned."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from ici.models.norms.affine import along_last

_DIMENSIONS = {
    1: ("NHC", "HIO", "NHC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NHWDC", "HWDIO", "NHWDC"),
}


def _length(kernel: Array, epsilon: float) -> Array:
    """Euclidean length of the weights of each output."""
    squares = jnp.square(kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32)))
    return jnp.sqrt(jnp.sum(squares, axis=tuple(range(kernel.ndim - 1))) + epsilon)


def _normed(kernel: Array, scale: Array, epsilon: float) -> Array:
    return kernel * along_last(scale / _length(kernel, epsilon), kernel.ndim)


class WeightNormLinear(nnx.Linear):
    """``y = x · (g v / |v|) + b`` for ``x[..., D_in]``, with |v| of each output's weights.

    Starts as the plain layer with the same random numbers: ``v`` (``kernel``) is drawn and ``g``
    (``scale``) is its length. The data-dependent start of the paper is left out.
    """

    def __init__(
        self, in_features: int, out_features: int, *, epsilon: float = 1e-12, **settings: Any
    ):
        super().__init__(in_features, out_features, **settings)
        self.weight_epsilon = epsilon
        self.scale = nnx.Param(_length(self.kernel[...], epsilon))

    def __call__(self, inputs: Array) -> Array:
        kernel = _normed(self.kernel[...], self.scale[...], self.weight_epsilon)
        bias = self.bias[...] if self.bias is not None else None
        x, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        y = lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), precision=self.precision)
        return y if bias is None else y + along_last(bias, y.ndim)


class WeightNormConv(nnx.Conv):
    """As `WeightNormLinear`, for ``x[B, ..., C_in]`` with one to three spatial axes."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, ...],
        *,
        strides: tuple[int, ...],
        padding: str | tuple[tuple[int, int], ...],
        epsilon: float = 1e-12,
        **settings: Any,
    ):
        super().__init__(
            in_features, out_features, kernel_size, strides=strides, padding=padding, **settings
        )
        self.steps, self.margins = strides, padding
        self.weight_epsilon = epsilon
        self.scale = nnx.Param(_length(self.kernel[...], epsilon))

    def __call__(self, inputs: Array) -> Array:
        kernel = _normed(self.kernel[...], self.scale[...], self.weight_epsilon)
        bias = self.bias[...] if self.bias is not None else None
        x, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        y = lax.conv_general_dilated(
            x,
            kernel,
            self.steps,
            self.margins,
            dimension_numbers=_DIMENSIONS[kernel.ndim - 2],
            precision=self.precision,
        )
        return y if bias is None else y + along_last(bias, y.ndim)
