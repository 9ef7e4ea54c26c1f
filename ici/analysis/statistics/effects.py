"""Differences between two sets of runs: how large, how sure, and how many seeds would settle it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ici.analysis.statistics.intervals import Interval, check_level, mean_interval, sample_of
from ici.errors import InputError

MAX_SEEDS = 10_000
_QUANTILES = 4096
# Of the values: records are float32, and smaller differences are rounding.
_RESOLUTION = 1e-6


@dataclass(frozen=True)
class Effect:
    """Difference of the means of two sets of runs, the second minus the first.

    Attributes:
      difference: with its confidence interval.
      standardised: difference in standard deviations, corrected for small numbers (Hedges' g; of
        the differences themselves where paired), with its interval.
      p_value: of no difference, two-sided; NaN where no test is possible.
      paired: whether runs were compared seed by seed.
      n: seeds on each side, of the smaller side where they differ.
    """

    difference: Interval
    standardised: Interval
    p_value: float
    paired: bool
    n: int


def paired_effect(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Effect:
    """Effect of ``b[n]`` against ``a[n]`` whose runs share seed and data order, pair by pair.

    Student's t of the differences: what the seed does to both sides alike drops out. Differences
    that are equal up to rounding have no spread to test against; such are steps to a target that
    is looked for at every fiftieth step only. Their p-value is that of the sign test,
    and NaN where all are 0: nothing to test.

    Raises:
      InputError: other numbers of runs, or values that are not finite.
    """
    first, second = sample_of(a), sample_of(b)
    if first.shape != second.shape:
        raise InputError(
            f"{len(first)} and {len(second)} runs: wanted the same seeds on both sides to pair "
            "them; unpaired_effect compares others."
        )
    differences = second - first
    n = len(differences)
    interval = mean_interval(differences, level)
    spread = float(differences.std(ddof=1)) if n > 1 else math.nan
    rounding = _rounding(first, second)
    if spread <= rounding:
        p_value = 2.0 ** (1 - n) if abs(interval.estimate) > rounding else math.nan
        return _without_spread(interval.estimate, p_value, True, n, level)
    statistic = interval.estimate * math.sqrt(n) / spread
    standardised = _standardised(statistic, n - 1, 1 / math.sqrt(n), n, level)
    return Effect(interval, standardised, _two_sided(statistic, n - 1), True, n)


def _rounding(a: np.ndarray, b: np.ndarray) -> float:
    return _RESOLUTION * float(max(np.abs(a).max(), np.abs(b).max()))


def _without_spread(
    difference: float, p_value: float, paired: bool, n: int, level: float
) -> Effect:
    why = "no spread between seeds: no interval"
    none = Interval(difference, math.nan, math.nan, n, level, why)
    return Effect(none, replace(none, estimate=math.nan), p_value, paired, n)


def unpaired_effect(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Effect:
    """Effect of ``b[m]`` against ``a[n]`` whose runs share nothing: Welch's t.

    Where neither side has a spread, the p-value is that of the permutation test, and NaN where
    both are equal.

    Raises:
      InputError: values that are not finite.
    """
    from scipy.stats import t

    first, second = sample_of(a), sample_of(b)
    n, m = len(first), len(second)
    difference = float(second.mean() - first.mean())
    fewer = min(n, m)
    if fewer < 2:
        none = Interval(difference, np.nan, np.nan, fewer, level, "one seed: no interval")
        unknown = Interval(np.nan, np.nan, np.nan, fewer, level, "one seed: no interval")
        return Effect(none, unknown, math.nan, False, fewer)
    stds, rounding = (first.std(ddof=1), second.std(ddof=1)), _rounding(first, second)
    if max(stds) <= rounding:
        p_value = 2 / math.comb(n + m, n) if abs(difference) > rounding else math.nan
        return _without_spread(difference, p_value, False, fewer, level)
    parts = float(stds[0]) ** 2 / n, float(stds[1]) ** 2 / m
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1))
    half = float(t.ppf(0.5 + check_level(level) / 2, freedom)) * error
    interval = Interval(difference, difference - half, difference + half, fewer, level, "Welch t")
    statistic = difference / error
    standardised = _standardised(statistic, freedom, math.sqrt(1 / n + 1 / m), fewer, level)
    return Effect(interval, standardised, _two_sided(statistic, freedom), False, fewer)


def _two_sided(statistic: float, freedom: float) -> float:
    from scipy.stats import t

    return math.nan if math.isnan(statistic) else float(2 * t.sf(abs(statistic), freedom))


def _standardised(statistic: float, freedom: float, scale: float, n: int, level: float) -> Interval:
    """Hedges' g ``scale · statistic``, its interval by inverting the noncentral t.

    The interval is exact for normal values, and of the uncorrected effect: with few seeds `g` lies
    below its middle.

    Source: Hedges, "Distribution theory for Glass's estimator of effect size", 1981.
    """
    from scipy.optimize import brentq

    correction = _hedges(freedom)
    if not math.isfinite(statistic) or not correction:
        return Interval(math.nan, math.nan, math.nan, n, level, "too few seeds: no interval")

    def noncentrality(share: float) -> float:
        def excess(value: float) -> float:
            return noncentral_t_cdf(statistic, freedom, value) - share

        reach = 10 + 5 * abs(statistic)
        found: Any = brentq(excess, statistic - reach, statistic + reach, xtol=1e-6)
        return float(found)

    tail = (1 - level) / 2
    low, high = noncentrality(1 - tail), noncentrality(tail)
    return Interval(
        correction * statistic * scale,
        low * scale,
        high * scale,
        n,
        level,
        "noncentral t",
    )


def _hedges(freedom: float) -> float:
    """Factor that makes the standardised difference unbiased; 0 at one degree of freedom."""
    if freedom <= 1:
        return 0.0
    logs = math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)
    return math.exp(logs) / math.sqrt(freedom / 2)


def noncentral_t_cdf(statistic: float, freedom: float, centre: float) -> float:
    """Distribution function of the noncentral t, to about 1e-5.

    The mean of ``Φ(t s − δ)`` over the quantiles of ``s = √(χ²_ν / ν)``: never NaN, which SciPy's
    own is for small probabilities.
    """
    from scipy.special import ndtr

    return float(ndtr(statistic * _scales(freedom) - centre).mean())


@lru_cache(maxsize=64)
def _scales(freedom: float) -> np.ndarray:
    """Quantiles of ``√(χ²_ν / ν)``; roots are searched for at one ν."""
    from scipy.special import chdtri

    upper = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return np.sqrt(chdtri(freedom, upper) / freedom)


def holm(p_values: ArrayLike) -> np.ndarray:
    """p-values ``[k]`` corrected for being one of k, so that one error in all is kept at the level.

    NaN stays NaN and is not counted. Source: Holm, "A simple sequentially rejective multiple test
    procedure", 1979.
    """
    values = np.asarray(p_values, np.float64)
    corrected = np.full(values.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return corrected


def seeds_needed(
    effect: float, level: float = 0.95, power: float = 0.8, paired: bool = True
) -> float:
    """Seeds on each side that would show a standardised effect with probability `power`.

    By the noncentral t of the two-sided test at ``1 − level``; inf above `MAX_SEEDS`, NaN for an
    unknown effect. The effect of a few seeds is itself uncertain, and so is this number.

    Source: Cohen, "Statistical power analysis for the behavioral sciences", 1988, ch. 2.
    """
    from scipy.stats import t

    if math.isnan(effect):
        return math.nan

    def reached(n: int) -> bool:
        freedom = n - 1 if paired else 2 * n - 2
        centre = abs(effect) * math.sqrt(n if paired else n / 2)
        limit = float(t.ppf(0.5 + level / 2, freedom))
        return 1 - noncentral_t_cdf(limit, freedom, centre) >= power

    if not effect or not reached(MAX_SEEDS):
        return math.inf
    low, high = 1, MAX_SEEDS  # reached at high, and at low there is no test
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return float(high)
