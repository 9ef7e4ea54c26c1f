"""The loss of one batch as a function of the parameters alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax import Array

from ici.adapt import Model, Variables, scalar_loss
from ici.adapt.model import Loss

PyTree = Any
Batch = tuple[Any, Any]


def objective_of(
    model: Model, loss: Loss, state: PyTree, batch: Batch
) -> Callable[[PyTree], Array]:
    """``params -> loss`` on `batch` in training mode; what the pass would change in the state
    (running statistics, random keys) is dropped, so every call sees the same."""
    inputs, targets = batch

    def objective(params: PyTree) -> Array:
        out, _, _ = model.apply(Variables(params, state), inputs, train=True)
        return scalar_loss(loss, out, targets)

    return objective
