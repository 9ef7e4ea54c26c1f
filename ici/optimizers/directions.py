"""Optimizers as directions: the step scales them by the traced learning rate."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax.contrib import muon as optax_muon

from ici.errors import InputError, unknown_name
from ici.optimizers.parameters import DECAYED, DecayOn, decay_mask, matrices

PyTree = Any
Direction = Callable[..., optax.GradientTransformation]
Betas = dict[str, float]

_ADAM_EPSILON = 1e-8
_SETTINGS = ("beta1", "beta2", "bias_correction")


class _Entry(NamedTuple):
    direction: Direction
    betas: Betas
    rates: tuple[float, ...]
    decoupled: bool

    @property
    def parameters(self) -> set[str]:
        return set(inspect.signature(self.direction).parameters)


def _trace(beta1: Array, nesterov: bool = False) -> optax.GradientTransformation:
    return optax.trace(decay=beta1, nesterov=nesterov)  # pyright: ignore[reportArgumentType]


def _adam(beta1: Array, beta2: Array, bias_correction: bool) -> optax.GradientTransformation:
    if bias_correction:
        return optax.scale_by_adam(beta1, beta2, _ADAM_EPSILON)
    return _uncorrected_adam(beta1, beta2)


def _uncorrected_adam(beta1: Array, beta2: Array) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015, Algorithm 1) without its division by ``1 - β^t``."""

    def init(params: PyTree) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, zeros)

    def update(
        grads: PyTree, state: optax.ScaleByAdamState, params: PyTree = None
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        del params
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g**2, state.nu, grads)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + _ADAM_EPSILON), mu, nu)
        return direction, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _muon(beta1: Array, beta2: Array) -> optax.GradientTransformation:
    """Muon for hidden matrices (Jordan 2024), scaled so that its updates have Adam's size and one
    learning rate serves both (Liu et al. 2025); Adam for the other parameters. Both with Nesterov
    momentum, as optax has them."""
    descent = optax_muon(
        1.0,
        beta=beta1,
        adam_b2=beta2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=matrices,  # pyright: ignore[reportArgumentType]
    )
    return optax.chain(descent, optax.scale(-1.0))


# Eight values each, log-spaced by half decades, that span "too slow" to "diverges" on deep nets.
_SGD_RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1e0, 3e0, 1e1)
_MOMENTUM_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1e0)
_ADAM_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
_LION_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_OPTIMIZERS: dict[str, _Entry] = {
    "sgd": _Entry(optax.identity, {}, _SGD_RATES, False),
    "momentum": _Entry(_trace, {"beta1": 0.9}, _MOMENTUM_RATES, False),
    "nesterov": _Entry(
        lambda beta1: _trace(beta1, nesterov=True), {"beta1": 0.9}, _MOMENTUM_RATES, False
    ),
    "adam": _Entry(_adam, {"beta1": 0.9, "beta2": 0.999}, _ADAM_RATES, False),
    "adamw": _Entry(_adam, {"beta1": 0.9, "beta2": 0.999}, _ADAM_RATES, True),
    "lion": _Entry(
        lambda beta1, beta2: optax.scale_by_lion(beta1, beta2),
        {"beta1": 0.9, "beta2": 0.99},
        _LION_RATES,
        True,
    ),
    "muon": _Entry(_muon, {"beta1": 0.95, "beta2": 0.999}, _ADAM_RATES, True),
}


