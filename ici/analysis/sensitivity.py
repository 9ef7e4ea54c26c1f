"""How much the choice of the learning rate matters, and how large it may be."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ici.errors import InputError

# Seven log-spaced rates, the grid that published figures use.
REFERENCE_RATES = tuple(float(rate) for rate in np.geomspace(3e-4, 3e-1, 7))


def lr_sensitivity(losses: ArrayLike, loss_at_init: ArrayLike, axis: int = -1) -> np.ndarray:
    """Mean over learning rates of how far the final loss lies above the best rate's.

    ``E_η[min(ℓ(η), ℓ₀) − ℓ*]`` with ``ℓ* = min_η ℓ(η)``: `losses` along `axis` are those of
    log-spaced rates, ``loss_at_init`` ℓ₀ (broadcast over the rest) the loss before training. A
    diverged run (NaN or infinite) counts as ℓ₀. In the units of the loss; 0 where every rate does
    as well as the best. The figure depends on the grid: compare on the same one, published ones
    on `REFERENCE_RATES`.

    Source: Wortsman et al., "Small-scale proxies for large-scale Transformer training
    instabilities", 2023, §2.2.

    Raises:
      InputError: fewer than two rates, or a loss at initialization that is not finite.
    """
    values = np.moveaxis(np.asarray(losses, np.float64), axis, -1)
    start = np.asarray(loss_at_init, np.float64)
    if values.shape[-1] < 2:
        raise InputError(
            f"losses of {values.shape[-1]} learning rate(s): wanted two or more, on a log-spaced "
            "grid; sweep lr."
        )
    if not np.isfinite(start).all():
        raise InputError("loss_at_init is not finite: wanted the loss before the first update.")
    capped = np.fmin(np.where(np.isfinite(values), values, np.inf), start[..., None])
    return np.mean(capped - capped.min(axis=-1, keepdims=True), axis=-1)


def largest_stable_lr(lrs: ArrayLike, diverged: ArrayLike) -> np.ndarray:
    """The largest learning rate at which no seed diverged, and none at any smaller one.

    ``diverged[..., lr, seed]`` is bool, ``lrs`` increase. 0 where the smallest rate already fails.
    Where the largest rate is stable, the answer is that rate, and the limit lies beyond the grid.

    Raises:
      InputError: the rates do not increase or do not fit `diverged`.
    """
    rates, failed = np.asarray(lrs, np.float64), np.asarray(diverged, bool)
    if failed.ndim < 2 or failed.shape[-2] != len(rates) or (np.diff(rates) <= 0).any():
        raise InputError(
            f"{len(rates)} learning rates and diverged of shape {failed.shape}: wanted increasing "
            "rates and bool [..., lr, seed]."
        )
    n_stable = np.cumprod(~failed.any(axis=-1), axis=-1, dtype=int).sum(axis=-1)
    return np.where(n_stable > 0, rates[np.maximum(n_stable, 1) - 1], 0.0)


def depth_of_failure(depths: ArrayLike, trained: ArrayLike) -> np.ndarray:
    """The smallest depth from which on no run trains, float64; inf where the deepest still does.

    ``trained[..., depth, run]`` is bool: whether a run (a seed, a learning rate) reached its
    target or an agreed loss; ``depths`` increase.

    Raises:
      InputError: the depths do not increase or do not fit `trained`.
    """
    at, worked = np.asarray(depths, np.float64), np.asarray(trained, bool)
    if worked.ndim < 2 or worked.shape[-2] != len(at) or (np.diff(at) <= 0).any():
        raise InputError(
            f"{len(at)} depths and trained of shape {worked.shape}: wanted increasing depths and "
            "bool [..., depth, run]."
        )
    failing = np.logical_not(worked.any(axis=-1))
    n_failing = np.cumprod(np.flip(failing, -1), axis=-1, dtype=int).sum(axis=-1)
    first = np.minimum(len(at) - n_failing, len(at) - 1)
    return np.where(n_failing > 0, at[first], np.inf)
