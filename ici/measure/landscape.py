"""The loss along the negative gradient: how far one gradient can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

PyTree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Landscape:
    """Loss and gradient at ``θ − s·∇L(θ)`` for several step sizes s, at one θ and one batch.

    Definition: with g = ∇L(θ), the losses L(θ − s·g), the distances ‖g − ∇L(θ − s·g)‖₂ (gradient
    predictiveness) and the effective β-smoothness, the largest of distance / ‖s·g‖₂ over s.

    Source: Santurkar, Tsipras, Ilyas & Madry, "How Does Batch Normalization Help Optimization?"
    (2018), §3.2 and App. A.2.2.

    Cost: reference: one forward and backward pass at θ and one per step size.

    Caveats: one point and one batch; the run does not train along this line. Steps so small that
    they are lost in the rounding of the parameters show a smoothness that is too large;
    half-precision parameters are taken to float32 first. The range of the losses over s at one θ
    is not the range over separately trained runs, which is often shown under the same name.

    Attributes:
      step_sizes: ``[n]``, s.
      loss: scalar, L(θ).
      gradient_norm: scalar, ‖g‖₂.
      losses: ``[n]``, L(θ − s·g).
      gradient_distance: ``[n]``, ‖g − ∇L(θ − s·g)‖₂.
      gradient_cosine: ``[n]``, cosine of the angle between the two gradients.
    """

    step_sizes: Array
    loss: Array
    gradient_norm: Array
    losses: Array
    gradient_distance: Array
    gradient_cosine: Array

    @property
    def smoothness(self) -> Array:
        """Effective β-smoothness, scalar: the largest gradient change per distance walked."""
        return jnp.max(self.gradient_distance / (self.step_sizes * self.gradient_norm))

    @property
    def loss_range(self) -> tuple[Array, Array]:
        """Smallest and largest loss over the step sizes."""
        return jnp.min(self.losses), jnp.max(self.losses)

    def labelled(self) -> dict[str, Array]:
        """Named arrays for the record."""
        return {
            "loss_along": self.losses,
            "gradient_distance": self.gradient_distance,
            "gradient_cosine": self.gradient_cosine,
            "effective_smoothness": self.smoothness,
        }


def dot(a: PyTree, b: PyTree) -> Array:
    """Inner product of two trees."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def landscape_along_gradient(
    objective: Callable[[PyTree], Array], params: PyTree, step_sizes: Array
) -> Landscape:
    """`Landscape` of ``objective(params) -> scalar`` at `params`; see there.

    Works step size by step size (``lax.map``), so memory does not grow with their number.
    """
    loss, gradient = jax.value_and_grad(objective)(params)
    norm = jnp.sqrt(dot(gradient, gradient))

    def at(step_size: Array) -> tuple[Array, Array, Array]:
        moved = jax.tree.map(lambda p, g: p - (step_size * g).astype(p.dtype), params, gradient)
        there, other = jax.value_and_grad(objective)(moved)
        difference = jax.tree.map(jnp.subtract, gradient, other)
        cosine = dot(gradient, other) / (norm * jnp.sqrt(dot(other, other)))
        return there, jnp.sqrt(dot(difference, difference)), cosine

    losses, distances, cosines = lax.map(at, step_sizes)
    return Landscape(step_sizes, loss, norm, losses, distances, cosines)
