"""One training step: a pure function of the state and the batch, with what its probe saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from ici.adapt import Model, Variables
from ici.adapt.model import Loss
from ici.dissect.blocks import find_blocks, update_statistics
from ici.dissect.objective import Batch
from ici.engine.gradients import gradients
from ici.engine.task import counted, cross_entropy
from ici.measure.updates import Updates
from ici.probe import Probe, Taps

PyTree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a loop carries from step to step. ``step`` counts updates done, on the host."""

    params: PyTree
    state: PyTree
    opt_state: PyTree
    step: int = 0

    @property
    def variables(self) -> Variables:
        """A copy of parameters and state, for use after the step has taken this train state."""
        return Variables(*jax.tree.map(jnp.copy, (self.params, self.state)))


class Metrics(NamedTuple):
    """What one step reports: loss before the update, global gradient norm, and the taps.

    ``taps`` is None on the steps between two probed ones. ``blocks`` holds the probe's statistics
    of blocks by name, such as ``metrics.blocks["updates"].update_ratio``; empty without any.
    """

    loss: Array
    grad_norm: Array
    taps: Taps | None
    blocks: dict[str, Updates]


def init_train_state(
    model: Model, optimizer: optax.GradientTransformation, key: Array, inputs: Any
) -> TrainState:
    """Fresh parameters and optimizer state."""
    # Copies: a module may keep the very key it was given, and the step donates its state.
    params, state = jax.tree.map(jnp.copy, model.init(key, inputs))
    return TrainState(params, state, optimizer.init(params))


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    loss: Loss | None = None,
    probe: Probe | None = None,
    accumulation_steps: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A compiled ``step(train_state, (inputs, targets)) -> (train_state, metrics)``.

    The state's arrays are donated: use the returned state. On steps 0, every, 2·every, … the
    probed program runs and ``metrics.taps["blocks/3/linear"]`` holds the moments of that layer's
    input in this very forward pass; on the others a program without any probe runs. A step whose
    loss or gradient is not finite says so in its metrics and keeps nothing: parameters, statistics
    and optimizer state stay as they were.

    Args:
      model: from `from_nnx` or `from_linen`.
      optimizer: any optax transformation.
      loss: ``loss(outputs, targets) -> scalar``; None takes the model's own, and where it has
        none, `cross_entropy`.
      probe: what to watch; None watches nothing.
      accumulation_steps: parts that a batch is split into, one after another, to save memory; a
        loss of one's own is taken for a mean over examples.

    Raises:
      InputError: at the first step, before anything is computed: a loss that is not a scalar, a
        probe that matches nothing, parameters that do not belong to the model, a batch that does
        not divide.
    """
    objective = loss or model.loss or cross_entropy
    count = counted if objective is cross_entropy else None

    @partial(jax.jit, static_argnums=(3,), donate_argnums=(0, 1))
    def update(
        variables: Variables, opt_state: PyTree, batch: Batch, probed: bool
    ) -> tuple[Variables, PyTree, Metrics]:
        chosen = probe if probed else None
        result = gradients(
            model, objective, variables, batch, chosen, parts=accumulation_steps, count=count
        )
        grad_norm = optax.tree.norm(result.grads)
        before = (variables.params, variables.state, opt_state)

        def updated() -> PyTree:
            updates, new = optimizer.update(result.grads, opt_state, variables.params)
            return optax.apply_updates(variables.params, updates), result.state, new

        # One batch without numbers must not poison weights, averages or statistics for good.
        healthy = jnp.isfinite(result.loss) & jnp.isfinite(grad_norm)
        params, state, opt_state = lax.cond(healthy, updated, lambda: before)
        of_blocks: dict[str, Updates] = {}
        if probed and probe is not None and probe.kinds_at("block"):
            blocks = find_blocks(model, variables, batch[0])
            of_blocks = update_statistics(probe, blocks, result.grads, variables.params, params)
        metrics = Metrics(result.loss, grad_norm, result.taps, of_blocks)
        return Variables(params, state), opt_state, metrics

    def step(train_state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        probed = probe is not None and int(train_state.step) % probe.every == 0
        variables, opt_state, metrics = update(
            Variables(train_state.params, train_state.state), train_state.opt_state, batch, probed
        )
        params, state = variables
        return TrainState(params, state, opt_state, train_state.step + 1), metrics

    return step
