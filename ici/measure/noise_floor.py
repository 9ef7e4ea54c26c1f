"""What two training batches would seem to shift by if nothing had shifted."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ici.errors import InputError
from ici.measure.shift import DEAD_STD
from ici.measure.splits import SplitMoments

Floats = NDArray[np.float64]

_MOST_RELABELINGS = 20_000
_N_RANDOM = 9_999


@dataclass(frozen=True)
class NoiseFloor:
    """Sampling noise in the shift from batch a to batch b, and whether more than that is there.

    Per feature, NaN at dead features; in σ of a (mean shift) and in nats (scale shift).

    Attributes:
      mean_shift, scale_shift: float64 ``[..., D]``, root mean square of the shift that sampling
        alone gives.
      mean_shift_threshold, scale_shift_threshold: float64 ``[..., D]``, magnitude that a feature
        without a shift exceeds with probability alpha.
      mean_shift_p_value, scale_shift_p_value: float64 ``[...]``, of a whole site: probability of
        a difference at least this large, over all features, if nothing had shifted.
      dead: bool ``[..., D]``, features whose σ is below the stated ε.
      alpha: level of the thresholds.
    """

    mean_shift: Floats
    scale_shift: Floats
    mean_shift_threshold: Floats
    scale_shift_threshold: Floats
    mean_shift_p_value: Floats
    scale_shift_p_value: Floats
    dead: NDArray[np.bool_]
    alpha: float

    def aggregate(self) -> dict[str, Floats]:
        """Floors of ``Shift.aggregate()``'s root mean squares, and the p-values, ``[...]``."""
        live = np.maximum(np.sum(~self.dead, axis=-1), 1)
        summary: dict[str, Any] = {}
        for name in ("mean_shift", "scale_shift"):
            squares = np.square(np.where(self.dead, 0.0, getattr(self, name)))
            rms = np.sqrt(np.sum(squares, axis=-1) / live)
            summary[name] = np.where(np.all(self.dead, axis=-1), np.nan, rms)
            summary[f"{name}_p_value"] = getattr(self, f"{name}_p_value")
        return summary


def noise_floor(
    a: SplitMoments, b: SplitMoments, alpha: float = 0.05, dead_std: float = DEAD_STD
) -> NoiseFloor:
    """Floor, thresholds and tests for the shift between two training batches of one site.

    Per feature: batches of independent examples differ by ``sqrt(se_a² + se_b²)``, with the
    standard errors of `SplitMoments`; a threshold is that times the Student t quantile of 2(G − 1)
    degrees of freedom. Per site: if nothing shifted, the 2G groups might as well have been dealt
    out to the two batches in any other way; the p-value is the share of dealings whose batches
    differ at least as much (Euclidean norm of the difference over features, each in its σ over
    both). However strongly features depend on each other, that test stays exact.

    Args:
      a: split moments of the first batch.
      b: those of the second, with as many groups, each of as many values as those of a.
      alpha: level of the thresholds, for one feature.
      dead_std: features with a smaller standard deviation in a or b are left out.

    Raises:
      InputError: different numbers of groups, features or leading axes; alpha outside (0, 1).

    Source:
      Permutation test: Fisher, "The design of experiments" (1935), section 21; batch means: Conway
      (Management Science 10, 1963); Student's t.

    Cost:
      reference: on the host, from the small arrays of two `SplitMoments`; with more than 8 groups
      9,999 random dealings stand for all of them.

    Caveats:
      A shift is between distributions of training batches: it also holds what the data did. On a
      fixed reference batch there is no floor to subtract. Thresholds hold feature by feature: of D
      features alpha·D exceed theirs without a shift. They are those of normal group means: exact
      for normal features, close with a few examples per group, and for scale shifts of long-tailed
      features too low. The smallest p-value is ``2/binomial(2G, G)``: a third for halves.
    """
    mine, theirs = (jax.device_get((m.groups, m.total)) for m in (a, b))
    (groups_a, total_a), (groups_b, total_b) = mine, theirs
    if groups_a.mean.shape != groups_b.mean.shape:
        raise InputError(
            f"noise floor of groups {groups_a.mean.shape} and {groups_b.mean.shape}: wanted the "
            "same number of groups and features in both batches."
        )
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}: wanted a probability between 0 and 1.")
    std_a, std_b = (_double(total.std) for total in (total_a, total_b))
    dead = (std_a < dead_std) | (std_b < dead_std)
    live_std = np.where(dead, np.nan, std_a)
    mean_error = np.hypot(*(_double(m.mean_standard_error) for m in (a, b))) / live_std
    scale_error = np.hypot(*(_double(m.log_std_standard_error) for m in (a, b)))
    scale_error = np.where(dead, np.nan, scale_error)
    quantile = _student_quantile(alpha, a.n_groups)
    mean_p, scale_p = _site_p_values(groups_a, groups_b, dead)
    return NoiseFloor(
        mean_error,
        scale_error,
        quantile * mean_error,
        quantile * scale_error,
        mean_p,
        scale_p,
        dead,
        alpha,
    )


