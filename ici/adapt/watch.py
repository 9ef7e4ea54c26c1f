"""Measurement for loops that are written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax import nnx

from ici.adapt.linen import watch_apply
from ici.adapt.nnx import watch_module
from ici.errors import InputError
from ici.probe import Probe


def watch(target: Any, probe: Probe | None) -> Callable[..., tuple[Any, Any]]:
    """`target` to be called as before, returning ``(result, taps)``.

    ``watch(module, probe)(x)`` calls a live NNX module, whose running statistics and random
    streams move as in ``module(x)``; to measure and leave it as it is, watch ``nnx.clone(module)``.
    ``watch(module.apply, probe)({"params": params}, x, ...)``, with the ``apply_fn`` of a
    ``TrainState`` too, returns what Linen's apply returns. Both work inside ``jax.jit``,
    ``nnx.jit`` and ``jax.grad``; `taps` is a pytree, to be returned as an auxiliary output.

    Args:
      target: an ``nnx.Module``, or ``apply`` of a ``nn.Module``.
      probe: what to watch; None watches nothing and `taps` is None. Its mask is a function of the
        inputs: the one positional argument, or all of them. ``every`` is the loop's business.

    Raises:
      InputError: another target, or a probe that asks for cotangents.
    """
    is_linen = isinstance(getattr(target, "__self__", None), nn.Module)
    is_apply = is_linen and getattr(target, "__name__", "") == "apply"
    if not isinstance(target, nnx.Module) and not is_apply:
        raise InputError(
            f"watch: got {type(target).__name__} {getattr(target, '__name__', '')!r}: wanted an "
            "nnx.Module, or the apply method of a linen module, such as state.apply_fn."
        )
    if probe is not None and probe.cotangents:
        raise InputError(
            "watch: the probe asks for cotangents, which leave a backward pass only through "
            "make_train_step; wanted cotangents=False here."
        )

    def call(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if probe is None:
            return target(*args, **kwargs), None
        watched = watch_apply if is_apply else watch_module
        return watched(target, probe, args, kwargs)

    return call
