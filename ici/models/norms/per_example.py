"""Norms that look at one example at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ici.errors import InputError
from ici.models.norms.affine import AffineNorm, at_least_float32


class GroupNorm(AffineNorm):
    """Group normalization (Wu & He 2018): statistics per example and group of channels.

    Args:
      features: size of the last axis.
      groups: number of groups of consecutive channels, each normalised by its own statistics.
      over_positions: whether the statistics are also taken over the axes between the first and the
        last, as for images ``x[B, H, W, C]``; else each position has its own.
      epsilon: added to the variance.
      affine: learned scale and bias, per channel.

    Raises:
      InputError: `groups` does not divide `features`, or statistics of a single value.
    """

    def __init__(
        self,
        features: int,
        *,
        groups: int,
        over_positions: bool,
        epsilon: float = 1e-5,
        affine: bool = True,
    ):
        super().__init__(features, affine=affine)
        if features % groups:
            raise InputError(
                f"groups is {groups} and there are {features} channels: wanted a number of groups "
                "that divides them; set it with norm 'group:groups=...'."
            )
        if groups == features and not over_positions:
            raise InputError(
                f"groups is {groups} for {features} features: each would be normalised by its own "
                f"single value; wanted groups <= {features // 2}."
            )
        self.groups, self.over_positions, self.epsilon = groups, over_positions, epsilon

    def __call__(self, x: Array) -> Array:
        grouped = at_least_float32(x).reshape(*x.shape[:-1], self.groups, -1)
        axes = (*(range(1, x.ndim - 1) if self.over_positions else ()), x.ndim)
        mean = jnp.mean(grouped, axes, keepdims=True)
        variance = jnp.mean(jnp.square(grouped - mean), axes, keepdims=True)
        unit = (grouped - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return self.transform(unit.reshape(x.shape), x.dtype)


class InstanceNorm(GroupNorm):
    """Instance normalization (Ulyanov et al. 2016): statistics per example and channel.

    For images ``x[B, H, W, C]``; `epsilon` and `affine` as of `GroupNorm`.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5, affine: bool = True):
        super().__init__(
            features, groups=features, over_positions=True, epsilon=epsilon, affine=affine
        )


class DynamicTanhNorm(AffineNorm):
    """``scale · tanh(alpha x) + bias`` (Zhu et al. 2025): no statistics, alpha is learned.

    Args:
      features: size of the last axis of ``x[..., D]``.
      alpha: where alpha starts; one number for the layer.
      affine: learned scale and bias, per channel.
      rngs: not used.
    """

    def __init__(
        self,
        features: int,
        *,
        alpha: float = 0.5,
        affine: bool = True,
        rngs: nnx.Rngs | None = None,
    ):
        del rngs
        super().__init__(features, affine=affine)
        self.alpha = nnx.Param(jnp.asarray(alpha, jnp.float32))

    def __call__(self, x: Array) -> Array:
        return self.transform(jnp.tanh(self.alpha[...] * at_least_float32(x)), x.dtype)


class NoNorm(nnx.Module):
    """Passes its input on, so that networks with and without a norm have the same layers."""

    def __call__(self, x: Array) -> Array:
        return x
