"""Gradient norm and update ratio of each block: vanishing and exploding gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Updates:
    """Gradient norm and relative size of the update, block by block, and in total.

    Definition: ‖∇_{W_i}L‖₂ and ‖ΔW_i‖₂/‖W_i‖₂ for each block i (a layer's kernel, bias and the
    norm that belongs to it), and ‖ΔW‖₂/‖W‖₂ of all together. Ratios that stay near 1e-3 are a
    common rule of thumb for healthy training.

    Source: Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural
    networks" (2010), §4, for gradients by layer; You, Gitman & Ginsburg, "Large Batch Training of
    Convolutional Networks" (2017), §4, for the ratio of weights and updates.

    Cost: step: one pass over parameters, gradients and updates.

    Caveats: a block whose weights are all 0 has the ratio infinity, or NaN if it does not move.
    Merging gives the root mean square over the merged steps.

    Attributes:
      count: float32 scalar, number of steps.
      gradient_square: ``[k]``, mean of ‖∇_{W_i}L‖².
      ratio_square: ``[k]``, mean of (‖ΔW_i‖/‖W_i‖)².
      total_ratio_square: scalar.
    """

    name: ClassVar[str] = "updates"
    cost: ClassVar[str] = "step"
    where: ClassVar[str] = "block"

    count: Array
    gradient_square: Array
    ratio_square: Array
    total_ratio_square: Array

    @classmethod
    def of(cls, gradient_square: Array, update_square: Array, weight_square: Array) -> Updates:
        """From the squared norms ``[k]`` of one step's gradients, update, and weights before."""
        return cls(
            jnp.float32(1),
            gradient_square,
            update_square / weight_square,
            jnp.sum(update_square) / jnp.sum(weight_square),
        )

    def merge(self, other: Updates) -> Updates:
        count = self.count + other.count
        mine, theirs = self.count / count, other.count / count
        return Updates(
            count,
            mine * self.gradient_square + theirs * other.gradient_square,
            mine * self.ratio_square + theirs * other.ratio_square,
            mine * self.total_ratio_square + theirs * other.total_ratio_square,
        )

    @property
    def gradient_norm(self) -> Array:
        """Norm of each block's gradient, ``[k]``."""
        return jnp.sqrt(self.gradient_square)

    @property
    def update_ratio(self) -> Array:
        """Size of each block's update relative to its weights, ``[k]``."""
        return jnp.sqrt(self.ratio_square)

    def labelled(self) -> dict[str, Array]:
        return {
            "block_gradient_norm": self.gradient_norm,
            "update_ratio": self.update_ratio,
            "total_update_ratio": jnp.sqrt(self.total_ratio_square),
        }
