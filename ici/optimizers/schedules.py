"""What the learning rate is multiplied by, step by step."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from ici.errors import InputError, unknown_name

Decay = Callable[[Array, float], Array]


def _constant(progress: Array, decay_fraction: float) -> Array:
    del decay_fraction
    return jnp.ones_like(progress)


def _cosine(progress: Array, decay_fraction: float) -> Array:
    """Half a cosine to 0 (Loshchilov & Hutter 2017)."""
    del decay_fraction
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def _linear(progress: Array, decay_fraction: float) -> Array:
    """A straight line to 0."""
    del decay_fraction
    return 1.0 - progress


def _wsd(progress: Array, decay_fraction: float) -> Array:
    """Warm-up, stable, decay: constant, then a straight line to 0 at the end (Hu et al. 2024)."""
    return jnp.minimum(1.0, (1.0 - progress) / decay_fraction)


_SCHEDULES: dict[str, Decay] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "wsd": _wsd,
}


def register(name: str) -> Callable[[Decay], Decay]:
    """Decorator: makes ``decay(progress, decay_fraction) -> factor`` available as ``schedule=``.

    ``progress`` (a traced float32 scalar) runs from 0 at the end of the warm-up to 1 at the last
    step; ``decay_fraction`` is the experiment's field of that name.
    """

    def add(decay: Decay) -> Decay:
        if not callable(decay):
            raise InputError(f"schedule {name!r} is {decay!r}: wanted a function of progress.")
        _SCHEDULES[name] = decay
        return decay

    return add


def schedule_names() -> tuple[str, ...]:
    """Names that ``schedule=`` takes."""
    return tuple(_SCHEDULES)


def schedule_factor(
    name: str, step: Array, warmup_steps: Array | int, steps: int, decay_fraction: float = 0.2
) -> Array:
    """The factor at `step`, a traced int32 scalar; `warmup_steps` may be traced too.

    The factor rises linearly to 1 over `warmup_steps`; what follows is the schedule's: constant,
    or down to 0 at `steps` along a half cosine, along a line, or along a line over the last
    `decay_fraction` of these steps (``wsd``).

    Raises:
      InputError: unknown name.
    """
    if name not in _SCHEDULES:
        raise unknown_name("schedule", name, schedule_names())
    step, warmup = jnp.asarray(step, jnp.float32), jnp.asarray(warmup_steps, jnp.float32)
    progress = jnp.clip((step - warmup) / jnp.maximum(steps - warmup, 1.0), 0.0, 1.0)
    ramp = jnp.minimum(1.0, (step + 1.0) / jnp.maximum(warmup, 1.0))
    return jnp.where(step < warmup, ramp, _SCHEDULES[name](progress, decay_fraction))
