"""Normalization layers by name, so that an experiment can sweep them.

Add one::

    @register("mine")
    def mine(features: int, *, rngs: nnx.Rngs) -> nnx.Module:
        return MyNorm(features, rngs=rngs)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
from flax import nnx

from ici.errors import unknown_name


class NormFactory(Protocol):
    """Builds a normalization layer for ``features`` channels on the last axis."""

    def __call__(self, features: int, *, rngs: nnx.Rngs) -> nnx.Module: ...


_NORMS: dict[str, NormFactory] = {}
_CENTRING: set[str] = set()


def register(name: str, *, centres: bool = False) -> Callable[[NormFactory], NormFactory]:
    """Decorator: makes a factory available as ``norm="name"``.

    Args:
      name: what experiments call it.
      centres: whether it subtracts each feature's own mean over the batch. A bias just before
        such a norm has no effect, so models leave it out.
    """

    def add(factory: NormFactory) -> NormFactory:
        _NORMS[name] = factory
        if centres:
            _CENTRING.add(name)
        return factory

    return add


def names() -> tuple[str, ...]:
    """The registered names."""
    return tuple(_NORMS)


def check_norm(name: str) -> str:
    """`name` itself. Raises `InputError` when no norm is registered under it."""
    if name not in _NORMS:
        raise unknown_name("norm", name, names())
    return name


def makes_bias_redundant(name: str) -> bool:
    """Whether a bias just before the norm `name` is cancelled by it.

    The gradient of such a bias is rounding noise around 0, which Adam scales up to full steps:
    it would wander, and show up as a shift that no layer's function takes part in.
    """
    return name in _CENTRING


def make_norm(name: str, features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """The layer registered as `name`. Raises `InputError` for an unknown one."""
    return _NORMS[check_norm(name)](features, rngs=rngs)


class NoNorm(nnx.Module):
    """Passes its input on, so that networks with and without a norm have the same layers."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


@register("none")
def _none(features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    del features, rngs
    return NoNorm()


@register("batch", centres=True)
def _batch(features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Batch normalization (Ioffe & Szegedy 2015), running averages with momentum 0.9."""
    # The default variance of Flax is E[x²]−E[x]², which cancels where the mean is large.
    return nnx.BatchNorm(features, momentum=0.9, use_fast_variance=False, rngs=rngs)


@register("layer")
def _layer(features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Layer normalization (Ba, Kiros & Hinton 2016)."""
    return nnx.LayerNorm(features, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


@register("rms")
def _rms(features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Root-mean-square normalization (Zhang & Sennrich 2019)."""
    return nnx.RMSNorm(features, epsilon=1e-5, rngs=rngs)
