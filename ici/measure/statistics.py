"""Mergeable statistics of a site's values: the only things that leave a compiled step.

A *site* is the input of one layer. Its values ``x[..., D]`` are pooled over every axis but the
last; statistics are per feature and float32 whatever the compute dtype. A mask says which
positions count: what it leaves out is not read, be it NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from ici.errors import InputError, unknown_name


@runtime_checkable
class Statistic(Protocol):
    """What a probe can compute at a site: reduce, merge, and name the parts.

    Optional class attributes: ``cost``, ``"step"`` (cheap enough for every step; assumed where
    it is missing) or ``"reference"`` (for the reference batch, at a cadence); and ``where``,
    ``"input"`` (a layer's input; assumed), ``"attention"`` (queries and keys), ``"output"``, or
    ``"block"`` (a block's gradient, update and weights).
    """

    @classmethod
    def of(cls, *args: Any, **kwargs: Any) -> Self:
        """The statistic of ``x[..., D]``; with a ``mask`` parameter, of the positions it keeps."""
        ...

    def merge(self, other: Self) -> Self: ...

    def labelled(self) -> dict[str, Array]:
        """Named arrays for the record: ``[...]`` per site or ``[..., D]`` per feature."""
        ...


@dataclass(frozen=True)
class Configured:
    """A statistic with settings of its own, for ``Probe(stats=(...,))``.

    `name` is what its readings are filed under; ``of`` is the statistic's with these settings.
    """

    name: str
    statistic: Any
    settings: tuple[tuple[str, Any], ...]

    @property
    def cost(self) -> str:
        """The statistic's cost class."""
        return getattr(self.statistic, "cost", "step")

    @property
    def where(self) -> str:
        """What the statistic is taken of."""
        return getattr(self.statistic, "where", "input")

    def of(self, x: Array, mask: Array | None = None) -> Any:
        """The statistic of `x`."""
        return self.statistic.of(x, mask, **dict(self.settings))


def pooled(x: Array) -> Array:
    """``x[..., D]`` as float32 ``[N, D]``; a scalar per example counts as one feature."""
    x = jax.lax.stop_gradient(jnp.asarray(x)).astype(jnp.float32)
    return x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(-1, 1)


def counted(x: Array, mask: Array) -> Array:
    """`mask` as bool ``[N]``, one entry per row of ``pooled(x)``.

    Raises:
      InputError: the mask is not bool or not of the shape of `x` without its features.
    """
    wanted = jnp.shape(x)[:-1] if jnp.ndim(x) > 1 else jnp.shape(x)
    if jnp.shape(mask) != wanted:
        raise InputError(
            f"mask of shape {jnp.shape(mask)} for values of shape {jnp.shape(x)}: wanted "
            f"{wanted}, one entry per position."
        )
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise InputError(f"mask of {mask.dtype}: wanted bool, such as `tokens != padding`.")
    return mask.reshape(-1)


_S = TypeVar("_S")


def broadcast_leading(a: _S, b: _S) -> tuple[_S, _S]:
    """Both with as many leading axes as the one that has more, so that one broadcasts."""
    rank_a, rank_b = jnp.ndim(a.count), jnp.ndim(b.count)  # pyright: ignore[reportAttributeAccessIssue]

    def lift(statistic: _S, missing: int) -> _S:
        return jax.tree.map(lambda leaf: leaf[(None,) * missing], statistic)

    return lift(a, max(0, rank_b - rank_a)), lift(b, max(0, rank_a - rank_b))


def share_of(b_count: Array, count: Array) -> Array:
    """Part of the pooled values that came from b; 0 where there are none."""
    return jnp.where(count > 0, b_count / jnp.maximum(count, 1.0), 0.0)


def unless_empty(a_count: Array, b_count: Array, a: Array, b: Array, merged: Array) -> Array:
    """`merged`, except where one sample has no values: there it is the other one's entry."""
    more = (...,) + (None,) * (merged.ndim - max(a_count.ndim, b_count.ndim))
    return jnp.where((b_count > 0)[more], jnp.where((a_count > 0)[more], merged, b), a)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of each feature.

    Attributes:
      count: float32 ``[...]``, number of pooled values per feature.
      mean: float32 ``[..., D]``; NaN where nothing was counted, like all that follows from it.
      m2: float32 ``[..., D]``, sum over the pooled values of ``(x - mean)**2``.

    Any leading axes (lane, step) are shared by the three. Microbatches, devices and hosts merge
    to what one pass over everything gives.

    Source:
      Chan, Golub & LeVeque, "Algorithms for computing the sample variance" (The American
      Statistician 37, 1983): eq. 2.1 for merging, section 3 for the shifted data of one pass.

    Cost:
      step: two reads of the values, within a few per cent of a training step.

    Caveats:
      The standard deviation divides by N, not N - 1. A feature whose squared deviations sum to
      more than float32 holds (deviations of 1e18 and up) has an infinite standard deviation.
    """

    name: ClassVar[str] = "moments"
    cost: ClassVar[str] = "step"
    where: ClassVar[str] = "input"

    count: Array
    mean: Array
    m2: Array

    @classmethod
    def of(cls, x: Array, mask: Array | None = None) -> Moments:
        """Moments of ``x[..., D]`` over all axes but the last, where `mask` (if any) is True.

        Without a mask the values are shifted by the mean of their first eighth, then summed with
        their squares. A part f of the rows cannot lie further than std/√f from the mean, so the
        cancellation costs at most a factor 1 + 8 in rounding however large the mean and in
        whatever order the rows come. With one, whose first rows may all be padding, the shift is
        the mean itself.

        Raises:
          InputError: the mask is not a bool array of shape ``x.shape[:-1]``.
        """
        x_ND = pooled(x)
        if mask is None:
            n = x_ND.shape[0]
            count = jnp.float32(n)
            pilot_D = jnp.mean(x_ND[: max(1, n // 8)], axis=0)
            y_ND = x_ND - pilot_D[None]
        else:
            mask_N1 = counted(x, mask)[:, None]
            count = jnp.sum(mask_N1, dtype=jnp.float32)
            n = count
            pilot_D = jnp.sum(jnp.where(mask_N1, x_ND, 0.0), axis=0) / n
            y_ND = jnp.where(mask_N1, x_ND - pilot_D[None], 0.0)
        sum_D = jnp.sum(y_ND, axis=0)
        squares_D = jnp.sum(jnp.square(y_ND), axis=0)
        m2_D = squares_D - jnp.square(sum_D) / n
        # Past the range of float32 the difference would be NaN, which says less.
        m2_D = jnp.where(jnp.isposinf(squares_D), jnp.inf, m2_D)
        if mask is not None:
            m2_D = jnp.where(count > 0, m2_D, 0.0)
        return cls(count, pilot_D + sum_D / n, jnp.maximum(m2_D, 0.0))

    @classmethod
    def empty(cls, n_features: int) -> Moments:
        """Moments of no values at all: the neutral element of `merge`."""
        return cls(jnp.float32(0), jnp.full(n_features, jnp.nan), jnp.zeros(n_features))

    def merge(self, other: Moments) -> Moments:
        """Moments of the two samples together. Merging with an empty sample changes nothing."""
        a, b = broadcast_leading(self, other)
        count = a.count + b.count
        share = share_of(b.count, count)[..., None]
        delta = b.mean - a.mean
        m2 = a.m2 + b.m2 + jnp.square(delta) * (a.count[..., None] * share)
        return Moments(
            count,
            unless_empty(a.count, b.count, a.mean, b.mean, a.mean + delta * share),
            unless_empty(a.count, b.count, a.m2, b.m2, m2),
        )

    @property
    def variance(self) -> Array:
        """Biased variance (divide by N), float32 ``[..., D]``; NaN where nothing was counted."""
        return self.m2 / self.count[..., None]

    @property
    def std(self) -> Array:
        """Square root of `variance`."""
        return jnp.sqrt(self.variance)

    def labelled(self) -> dict[str, Array]:
        return {"count": self.count, "mean": self.mean, "std": self.std}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Extremes:
    """Smallest and largest finite value of each feature, and the share that is not finite.

    Attributes:
      count: float32 ``[...]``, number of pooled values per feature.
      minimum, maximum: float32 ``[..., D]`` over the finite values; ``inf`` and ``-inf`` if none,
        for which the record has NaN.
      nonfinite: float32 ``[..., D]``, number of values that are NaN or infinite.

    Cost:
      step: one read of the values.

    Caveats:
      Extremes grow with the number of values: compare only batches of the same size.
    """

    name: ClassVar[str] = "extremes"
    cost: ClassVar[str] = "step"
    where: ClassVar[str] = "input"

    count: Array
    minimum: Array
    maximum: Array
    nonfinite: Array

    @classmethod
    def of(cls, x: Array, mask: Array | None = None) -> Extremes:
        """Extremes of ``x[..., D]`` over all axes but the last, where `mask` (if any) is True.

        Raises:
          InputError: the mask is not a bool array of shape ``x.shape[:-1]``.
        """
        x_ND = pooled(x)
        finite_ND = jnp.isfinite(x_ND)
        broken_ND = ~finite_ND
        count = jnp.float32(x_ND.shape[0])
        if mask is not None:
            mask_N = counted(x, mask)
            finite_ND, broken_ND = finite_ND & mask_N[:, None], broken_ND & mask_N[:, None]
            count = jnp.sum(mask_N, dtype=jnp.float32)
        return cls(
            count,
            jnp.min(x_ND, axis=0, initial=jnp.inf, where=finite_ND),
            jnp.max(x_ND, axis=0, initial=-jnp.inf, where=finite_ND),
            jnp.sum(broken_ND, axis=0, dtype=jnp.float32),
        )

    def merge(self, other: Extremes) -> Extremes:
        a, b = broadcast_leading(self, other)
        return Extremes(
            a.count + b.count,
            jnp.minimum(a.minimum, b.minimum),
            jnp.maximum(a.maximum, b.maximum),
            a.nonfinite + b.nonfinite,
        )

    @property
    def max_abs(self) -> Array:
        """Largest finite magnitude, float32 ``[..., D]``; NaN where no value is finite."""
        largest = jnp.maximum(jnp.abs(self.minimum), jnp.abs(self.maximum))
        return jnp.where(self.minimum <= self.maximum, largest, jnp.nan)

    @property
    def nonfinite_fraction(self) -> Array:
        """Share of values that are NaN or infinite, float32 ``[..., D]``."""
        return self.nonfinite / self.count[..., None]

    def labelled(self) -> dict[str, Array]:
        some = self.minimum <= self.maximum
        return {
            "minimum": jnp.where(some, self.minimum, jnp.nan),
            "maximum": jnp.where(some, self.maximum, jnp.nan),
            "nonfinite_fraction": self.nonfinite_fraction,
        }


_STATISTICS: dict[str, Any] = {"moments": Moments, "extremes": Extremes}
_OWN = {"moments", "extremes"}


def own_statistic(kind: Any) -> None:
    """Registers one of this package's own, whose name nobody else may take."""
    _STATISTICS[kind.name] = kind
    _OWN.add(kind.name)


def register_statistic(name: str, statistic: type[Statistic]) -> None:
    """Make `statistic` available as ``Probe(stats=(name, ...))``.

    Raises:
      InputError: it has no ``of``, or the name is one of this package's own.
    """
    if name in _OWN:
        raise InputError(f"statistic {name!r} is already there: wanted a name of its own.")
    if not callable(getattr(statistic, "of", None)):
        raise InputError(
            f"statistic {name!r} is {statistic!r}: wanted a class with of, merge and labelled."
        )
    _STATISTICS[name] = statistic


def statistic_names() -> tuple[str, ...]:
    """Names of the registered statistics, in the order of their registration."""
    return tuple(_STATISTICS)


def statistic(name: str) -> type[Statistic]:
    """The statistic registered as `name`. Raises `InputError` for an unknown one."""
    if name not in _STATISTICS:
        raise unknown_name("statistic", name, tuple(_STATISTICS))
    return _STATISTICS[name]
