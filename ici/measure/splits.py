"""Moments of groups of examples: how well one batch knows its own mean and spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ici.errors import InputError
from ici.measure.statistics import Configured, Moments

GROUPS = 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SplitMoments:
    """Moments of G contiguous groups of a batch's examples, and the standard errors they give.

    Examples lie along the first axis and are taken to be independent; positions or pixels of one
    example are not, and stay in one group. With group means ``m_g`` the standard error of the
    batch mean is ``sqrt(var_g(m_g)/G)``, var dividing by G - 1 (batch means); that of ``ln σ``
    is the same of ``v_g/(2σ²)``, v_g the mean over the group of ``(x − μ)²`` (linearised at the
    batch). ``SplitMoments.into(2)`` is a split in halves.

    Attributes:
      groups: `Moments` with count ``[..., G]`` and mean, m2 ``[..., G, D]``.

    Source:
      Batch means: Conway, "Some tactical problems in digital simulation" (Management Science 10,
      1963); the linearisation is the delta method.

    Cost:
      step: as `Moments`, with G times their size inside the program; the record has two arrays.

    Caveats:
      Wanted: independent examples along the first axis, G at most their number. The last
      ``B mod G`` examples are left out. Merging joins group g with group g: still one valid
      partition of the examples, but another one than a single pass would make. With a mask the
      groups weigh by the positions they keep. BatchNorm in training mode makes examples of one
      batch depend on each other a little: by an example's share of the batch.
    """

    name: ClassVar[str] = "split_moments"
    cost: ClassVar[str] = "step"
    where: ClassVar[str] = "input"

    groups: Moments

    @staticmethod
    def into(n_groups: int) -> Configured:
        """An entry of ``Probe(stats=...)``: `n_groups` groups.

        Raises:
          InputError: fewer than two groups.
        """
        if n_groups < 2:
            raise InputError(f"split into {n_groups} groups: wanted at least 2.")
        return Configured("split_moments", SplitMoments, (("n_groups", int(n_groups)),))

    @classmethod
    def of(cls, x: Array, mask: Array | None = None, *, n_groups: int = GROUPS) -> SplitMoments:
        """Moments of `n_groups` contiguous groups of the rows of ``x[B, ..., D]``.

        Raises:
          InputError: fewer than two groups, fewer examples than groups, or a mask that is not a
            bool array of shape ``x.shape[:-1]``.
        """
        if n_groups < 2:
            raise InputError(f"split into {n_groups} groups: wanted at least 2.")
        x = jnp.asarray(x)
        if x.ndim < 2:
            x = x.reshape(-1, 1)
        size = x.shape[0] // n_groups
        if not size:
            raise InputError(
                f"split_moments of {x.shape[0]} examples in {n_groups} groups: wanted at least "
                "one example per group; take a larger batch or SplitMoments.into fewer groups."
            )

        def grouped(a: Array) -> Array:
            return a[: n_groups * size].reshape(n_groups, size, *a.shape[1:])

        if mask is None:
            return cls(jax.vmap(Moments.of)(grouped(x)))
        if jnp.shape(mask) != x.shape[:-1]:
            raise InputError(
                f"mask of shape {jnp.shape(mask)} for values of shape {x.shape}: wanted "
                f"{x.shape[:-1]}, one entry per position."
            )
        return cls(jax.vmap(Moments.of)(grouped(x), grouped(jnp.asarray(mask))))

    def merge(self, other: SplitMoments) -> SplitMoments:
        """Group g of both together, for every g.

        Raises:
          InputError: the two have different numbers of groups.
        """
        if self.n_groups != other.n_groups:
            raise InputError(
                f"merge of {self.n_groups} groups with {other.n_groups}: wanted equal numbers."
            )
        return SplitMoments(self.groups.merge(other.groups))

    @property
    def n_groups(self) -> int:
        """G."""
        return self.groups.count.shape[-1]

    @property
    def total(self) -> Moments:
        """Moments of all groups together: those of the batch, but for the remainder."""
        groups = self.groups
        weight = groups.count[..., None]
        some = weight > 0
        count = jnp.sum(groups.count, axis=-1)

        def pooled_mean(values: Array) -> Array:
            return jnp.sum(jnp.where(some, weight * values, 0.0), axis=-2) / count[..., None]

        # About one group's mean: differences of large means cost no more than those themselves.
        pilot = jnp.max(jnp.where(some, groups.mean, -jnp.inf), axis=-2)
        mean = pilot + pooled_mean(groups.mean - pilot[..., None, :])
        between = jnp.square(groups.mean - mean[..., None, :])
        m2 = jnp.sum(groups.m2 + jnp.where(some, weight * between, 0.0), axis=-2)
        return Moments(count, jnp.where(count[..., None] > 0, mean, jnp.nan), m2)

    def _standard_error(self, values: Array, center: Array) -> Array:
        """Of the mean over groups, weighed by their counts, of ``values[..., G, D]``."""
        count = self.groups.count[..., None]
        weight = count / jnp.sum(count, axis=-2, keepdims=True)
        used = jnp.sum(count > 0, axis=-2)
        squared = jnp.square(weight * (values - center[..., None, :]))
        total = jnp.sum(jnp.where(count > 0, squared, 0.0), axis=-2)
        # One group left: one value has no spread to tell.
        spread = jnp.where(used > 1, used / jnp.maximum(used - 1, 1), jnp.nan)
        return jnp.sqrt(total * spread)

    def second_moments(self) -> Array:
        """``v_g``: mean over each group of the squared distance from μ, ``[..., G, D]``."""
        distance = self.groups.mean - self.total.mean[..., None, :]
        return self.groups.variance + jnp.square(distance)

    @property
    def mean_standard_error(self) -> Array:
        """Standard error of the batch mean, float32 ``[..., D]``, in units of x."""
        return self._standard_error(self.groups.mean, self.total.mean)

    @property
    def log_std_standard_error(self) -> Array:
        """Standard error of ``ln σ``, float32 ``[..., D]``, nats; NaN where σ is 0."""
        variance = self.total.variance
        return self._standard_error(self.second_moments(), variance) / (2 * variance)

    def labelled(self) -> dict[str, Array]:
        return {
            "mean_standard_error": self.mean_standard_error,
            "log_std_standard_error": self.log_std_standard_error,
        }
