"""Intervals from a handful of seeds, none of them narrower than the seeds allow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ici.errors import InputError

Statistic = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    ``low`` and ``high`` are NaN where no interval is possible; ``method`` says how it was made, or
    why there is none.
    """

    estimate: float
    low: float
    high: float
    n: int
    level: float
    method: str

    @property
    def exists(self) -> bool:
        """Whether there is an interval at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0; False without one."""
        return bool(self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        if not self.exists:
            return f"{self.estimate:.3g} ({self.method})"
        return f"{self.estimate:.3g} [{self.low:.3g} to {self.high:.3g}]"


def sample_of(values: ArrayLike) -> np.ndarray:
    """`values` as float64 ``[n]``. Raises `InputError` where any is not finite, or none is left."""
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or not sample.size or not np.isfinite(sample).all():
        raise InputError(
            f"values of shape {sample.shape}, {int(np.sum(~np.isfinite(sample)))} of them not "
            "finite: wanted finite numbers [n]; leave diverged runs out and say how many."
        )
    return sample


def check_level(level: float) -> float:
    """`level`. Raises `InputError` unless it lies between 0 and 1."""
    if not 0 < level < 1:
        raise InputError(f"level is {level}: wanted a share between 0 and 1, such as 0.95.")
    return level


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of ``values[n]``.

    Exact for normal values however few; for skewed ones with few seeds it covers less than it
    says (docs/statistics.md has the figures). Without an interval for a single value, and with one
    of width 0 where all are equal.

    Raises:
      InputError: values that are not finite, or an impossible level.
    """
    from scipy.stats import t

    sample, n = sample_of(values), np.size(values)
    mean = float(sample.mean())
    if n < 2:
        return Interval(mean, np.nan, np.nan, n, check_level(level), "one seed: no interval")
    error = float(sample.std(ddof=1)) / math.sqrt(n)
    half = float(t.ppf(0.5 + check_level(level) / 2, n - 1)) * error
    return Interval(mean, mean - half, mean + half, n, level, "Student t")


def smallest_bootstrap(level: float = 0.95) -> int:
    """Fewest values from which a bootstrap can reach `level`.

    A bootstrap interval lies within the range of the values, which holds the median with
    probability 1 − 2^(1−n) whatever the distribution. At 95 % that takes 6 seeds.
    """
    return max(2, math.ceil(1 - math.log2(1 - check_level(level))))


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic = np.median,
    level: float = 0.95,
    n_resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Expanded-percentile bootstrap over the seeds of any statistic of ``values[n]``.

    The percentiles lie further out than the level asks for, by the ratio of Student's to the
    normal quantile, since resamples of n values spread less than new seeds do. None below
    `smallest_bootstrap` seeds: no resampling of them can reach the level.

    Source: Hesterberg, "What teachers should know about the bootstrap", 2015, §4.

    Args:
      values: a number per seed.
      statistic: of an array along ``axis``, such as `np.median` or `interquartile_mean`.
      level: confidence level.
      n_resamples: resamples drawn.
      seed: of the draws.

    Raises:
      InputError: values that are not finite, or an impossible level.
    """
    sample = sample_of(values)
    n, estimate = len(sample), float(statistic(sample, axis=-1))
    if n < smallest_bootstrap(level):
        why = f"{n} seeds: a bootstrap needs {smallest_bootstrap(level)} for {level:.0%}"
        return Interval(estimate, np.nan, np.nan, n, level, why)
    draws = np.random.default_rng(seed).integers(0, n, (n_resamples, n))
    low, high = _expanded(statistic(sample[draws], axis=-1), n, level)
    return Interval(estimate, low, high, n, level, "bootstrap over seeds")


def _expanded(resampled: np.ndarray, n: int, level: float) -> tuple[float, float]:
    from scipy.stats import norm, t

    quantile = t.ppf(0.5 + level / 2, n - 1) * math.sqrt(n / (n - 1))
    tail = 100 * float(norm.cdf(-quantile))
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def interquartile_mean(values: ArrayLike, axis: int = -1) -> np.ndarray:
    """Mean of the middle half: less noisy than the median, as deaf to a wild seed.

    Values on the edge of the middle half count in part, so that every number of seeds is treated
    alike. Source: Agarwal et al., "Deep RL at the edge of the statistical precipice", 2021, §4.3.
    """
    ordered = np.sort(np.moveaxis(np.asarray(values, np.float64), axis, -1), axis=-1)
    n = ordered.shape[-1]
    edges = np.arange(n + 1) / n
    share = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return ordered @ (share / share.sum())


def stratified_interval(
    values: ArrayLike,
    statistic: Statistic = interquartile_mean,
    level: float = 0.95,
    n_resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Bootstrap of a statistic of all ``values[setting, seed]``, seeds resampled in each setting.

    Many settings make up for few seeds. The interval is that over new seeds of the same settings,
    not over new settings.

    Source: Agarwal et al., "Deep RL at the edge of the statistical precipice", 2021, §4.1.

    Raises:
      InputError: values that are not finite, fewer than two settings, or an impossible level.
    """
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or len(table) < 2 or not table.size or not np.isfinite(table).all():
        raise InputError(
            f"values of shape {table.shape}: wanted finite numbers [setting, seed] of two or more "
            "settings."
        )
    settings, n = table.shape
    estimate = float(statistic(table.ravel(), axis=-1))
    check_level(level)
    if n < 2:
        return Interval(estimate, np.nan, np.nan, n, level, "one seed: no interval")
    draws = np.random.default_rng(seed).integers(0, n, (n_resamples, settings, n))
    resampled = np.take_along_axis(table[None], draws, axis=2).reshape(n_resamples, -1)
    low, high = _expanded(statistic(resampled, axis=-1), n, level)
    return Interval(estimate, low, high, n, level, f"bootstrap over seeds of {settings} settings")


def proportion_interval(k: int, n: int, level: float = 0.95) -> Interval:
    """Clopper–Pearson interval of a share, such as of diverged seeds: `k` of `n`.

    Never covers less than it says, and with few seeds more. Source: Clopper & Pearson 1934.

    Raises:
      InputError: not 0 <= k <= n, or an impossible level.
    """
    from scipy.stats import binomtest

    if not 0 <= k <= n or n < 1:
        raise InputError(f"{k} of {n}: wanted a count from 0 to the number of runs, at least 1.")
    found = binomtest(int(k), int(n)).proportion_ci(check_level(level), method="exact")
    return Interval(k / n, float(found.low), float(found.high), n, level, "Clopper-Pearson")
