"""Loss landscape and sharpness of a model on one batch."""

from __future__ import annotations

import math
import numbers
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ici.adapt import Model, Variables
from ici.adapt.model import Loss
from ici.dissect.objective import Batch, batch_of, in_float32, loss_of, objective_of, variables_of
from ici.errors import InputError
from ici.measure.landscape import Landscape, landscape_along_gradient
from ici.measure.sharpness import Sharpness, hessian_sharpness


@lru_cache(maxsize=32)
def _compiled_landscape(model: Model, loss: Loss) -> Any:
    return jax.jit(
        lambda variables, batch, step_sizes: landscape_along_gradient(
            objective_of(model, loss, variables.state, batch),
            in_float32(variables.params),
            step_sizes,
        )
    )


def step_sizes_around(
    learning_rate: Array | float, span: tuple[float, float] = (0.5, 4.0), n: int = 8
) -> Array:
    """``n`` step sizes, log-spaced from ``span[0]`` to ``span[1]`` times the learning rate."""
    return jnp.asarray(learning_rate) * jnp.geomspace(*span, n)


def landscape(
    model: Model,
    loss: Loss | None,
    variables: Variables,
    batch: Batch,
    learning_rate: float,
    *,
    span: tuple[float, float] = (0.5, 4.0),
    n_steps: int = 8,
) -> Landscape:
    """Loss and gradient along the negative gradient at one point; see `Landscape`.

    Args:
      model: from `from_nnx` or `from_linen`.
      loss: ``loss(outputs, targets) -> scalar``; None takes the model's own.
      variables: where.
      batch: ``(inputs, targets)``.
      learning_rate: of the run; step sizes are multiples of it.
      span: smallest and largest multiple. Santurkar et al. take ½ to 4, and 1/100 to 30 for
        their deep linear network.
      n_steps: number of step sizes, log-spaced.

    Raises:
      InputError: a learning rate that is not positive and finite, or an empty span.
    """
    is_number = isinstance(learning_rate, numbers.Real | jax.Array | np.ndarray)
    if not (is_number and math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate is {learning_rate}: wanted a finite number > 0.")
    if not 0 < span[0] <= span[1] or n_steps < 1:
        raise InputError(
            f"span is {span} with {n_steps} steps: wanted 0 < smallest <= largest and at least 1."
        )
    step_sizes = step_sizes_around(learning_rate, span, n_steps)
    compiled = _compiled_landscape(model, loss_of(model, loss))
    return compiled(variables_of(variables, "variables"), batch_of(batch), step_sizes)


@lru_cache(maxsize=32)
def _compiled_sharpness(model: Model, loss: Loss, max_iterations: int, tolerance: float) -> Any:
    return jax.jit(
        lambda variables, batch, key: hessian_sharpness(
            objective_of(model, loss, variables.state, batch),
            in_float32(variables.params),
            key,
            max_iterations=max_iterations,
            tolerance=tolerance,
        )
    )


def sharpness(
    model: Model,
    loss: Loss | None,
    variables: Variables,
    batch: Batch,
    *,
    seed: int = 0,
    max_iterations: int = 50,
    tolerance: float = 1e-3,
) -> Sharpness:
    """Largest eigenvalue of the Hessian on `batch`, with its error; see `Sharpness`.

    Multiply ``value`` by the learning rate to compare with the stability bound 2 of gradient
    descent.

    Args:
      model: from `from_nnx` or `from_linen`.
      loss: ``loss(outputs, targets) -> scalar``; None takes the model's own.
      variables: where.
      batch: ``(inputs, targets)``.
      seed: of the starting vector.
      max_iterations: bound on the Hessian-vector products.
      tolerance: stops when the error is at most this share of the value.

    Raises:
      InputError: no iteration allowed, or a tolerance that is not positive.
    """
    if max_iterations < 1 or not tolerance > 0:
        raise InputError(
            f"max_iterations is {max_iterations} and tolerance {tolerance}: wanted at least one "
            "iteration and a tolerance > 0."
        )
    compiled = _compiled_sharpness(model, loss_of(model, loss), max_iterations, tolerance)
    given = variables_of(variables, "variables")
    return compiled(given, batch_of(batch), jax.random.key(seed))
