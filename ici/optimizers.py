"""Optimizers and schedules whose learning rate and weight decay are traced values.

A lane's learning rate is data, not code: one compiled program trains every learning rate. So an
optimizer here is a direction, without a rate; the step scales it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax import Array

from ici.errors import unknown_name

_DIRECTIONS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": optax.identity,
    "momentum": lambda: optax.trace(decay=0.9),
    "adam": optax.scale_by_adam,
    "adamw": optax.scale_by_adam,
}


def _constant(step: Array, warmup_steps: int, steps: int) -> Array:
    del steps
    return jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))


def _warmup_cosine(step: Array, warmup_steps: int, steps: int) -> Array:
    progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
    decay = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
    return jnp.where(step < warmup_steps, (step + 1) / max(warmup_steps, 1), decay)


_SCHEDULES: dict[str, Callable[[Array, int, int], Array]] = {
    "constant": _constant,
    "warmup_cosine": _warmup_cosine,
}

# Eight values each, log-spaced by half decades, that span "too slow" to "diverges" on deep nets.
_RATES: dict[str, tuple[float, ...]] = {
    "sgd": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1e0, 3e0, 1e1),
    "momentum": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1e0),
    "adam": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    "adamw": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
}


def default_learning_rates(name: str) -> tuple[float, ...]:
    """The grid that an experiment sweeps when it names no learning rates."""
    return _RATES[name]


def optimizer_names() -> tuple[str, ...]:
    """Names that ``optimizer=`` takes."""
    return tuple(_DIRECTIONS)


def schedule_names() -> tuple[str, ...]:
    """Names that ``schedule=`` takes."""
    return tuple(_SCHEDULES)


def make_optimizer(name: str, lr: Array, weight_decay: Array) -> optax.GradientTransformation:
    """The optimizer `name` with the traced learning rate and weight decay of one step.

    ``adamw`` decays weights apart from the gradient (Loshchilov & Hutter 2019); the others add
    ``weight_decay · w`` to the gradient first (L2 regularization). The state's structure does not
    depend on the two values, so they may change from step to step.

    Raises:
      InputError: unknown name.
    """
    if name not in _DIRECTIONS:
        raise unknown_name("optimizer", name, optimizer_names())
    decay = optax.add_decayed_weights(weight_decay)
    parts = [_DIRECTIONS[name](), decay] if name == "adamw" else [decay, _DIRECTIONS[name]()]
    return optax.chain(*parts, optax.scale(-lr))


def schedule_factor(name: str, step: Array, warmup_steps: int, steps: int) -> Array:
    """What the learning rate is multiplied by at `step` (a traced int32 scalar).

    ``constant`` ramps linearly over `warmup_steps` and stays; ``warmup_cosine`` then falls to 0
    at `steps` along a half cosine (Loshchilov & Hutter 2017).
    """
    if name not in _SCHEDULES:
        raise unknown_name("schedule", name, schedule_names())
    return _SCHEDULES[name](step.astype(jnp.float32), warmup_steps, steps)
