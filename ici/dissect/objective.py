"""The loss of one batch as a function of the parameters alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ici.adapt import Model, Variables, scalar_loss
from ici.adapt.model import Loss
from ici.errors import InputError

PyTree = Any
Batch = tuple[Any, Any]


def variables_of(given: Any, name: str) -> Variables:
    """`given` as variables that can be differentiated: `Variables`, or a train state with params
    and state.

    Raises:
      InputError: it is something else, its arrays were donated, or a parameter is an integer.
    """
    if not (hasattr(given, "params") and hasattr(given, "state")):
        raise InputError(
            f"{name} is a {type(given).__name__}: wanted ici.Variables(params, state), such as "
            "model.init returns, or a train state."
        )
    variables = Variables(given.params, given.state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise InputError(
                f"{name} has {place}, which was donated to the training step: wanted a copy from "
                "before it, such as train_state.variables."
            )
        if place.startswith("params/") and not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise InputError(
                f"{name} has the parameter {place} of dtype {jnp.result_type(leaf)}: wanted "
                "parameters that have gradients; keep integers in another kind of variable."
            )
    return variables


def loss_of(model: Model, loss: Loss | None) -> Loss:
    """`loss`, or the model's own. Raises `InputError` where there is neither."""
    chosen = loss or model.loss
    if not callable(chosen):
        raise InputError(
            f"loss is {loss!r} and {model.name} has none of its own: wanted "
            "loss(outputs, targets) -> scalar."
        )
    return chosen


def batch_of(batch: Any) -> Batch:
    """`batch`. Raises `InputError` unless it is (inputs, targets)."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(f"batch is a {type(batch).__name__}: wanted a pair (inputs, targets).")
    return batch[0], batch[1]


def in_float32(tree: PyTree) -> PyTree:
    """Half-precision leaves as float32: a small step from them would be lost in rounding."""
    return jax.tree.map(
        lambda a: a.astype(jnp.promote_types(jnp.asarray(a).dtype, jnp.float32)), tree
    )


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
