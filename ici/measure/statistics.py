"""Mergeable statistics of a site's values: the only things that leave a compiled step.

A *site* is the input of one layer. Its values ``x[..., D]`` are pooled over every axis but the
last; statistics are per feature and float32 whatever the compute dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from ici.errors import unknown_name


@runtime_checkable
class Statistic(Protocol):
    """What a probe can compute at a site: reduce, merge, and name the parts."""

    @classmethod
    def of(cls, x: Array) -> Self: ...

    def merge(self, other: Self) -> Self: ...

    def labelled(self) -> dict[str, Array]:
        """Named arrays for the record: ``[...]`` per site or ``[..., D]`` per feature."""
        ...


def _pooled(x: Array) -> Array:
    """``x[..., D]`` as float32 ``[N, D]``; a scalar per example counts as one feature."""
    x = jax.lax.stop_gradient(jnp.asarray(x)).astype(jnp.float32)
    return x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(-1, 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of each feature.

    Attributes:
      count: float32 ``[...]``, number of pooled values per feature.
      mean: float32 ``[..., D]``.
      m2: float32 ``[..., D]``, sum over the pooled values of ``(x - mean)**2``.

    Any leading axes (lane, step) are shared by the three. Merging follows Chan, Golub & LeVeque,
    "Algorithms for computing the sample variance" (The American Statistician 37, 1983), eq. 2.1,
    so microbatches, devices and hosts combine to what one pass over everything gives.
    """

    count: Array
    mean: Array
    m2: Array

    @classmethod
    def of(cls, x: Array) -> Moments:
        """Moments of ``x[..., D]`` over all axes but the last, from shifted data.

        The values are shifted by the mean of their first eighth, then summed with their squares
        (shifted data with a computed shift: same paper, section 3). A part f of the rows cannot
        lie further than std/√f from the mean, so the cancellation costs at most a factor 1 + 8
        in rounding however large the mean and in whatever order the rows come.
        """
        x_ND = _pooled(x)
        n = x_ND.shape[0]
        pilot_D = jnp.mean(x_ND[: max(1, n // 8)], axis=0)
        y_ND = x_ND - pilot_D[None]
        sum_D = jnp.sum(y_ND, axis=0)
        m2_D = jnp.sum(jnp.square(y_ND), axis=0) - jnp.square(sum_D) / n
        return cls(jnp.float32(n), pilot_D + sum_D / n, jnp.maximum(m2_D, 0.0))

    @classmethod
    def empty(cls, n_features: int) -> Moments:
        """Moments of no values at all: the neutral element of `merge`."""
        return cls(jnp.float32(0), jnp.zeros(n_features), jnp.zeros(n_features))

    def merge(self, other: Moments) -> Moments:
        """Moments of the two samples together. Merging with an empty sample changes nothing."""
        a, b = broadcast_leading(self, other)
        count = a.count + b.count
        share = jnp.where(count > 0, b.count / jnp.maximum(count, 1.0), 0.0)[..., None]
        delta = b.mean - a.mean
        return Moments(
            count,
            a.mean + delta * share,
            a.m2 + b.m2 + jnp.square(delta) * (a.count[..., None] * share),
        )

    @property
    def variance(self) -> Array:
        """Biased variance (divide by N), float32 ``[..., D]``."""
        return self.m2 / jnp.maximum(self.count, 1.0)[..., None]

    @property
    def std(self) -> Array:
        """Square root of `variance`."""
        return jnp.sqrt(self.variance)

    def labelled(self) -> dict[str, Array]:
        return {"count": self.count, "mean": self.mean, "std": self.std}


def broadcast_leading(a: Moments, b: Moments) -> tuple[Moments, Moments]:
    """Both with as many leading axes as the one that has more, so that one broadcasts."""
    rank = max(a.count.ndim, b.count.ndim)

    def lift(m: Moments) -> Moments:
        missing = (None,) * (rank - m.count.ndim)
        return Moments(m.count[missing], m.mean[missing], m.m2[missing])

    return lift(a), lift(b)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Extremes:
    """Smallest and largest finite value of each feature, and the share that is not finite.

    Attributes:
      count: float32 ``[...]``, number of pooled values per feature.
      minimum, maximum: float32 ``[..., D]`` over the finite values; ``inf`` and ``-inf`` if none.
      nonfinite: float32 ``[..., D]``, number of values that are NaN or infinite.
    """

    count: Array
    minimum: Array
    maximum: Array
    nonfinite: Array

    @classmethod
    def of(cls, x: Array) -> Extremes:
        x_ND = _pooled(x)
        finite_ND = jnp.isfinite(x_ND)
        return cls(
            jnp.float32(x_ND.shape[0]),
            jnp.min(x_ND, axis=0, initial=jnp.inf, where=finite_ND),
            jnp.max(x_ND, axis=0, initial=-jnp.inf, where=finite_ND),
            jnp.sum(~finite_ND, axis=0, dtype=jnp.float32),
        )

    def merge(self, other: Extremes) -> Extremes:
        return Extremes(
            self.count + other.count,
            jnp.minimum(self.minimum, other.minimum),
            jnp.maximum(self.maximum, other.maximum),
            self.nonfinite + other.nonfinite,
        )

    @property
    def max_abs(self) -> Array:
        """Largest finite magnitude, float32 ``[..., D]``."""
        return jnp.maximum(jnp.abs(self.minimum), jnp.abs(self.maximum))

    @property
    def nonfinite_fraction(self) -> Array:
        """Share of values that are NaN or infinite, float32 ``[..., D]``."""
        return self.nonfinite / jnp.maximum(self.count, 1.0)[..., None]

    def labelled(self) -> dict[str, Array]:
        return {
            "minimum": self.minimum,
            "maximum": self.maximum,
            "nonfinite_fraction": self.nonfinite_fraction,
        }


_STATISTICS: dict[str, type[Statistic]] = {"moments": Moments, "extremes": Extremes}


def register_statistic(name: str, statistic: type[Statistic]) -> None:
    """Make `statistic` available as ``Probe(stats=(name, ...))``."""
    _STATISTICS[name] = statistic


def statistic(name: str) -> type[Statistic]:
    """The statistic registered as `name`. Raises `InputError` for an unknown one."""
    if name not in _STATISTICS:
        raise unknown_name("statistic", name, tuple(_STATISTICS))
    return _STATISTICS[name]
