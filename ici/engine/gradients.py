"""Loss, gradient and taps of one batch, whole or in parts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ici.adapt import Model, Variables, scalar_loss
from ici.adapt.model import Loss
from ici.dissect.objective import Batch
from ici.errors import InputError
from ici.measure.statistics import Moments
from ici.probe import Probe, Taps

PyTree = Any
Sinks = dict[str, Moments] | None


class StepResult(NamedTuple):
    """Loss and gradient at one point, and what the same forward pass left behind."""

    loss: Array
    grads: PyTree
    state: PyTree
    taps: Taps | None


def gradients(
    model: Model,
    loss: Loss,
    variables: Variables,
    batch: Batch,
    probe: Probe | None = None,
    *,
    parts: int = 1,
    count: Callable[[Any], Array] | None = None,
) -> StepResult:
    """Loss, gradient, new state and taps from one forward and one backward pass.

    In `parts`, the batch is split and the parts go through one after another, so that only the
    activations of one are held at a time. Loss and gradient are those of the whole batch where
    the loss is a mean over ``count(targets)`` things (over examples, where there is no `count`)
    and no layer looks at several examples; statistics are merged, and so are the whole batch's.
    Batch norms see one part at a time, and update their running averages at each.

    Raises:
      InputError: a batch that `parts` does not divide.
    """
    sinks = (
        model.cotangent_sinks(variables, batch[0], probe) if probe and probe.cotangents else None
    )
    one_pass = functools.partial(_one_pass, model, loss, probe)
    if parts == 1:
        return one_pass(variables, batch, sinks)
    batches = jax.tree.map(lambda a: _split(a, parts), batch)
    weights = _weights(batches[1], parts, count)

    def part(carry: Any, at: Any) -> tuple[Any, Taps | None]:
        state, value, grads = carry
        batch, weight = at
        result = one_pass(Variables(variables.params, state), batch, sinks, weight)
        grads = jax.tree.map(jnp.add, grads, result.grads)
        return (result.state, value + result.loss, grads), result.taps

    zeros = jax.tree.map(jnp.zeros_like, variables.params)
    first = (variables.state, jnp.float32(0.0), zeros)
    (state, value, grads), taps = lax.scan(part, first, (batches, weights))
    if taps is not None:
        pieces = [jax.tree.map(lambda a, i=i: a[i], taps) for i in range(parts)]
        taps = functools.reduce(lambda a, b: a.merge(b), pieces)
    return StepResult(value, grads, state, taps)


def _one_pass(
    model: Model,
    loss: Loss,
    probe: Probe | None,
    variables: Variables,
    batch: Batch,
    sinks: Sinks,
    weight: Array | None = None,
) -> StepResult:
    """One forward and one backward pass of ``weight · loss``."""
    inputs, targets = batch
    params, state = variables

    def objective(params: PyTree, sinks: Sinks) -> tuple[Array, tuple[PyTree, Taps | None]]:
        out, new_state, taps = model.apply(
            Variables(params, state), inputs, train=True, probe=probe, sinks=sinks
        )
        value = scalar_loss(loss, out, targets)
        return value if weight is None else weight * value, (new_state, taps)

    differentiate = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
    (value, (new_state, taps)), (grads, cotangents) = differentiate(params, sinks)
    if taps is not None and sinks is not None:
        taps = replace(taps, cotangents={s: cotangents[s] for s in taps.sites if s in cotangents})
    return StepResult(value, grads, new_state, taps)


def _split(array: Array, parts: int) -> Array:
    """``[B, ...]`` to ``[parts, B / parts, ...]``, every part from all over the batch.

    Where the batch is spread over devices, each device so keeps its share of every part.
    """
    if array.shape[0] % parts:
        raise InputError(
            f"accumulation_steps is {parts} and the batch has {array.shape[0]} examples: wanted a "
            "batch that divides evenly."
        )
    return jnp.swapaxes(array.reshape(-1, parts, *array.shape[1:]), 0, 1)


def _weights(targets: Any, parts: int, count: Callable[[Any], Array] | None) -> Array:
    """The share of the whole batch's loss that each part has, ``[parts]``."""
    if count is None:
        return jnp.full(parts, 1.0 / parts, jnp.float32)
    counts = jnp.stack(
        [jnp.sum(count(jax.tree.map(lambda a, i=i: a[i], targets))) for i in range(parts)]
    )
    return counts / jnp.maximum(jnp.sum(counts), 1.0)