def difference_threshold(
    standard_error_a: ArrayLike, standard_error_b: ArrayLike, n_groups: int, alpha: float = 0.05
) -> Floats:
    """Magnitude that a difference of two batches exceeds with probability alpha by sampling alone.

    For standard errors that were recorded at training steps: ``t · sqrt(se_a² + se_b²)`` with the
    Student t quantile of ``2(n_groups − 1)`` degrees of freedom, in the unit of the errors.

    Raises:
      InputError: alpha outside (0, 1), or fewer than two groups.
    """
    if not 0 < alpha < 1 or n_groups < 2:
        raise InputError(
            f"alpha is {alpha} with {n_groups} groups: wanted a probability between 0 and 1 and at "
            "least 2 groups."
        )
    error = np.hypot(_double(standard_error_a), _double(standard_error_b))
    return _student_quantile(alpha, n_groups) * error


def _double(values: ArrayLike) -> Floats:
    return np.asarray(values, np.float64)


def _student_quantile(alpha: float, n_groups: int) -> float:
    from scipy.stats import t

    return float(t.ppf(1 - alpha / 2, 2 * (n_groups - 1)))


def _site_p_values(groups_a: Any, groups_b: Any, dead: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """p-values of mean and scale shift ``[...]`` from the moments of the groups ``[..., G]``."""
    count = np.concatenate([_double(groups_a.count), _double(groups_b.count)], axis=-1)[..., None]
    mean = np.concatenate([_double(groups_a.mean), _double(groups_b.mean)], axis=-2)
    m2 = np.concatenate([_double(groups_a.m2), _double(groups_b.m2)], axis=-2)
    total = np.sum(count, axis=-2, keepdims=True)
    share = count / np.where(total > 0, total, np.nan)
    mean = np.where(count > 0, mean, 0.0)
    center = np.sum(share * mean, axis=-2, keepdims=True)
    second = m2 / np.where(count > 0, count, 1.0) + np.square(mean - center)
    variance = np.sum(share * second, axis=-2, keepdims=True)
    keep = ~dead[..., None, :]
    safe = np.where(keep, variance, 1.0)
    displacement = np.where(keep, (mean - center) / np.sqrt(safe), 0.0)
    excess = np.where(keep, second / safe - 1, 0.0)
    undefined = np.all(dead, axis=-1)

    def p_value(values: Floats) -> Floats:
        weighted = share * values
        products = weighted @ np.swapaxes(weighted, -1, -2)
        return np.where(undefined, np.nan, _permutation_p_value(products))

    return p_value(displacement), p_value(excess)


def _permutation_p_value(products: Floats) -> Floats:
    """Share of the dealings of 2G groups whose two halves differ at least as much as the first.

    `products` ``[..., 2G, 2G]`` are the inner products of the groups' vectors: with a sign per
    group (minus: first half), the squared norm of the difference is a quadratic form of them.
    """
    signs = _dealings(products.shape[-1] // 2)
    norms = np.einsum("sg,...gh,sh->...s", signs, products, signs, optimize=True)
    actual = norms[..., :1]
    # Dealings that differ only by rounding are as large as the actual one, never smaller.
    share = np.mean(norms >= actual * (1 - 1e-9), axis=-1)
    return np.where(np.isfinite(actual[..., 0]), share, np.nan)


def _dealings(n_groups: int) -> Floats:
    """Signs ``[n, 2G]`` of ways to deal 2G groups into halves, the actual one first.

    All of them, each once up to exchanging the halves; beyond a limit, random ones.
    """
    n = 2 * n_groups
    if math.comb(n, n_groups) // 2 <= _MOST_RELABELINGS:
        others = itertools.combinations(range(1, n), n_groups - 1)
        chosen = np.array([(0, *rest) for rest in others])
    else:
        rng = np.random.default_rng(0)
        shuffled = rng.permuted(np.tile(np.arange(n), (_N_RANDOM, 1)), axis=1)
        chosen = np.concatenate([np.arange(n_groups)[None], shuffled[:, :n_groups]])
    signs = np.ones((len(chosen), n))
    np.put_along_axis(signs, chosen, -1.0, axis=1)
    return signs
