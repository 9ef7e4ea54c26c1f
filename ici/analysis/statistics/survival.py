"""Time to an event that some runs never reach: censored, not missing."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ici.errors import InputError


@dataclass(frozen=True)
class Survival:
    """Share of runs that have not met the target, a step function of training steps.

    Attributes:
      steps: float64 ``[k]``: 0, the steps at which a run met the target, and the horizon.
      survival: share that has not met it from each step on ``[k]``.
      low, high: pointwise confidence interval ``[k]``; NaN where there is none.
      at_risk: runs that had not met it just before ``[k]``.
      level: confidence level.
    """

    steps: np.ndarray
    survival: np.ndarray
    low: np.ndarray
    high: np.ndarray
    at_risk: np.ndarray
    level: float


def _times(steps: ArrayLike, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(steps, np.float64).ravel()
    if not values.size or np.isnan(values).any() or (values < 0).any():
        raise InputError(
            f"steps to target {values.tolist()}: wanted one number >= 0 or inf per run, at least "
            "one; leave out runs that are still going."
        )
    if not horizon > 0 or math.isinf(horizon) or (values[np.isfinite(values)] > horizon).any():
        raise InputError(
            f"horizon is {horizon}: wanted the finite number of steps that every run was given, "
            "no smaller than any step to target."
        )
    return np.minimum(values, horizon), np.isfinite(values)


def kaplan_meier(steps: ArrayLike, horizon: float, level: float = 0.95) -> Survival:
    """The Kaplan–Meier estimate of the share of runs that have not met their target.

    ``steps[n]`` are steps to target, inf where a run of `horizon` steps missed it (censored there).
    Intervals are log-log (Greenwood's variance): they stay within [0, 1], and there is none while
    the share is 1 or 0.

    Source: Kaplan & Meier, "Nonparametric estimation from incomplete observations", 1958; computed
    by `scipy.stats.ecdf`.

    Raises:
      InputError: no runs, NaN, negative steps, or a horizon that cannot be.
    """
    from scipy.stats import CensoredData, ecdf

    times, met = _times(steps, horizon)
    if not met.any():
        # SciPy's estimate has a value only where something happened.
        at = np.array([0.0, horizon])
        none = np.full(2, np.nan)
        return Survival(at, np.ones(2), none, none, np.full(2, len(times)), level)
    estimate = ecdf(CensoredData(uncensored=times[met], right=times[~met])).sf
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        # SciPy warns where the share is 1 or 0; what is told there is that there is none.
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = estimate.confidence_interval(level, method="log-log")
    happened = np.unique(times[met])
    keep = np.searchsorted(estimate.quantiles, happened)
    at = np.concatenate([[0.0], happened, [horizon]])

    def stepwise(values: np.ndarray, start: float) -> np.ndarray:
        chosen = np.asarray(values, np.float64)[keep]
        return np.concatenate([[start], chosen, [chosen[-1]]])

    survival = stepwise(estimate.probabilities, 1.0)
    certain = (survival == 0) | (survival == 1)
    low, high = (
        np.where(certain, np.nan, stepwise(bound.probabilities, np.nan))
        for bound in (interval.low, interval.high)
    )
    at_risk = np.array([(times >= step).sum() for step in at])
    return Survival(at, survival, low, high, at_risk, level)


def restricted_mean(steps: ArrayLike, horizon: float) -> float:
    """Mean of ``min(steps, horizon)``: steps spent up to the target, misses counted as `horizon`.

    A number for every run, also where most miss; the area below `kaplan_meier`.

    Source: Royston & Parmar, "Restricted mean survival time", 2013.
    """
    return float(_times(steps, horizon)[0].mean())


def logrank(a: ArrayLike, b: ArrayLike, horizon: float) -> float:
    """p-value of the log-rank test that two groups of runs meet their target equally fast.

    NaN where no run of either met it, or either group is empty. Source: Mantel 1966; computed by
    `scipy.stats.logrank`.
    """
    from scipy.stats import CensoredData
    from scipy.stats import logrank as scipy_logrank

    if not np.size(a) or not np.size(b):
        return math.nan
    groups = [_times(steps, horizon) for steps in (a, b)]
    if not any(met.any() for _, met in groups):
        return math.nan
    data = [CensoredData(uncensored=t[met], right=t[~met]) for t, met in groups]
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(scipy_logrank(data[0], data[1]).pvalue)