def register(
    name: str,
    *,
    learning_rates: tuple[float, ...],
    beta1: float | None = None,
    beta2: float | None = None,
    decoupled_decay: bool = False,
) -> Callable[[Direction], Direction]:
    """Decorator: makes a direction available as ``optimizer="name"``.

    The function returns an optax transformation that maps gradients to a direction of ascent,
    without a learning rate: the engine takes the step ``-lr · direction``. It is given those of
    ``beta1``, ``beta2`` (traced scalars) and ``bias_correction`` that it names as parameters.

    Args:
      name: what experiments call it.
      learning_rates: what an experiment sweeps that names no learning rates.
      beta1, beta2: defaults of the decay rates that it has.
      decoupled_decay: decay weights apart from the gradient (Loshchilov & Hutter 2019) instead of
        adding ``weight_decay · w`` to it.

    Raises:
      InputError: the function takes other parameters, or a beta that has no default.
    """
    defaults = {"beta1": beta1, "beta2": beta2}
    known = {key: value for key, value in defaults.items() if value is not None}

    def add(direction: Direction) -> Direction:
        entry = _Entry(direction, known, tuple(learning_rates), decoupled_decay)
        wanted = entry.parameters
        if not wanted <= set(_SETTINGS) or wanted & set(defaults) != set(known):
            raise InputError(
                f"optimizer {name!r} takes {', '.join(sorted(wanted)) or 'nothing'} and has "
                f"defaults for {', '.join(known) or 'none'}: wanted a function of some of "
                f"{', '.join(_SETTINGS)}, and a default for each beta."
            )
        _OPTIMIZERS[name] = entry
        return direction

    return add


def optimizer_names() -> tuple[str, ...]:
    """Names that ``optimizer=`` takes."""
    return tuple(_OPTIMIZERS)


def default_learning_rates(name: str) -> tuple[float, ...]:
    """The grid that an experiment sweeps when it names no learning rates."""
    return _OPTIMIZERS[name].rates


def betas(name: str) -> Betas:
    """The decay rates that an optimizer has, with their defaults."""
    return dict(_OPTIMIZERS[name].betas)


@dataclass(frozen=True)
class Optimizer:
    """What is the same for all lanes of a group; `at` adds what is traced.

    Attributes:
      name: a registered optimizer.
      bias_correction: of Adam's averages.
      clip_norm: largest global norm of the gradient, which is scaled down to it; None clips none.
      decay_on: weight decay of "all" parameters, or of "matrices": weights and embeddings, not
        biases and scales.

    Raises:
      InputError: an unknown name; bias correction switched off for an optimizer without any.
    """

    name: str
    bias_correction: bool = True
    clip_norm: float | None = None
    decay_on: DecayOn = "all"

    def __post_init__(self) -> None:
        if self.name not in _OPTIMIZERS:
            raise unknown_name("optimizer", self.name, optimizer_names())
        if self.decay_on not in DECAYED:
            raise unknown_name("decay_on", self.decay_on, DECAYED)
        if not self.bias_correction and "bias_correction" not in self._entry.parameters:
            raise InputError(
                f"bias_correction is False and optimizer is {self.name!r}, which corrects no "
                "bias: wanted adam or adamw."
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"clip_norm is {self.clip_norm}: wanted a number > 0, or None.")

    @property
    def _entry(self) -> _Entry:
        return _OPTIMIZERS[self.name]

    def at(
        self,
        lr: Array | float,
        weight_decay: Array | float = 0.0,
        beta1: Array | float | None = None,
        beta2: Array | float | None = None,
    ) -> optax.GradientTransformation:
        """The optax transformation of one step, with traced numbers.

        Its state has the same structure whatever the numbers, which may change from step to step.
        The gradient is clipped first; an L2 penalty comes after. Betas default to the optimizer's;
        those it does not have are ignored.
        """
        entry = self._entry
        given = {"beta1": beta1, "beta2": beta2}
        settings: dict[str, Any] = {
            key: default if given[key] is None else given[key]
            for key, default in entry.betas.items()
        }
        settings["bias_correction"] = self.bias_correction
        direction = entry.direction(
            **{key: value for key, value in settings.items() if key in entry.parameters}
        )
        decay = optax.add_decayed_weights(
            weight_decay,  # pyright: ignore[reportArgumentType]
            None if self.decay_on == "all" else lambda params: decay_mask(params, "matrices"),
        )
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        parts = [direction, decay] if entry.decoupled else [decay, direction]
        return optax.chain(*clip, *parts, optax.scale(-lr))  # pyright: ignore[reportArgumentType]
