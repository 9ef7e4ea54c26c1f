"""The largest eigenvalue of the Hessian, with its error, from Hessian-vector products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.sharding import get_abstract_mesh

PyTree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sharpness:
    """The largest (algebraic) eigenvalue of the loss's Hessian on one batch.

    Definition: λ_max of ∇²L(θ). Gradient descent at learning rate η is locally stable while
    λ_max·η < 2.

    Source: Lanczos, "An iteration method for the solution of the eigenvalue problem" (1950), with
    full reorthogonalisation; the residual bound is Parlett, "The Symmetric Eigenvalue Problem"
    (1998), theorem 4.5.1: an eigenvalue lies within ‖H·v − λ·v‖ of λ.

    Cost: reference: one Hessian-vector product, about two gradients, per iteration, and a vector
    of the size of the parameters kept per iteration.

    Caveats: of one batch, in training mode. The bound is on the distance to *an* eigenvalue; that
    it is the largest one is certain only up to the chance of a starting vector orthogonal to it.
    An objective whose second derivative is zero or undefined (piecewise linear units) has the
    Hessian of the piece it is on.

    Attributes:
      value: scalar, λ_max.
      error: scalar, the residual bound on the distance to an eigenvalue.
      iterations: int32 scalar, Hessian-vector products used.
      converged: bool scalar, whether ``error ≤ tolerance · |value|`` within the iterations.
    """

    value: Array
    error: Array
    iterations: Array
    converged: Array

    def labelled(self) -> dict[str, Array]:
        """Named arrays for the record."""
        return {
            "sharpness": self.value,
            "sharpness_error": self.error,
            "sharpness_iterations": self.iterations.astype(jnp.float32),
        }


class _Lanczos(NamedTuple):
    basis: Array  # [m + 1, P], orthonormal rows up to `n`
    alpha: Array  # [m]
    beta: Array  # [m]
    n: Array
    value: Array
    error: Array
    converged: Array


def _ritz(alpha: Array, beta: Array, n: Array) -> tuple[Array, Array]:
    """Largest eigenvalue of the leading n×n tridiagonal matrix, and its residual."""
    size = alpha.shape[0]
    index = jnp.arange(size)
    used = index < n
    inner = jnp.where(index < n - 1, beta, 0.0)
    around = jnp.abs(inner) + jnp.abs(jnp.roll(inner, 1))
    # Unused rows get a value well below every eigenvalue (Gershgorin), so that they never win.
    bound = jnp.max(jnp.where(used, jnp.abs(alpha) + around, 0.0))
    diagonal = jnp.where(used, alpha, jnp.where(bound > 0, -2 * bound, -1.0))
    matrix = jnp.diag(diagonal) + jnp.diag(inner[:-1], 1) + jnp.diag(inner[:-1], -1)
    values, vectors = jnp.linalg.eigh(matrix)
    last = vectors[n - 1, -1]
    return values[-1], jnp.abs(beta[n - 1] * last)


def _loop(unfinished: Callable[..., Array], iterate: Callable[..., Any], state: Any) -> Any:
    """`lax.while_loop`, in which devices that work on other things at once all take as many turns.

    Along a manual axis of the mesh (``shard_map``) each device has an objective of its own. Where
    another axis shares one objective between devices, turns hold messages between them, and a
    compiler may let a message wait for every device of the mesh. What is finished stays as it is.
    """
    mesh = get_abstract_mesh()
    others = tuple(axis for axis in mesh.axis_names if axis in mesh.manual_axes)
    if math.prod(mesh.shape[axis] for axis in mesh.axis_names if axis not in others) == 1:
        return lax.while_loop(unfinished, iterate, state)

    def anywhere(state: Any) -> Array:
        mine = unfinished(state)
        return lax.pmax(mine.astype(jnp.int32), others) > 0 if others else mine

    def unless_finished(state: Any) -> Any:
        mine = unfinished(state)
        return jax.tree.map(lambda new, old: jnp.where(mine, new, old), iterate(state), state)

    return lax.while_loop(anywhere, unless_finished, state)


def hessian_sharpness(
    objective: Callable[[PyTree], Array],
    params: PyTree,
    key: Array,
    *,
    max_iterations: int = 50,
    tolerance: float = 1e-3,
) -> Sharpness:
    """`Sharpness` of ``objective(params) -> scalar`` at `params`; see there.

    Args:
      objective: the loss of the parameters, on a fixed batch.
      params: where.
      key: for the starting vector.
      max_iterations: bound on the Hessian-vector products.
      tolerance: stops when the residual is at most this share of the eigenvalue.
    """
    flat, unravel = ravel_pytree(params)
    size = min(max_iterations, flat.size)

    def product(vector: Array) -> Array:
        gradient = jax.grad(lambda p: objective(unravel(p)))
        return jax.jvp(gradient, (flat,), (vector,))[1]

    def unfinished(state: _Lanczos) -> Array:
        return (state.n < size) & ~state.converged & jnp.isfinite(state.value)

    def iterate(state: _Lanczos) -> _Lanczos:
        vector = state.basis[state.n]
        image = product(vector)
        alpha = jnp.vdot(vector, image)
        # Twice is enough (Parlett, §6.9): once leaves rounding along the converged directions.
        for _ in range(2):
            image = image - state.basis.T @ (state.basis @ image)
        norm = jnp.linalg.norm(image)
        # What is left of an exhausted space is rounding noise, not a new direction.
        exhausted = norm <= jnp.finfo(flat.dtype).eps * jnp.abs(alpha)
        direction = jnp.where(exhausted, 0.0, image / jnp.where(exhausted, 1.0, norm))
        alphas = state.alpha.at[state.n].set(alpha)
        betas = state.beta.at[state.n].set(jnp.where(exhausted, 0.0, norm))
        value, error = _ritz(alphas, betas, state.n + 1)
        value = jnp.where(jnp.isfinite(alpha), value, jnp.nan)
        return _Lanczos(
            basis=state.basis.at[state.n + 1].set(direction),
            alpha=alphas,
            beta=betas,
            n=state.n + 1,
            value=value,
            error=error,
            converged=exhausted | (error <= tolerance * jnp.abs(value)),
        )

    start = jax.random.normal(key, flat.shape, flat.dtype)
    zero = jnp.zeros((), flat.dtype)
    state = _Lanczos(
        basis=jnp.zeros((size + 1, flat.size), flat.dtype)
        .at[0]
        .set(start / jnp.linalg.norm(start)),
        alpha=jnp.zeros(size, flat.dtype),
        beta=jnp.zeros(size, flat.dtype),
        n=jnp.int32(0),
        value=zero,
        error=zero,
        converged=jnp.bool_(False),
    )
    state = _loop(unfinished, iterate, state)
    # The whole space spanned: nothing is left out, whatever the last residual says.
    converged = (state.converged | (state.n == flat.size)) & jnp.isfinite(state.value)
    return Sharpness(state.value, state.error, state.n, converged)
