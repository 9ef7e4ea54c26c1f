"""How much of a site's width is in use: dead units and effective rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ici.measure.statistics import broadcast_leading, counted, pooled, share_of, unless_empty

_EPS = float(jnp.finfo(jnp.float32).eps)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeadUnits:
    """Units that are at most 0 on every value of the batch, as a fraction of the width.

    After a ReLU such a unit is exactly 0 everywhere: nothing passes it, forward or backward.

    Attributes:
      count: float32 ``[...]``, number of pooled values per unit.
      maximum: float32 ``[..., D]``, largest value of each unit; ``-inf`` if there is none.

    Source:
      Lu, Shin, Su & Karniadakis, "Dying ReLU and initialization: theory and numerical examples"
      (Communications in Computational Physics 28, 2020).

    Cost:
      step: one read of the values.

    Caveats:
      Counts units over the whole batch, never zero entries. It says something where the site
      follows a nonlinearity with non-positive saturation; a normalised or centred site has none.
      A unit that is silent on a small batch may answer to a larger one.
    """

    name: ClassVar[str] = "dead_units"
    cost: ClassVar[str] = "step"
    where: ClassVar[str] = "input"

    count: Array
    maximum: Array

    @classmethod
    def of(cls, x: Array, mask: Array | None = None) -> DeadUnits:
        """Dead units of ``x[..., D]`` over all axes but the last, where `mask` is True.

        Raises:
          InputError: the mask is not a bool array of shape ``x.shape[:-1]``.
        """
        x_ND = pooled(x)
        if mask is None:
            return cls(jnp.float32(x_ND.shape[0]), jnp.max(x_ND, axis=0, initial=-jnp.inf))
        mask_N1 = counted(x, mask)[:, None]
        maximum_D = jnp.max(x_ND, axis=0, initial=-jnp.inf, where=mask_N1)
        return cls(jnp.sum(mask_N1, dtype=jnp.float32), maximum_D)

    def merge(self, other: DeadUnits) -> DeadUnits:
        a, b = broadcast_leading(self, other)
        return DeadUnits(a.count + b.count, jnp.maximum(a.maximum, b.maximum))

    @property
    def dead(self) -> Array:
        """Which units never exceed 0, bool ``[..., D]``; a unit with a NaN is not one of them."""
        return self.maximum <= 0

    @property
    def dead_fraction(self) -> Array:
        """Part of the width that is dead, float32 ``[...]``; NaN where nothing was counted."""
        fraction = jnp.mean(self.dead, axis=-1, dtype=jnp.float32)
        return jnp.where(self.count > 0, fraction, jnp.nan)

    def labelled(self) -> dict[str, Array]:
        return {"dead_fraction": self.dead_fraction}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EffectiveRank:
    """Exponential of the entropy of the normalised singular values of the centred activations.

    ``exp(−Σ p_i ln p_i)`` with ``p_i = s_i / Σ s`` lies between 1 (one direction) and the width
    (all directions alike). What merges is the triangular factor R of the centred values, whose
    singular values are theirs.

    Attributes:
      count: float32 ``[...]``, number of pooled values per feature.
      mean: float32 ``[..., D]``; NaN where nothing was counted.
      factor: float32 ``[..., D, D]``, R with ``RᵀR`` the sum of products of centred values.

    Source:
      Roy & Vetterli, "The effective rank: a measure of effective dimensionality" (EUSIPCO 2007);
      as a measure of collapse: Daneshmand et al., "Batch normalization provably avoids rank
      collapse for randomly initialised deep networks" (NeurIPS 2020).

    Cost:
      reference: a QR decomposition, 2·N·D² operations, and the singular values of a D x D matrix.

    Caveats:
      At most N − 1 for N values, so compare batches of one size. 0 where no feature varies beyond
      the rounding of its mean. Not invariant to a rescaling of single features. In a program with
      lanes or steps as leading axes each holds its own D x D factor.
    """

    name: ClassVar[str] = "effective_rank"
    cost: ClassVar[str] = "reference"
    where: ClassVar[str] = "input"

    count: Array
    mean: Array
    factor: Array

    @classmethod
    def of(cls, x: Array, mask: Array | None = None) -> EffectiveRank:
        """Effective rank of ``x[..., D]``, rows pooled over all axes but the last.

        Raises:
          InputError: the mask is not a bool array of shape ``x.shape[:-1]``.
        """
        x_ND = pooled(x)
        keep_N1 = jnp.ones((x_ND.shape[0], 1), bool) if mask is None else counted(x, mask)[:, None]
        count = jnp.sum(keep_N1, dtype=jnp.float32)
        rough_D = jnp.sum(jnp.where(keep_N1, x_ND, 0.0), axis=0) / count
        y_ND = jnp.where(keep_N1, x_ND - rough_D[None], 0.0)
        rest_D = jnp.sum(y_ND, axis=0) / count
        y_ND = jnp.where(keep_N1, y_ND - rest_D[None], 0.0)
        return cls(count, rough_D + rest_D, _triangular(y_ND))

    def merge(self, other: EffectiveRank) -> EffectiveRank:
        """That of the two samples together. Merging with an empty sample changes nothing."""
        a, b = broadcast_leading(self, other)
        count = a.count + b.count
        share = share_of(b.count, count)
        delta = b.mean - a.mean
        weight = jnp.sqrt(a.count * share)[..., None, None]
        rows = jnp.broadcast_arrays(a.factor, b.factor)
        lead = rows[0].shape[:-2]
        between = jnp.broadcast_to(weight * delta[..., None, :], (*lead, 1, delta.shape[-1]))
        stacked = jnp.concatenate([*rows, between], axis=-2)
        return EffectiveRank(
            count,
            unless_empty(a.count, b.count, a.mean, b.mean, a.mean + delta * share[..., None]),
            unless_empty(a.count, b.count, a.factor, b.factor, _triangular(stacked)),
        )

    @property
    def singular_values(self) -> Array:
        """Singular values of the centred values, float32 ``[..., D]``, descending.

        NaN where nothing was counted or a value is not finite; 0 below the rounding of the mean.
        """
        finite = jnp.all(jnp.isfinite(self.factor), axis=(-2, -1)) & (self.count > 0)
        factor = jnp.where(finite[..., None, None], self.factor, 0.0)
        s = jnp.linalg.svd(factor, compute_uv=False)
        rounding = _EPS * jnp.sqrt(self.count) * jnp.linalg.norm(self.mean, axis=-1)
        s = jnp.where(s > rounding[..., None], s, 0.0)
        return jnp.where(finite[..., None], s, jnp.nan)

    @property
    def effective_rank(self) -> Array:
        """Exponential of the entropy, float32 ``[...]``."""
        s = self.singular_values
        total = jnp.sum(s, axis=-1, keepdims=True)
        p = s / jnp.where(total == 0, 1.0, total)
        entropy = -jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1.0)), axis=-1)
        return jnp.where(total[..., 0] == 0, 0.0, jnp.exp(entropy))

    def labelled(self) -> dict[str, Array]:
        return {"effective_rank": self.effective_rank}


def effective_rank_shift(a: EffectiveRank, b: EffectiveRank) -> Array:
    """Effective rank of snapshot `b` minus that of `a`, float32 ``[...]``; below 0: collapse.

    Source:
      The difference of Roy & Vetterli's effective rank (EUSIPCO 2007) of one site's activations.

    Cost:
      reference: as `EffectiveRank`, of two snapshots.

    Caveats:
      Only batches of one size compare; the same reference batch gives 0 for an unchanged network.
    """
    a, b = broadcast_leading(a, b)
    return b.effective_rank - a.effective_rank


def _triangular(rows: Array) -> Array:
    """The factor R of ``rows[..., N, D]``, filled up with zero rows to ``[..., D, D]``."""
    factor = jnp.linalg.qr(rows, mode="r")
    missing = rows.shape[-1] - factor.shape[-2]
    return jnp.pad(factor, [(0, 0)] * (rows.ndim - 2) + [(0, missing), (0, 0)])
