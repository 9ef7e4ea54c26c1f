"""The shift of a site on the host, for what follows a run and must leave its devices alone."""

from __future__ import annotations

import numpy as np

from ici.measure.shift import DEAD_STD


def mean_shift_on_host(
    mean_a: np.ndarray,
    std_a: np.ndarray,
    mean_b: np.ndarray,
    std_b: np.ndarray,
    dead_std: float = DEAD_STD,
) -> np.ndarray:
    """``mean_shift`` of `Shift.aggregate` from snapshot a to b, float64 ``[...]``.

    The arrays are ``[..., D]`` in units of the site; features that are NaN in a are filling. The
    root mean square over live features of ``(μ_b − μ_a) / σ_a``; NaN where there is no live feature
    or b was not measured. See `Shift` for the source.
    """
    a, b = np.asarray(mean_a, np.float64), np.asarray(mean_b, np.float64)
    spread_a, spread_b = np.asarray(std_a, np.float64), np.asarray(std_b, np.float64)
    # Of what was not measured it is not known whether it is dead: it shows as NaN.
    live = ~np.isnan(a) & ~((spread_a < dead_std) | (spread_b < dead_std))
    with np.errstate(all="ignore"):
        square = np.square((b - a) / spread_a)
        n_live = live.sum(axis=-1)
        total = np.where(live, square, 0.0).sum(axis=-1)
        return np.sqrt(total / np.where(n_live, n_live, np.nan))
