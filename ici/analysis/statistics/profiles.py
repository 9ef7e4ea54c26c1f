"""Performance profiles: how often a method is within a factor of the best one."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ici.errors import InputError


def time_ratios(times: ArrayLike) -> np.ndarray:
    """``times[workload, method]`` over the best time of each workload; inf for misses.

    Where nobody met the target, every ratio is inf: such a workload counts against all.
    """
    values = np.asarray(times, np.float64)
    if values.ndim != 2 or np.isnan(values).any() or (values <= 0).any():
        raise InputError(
            f"times of shape {values.shape}: wanted positive numbers [workload, method], inf where "
            "a method missed the target."
        )
    best = values.min(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(values), values / best, np.inf)


def performance_profile(times: ArrayLike, factors: ArrayLike) -> np.ndarray:
    """ρ(τ), the share of workloads on which a method is within τ of the best: ``[method, τ]``.

    Source: Dolan & Moré 2002; Dahl et al. (AlgoPerf) 2023, §4.
    """
    ratios = time_ratios(times)
    return np.mean(ratios.T[:, :, None] <= np.asarray(factors, np.float64), axis=1)


def profile_score(times: ArrayLike, largest_factor: float = 4.0) -> np.ndarray:
    """``1/(r−1) ∫₁^r ρ(τ) dτ`` of each method, in [0, 1]; exact, no grid of τ.

    Source: Dahl et al. (AlgoPerf) 2023, §4, with r = 4.

    Raises:
      InputError: times that are not positive, or r ≤ 1.
    """
    if not largest_factor > 1:
        raise InputError(f"largest_factor is {largest_factor}: wanted a number > 1.")
    ratios = np.minimum(time_ratios(times), largest_factor)
    return np.mean((largest_factor - ratios) / (largest_factor - 1.0), axis=0)
