"""Skewness and excess kurtosis: the shape of a site's distribution beyond mean and spread."""

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
class HigherMoments:
    """Standardised third and fourth central moments of each feature.

    With ``z = (x − μ)/σ``: skewness is the mean of ``z³``, excess kurtosis that of ``z⁴`` minus 3;
    both are 0 for a normal feature. Kept standardised, so that fourth powers never leave the
    range of float32.

    Attributes:
      count: float32 ``[...]``, number of pooled values per feature.
      mean, std: float32 ``[..., D]``; NaN mean and zero std where nothing was counted.
      cubed: float32 ``[..., D]``, mean of ``z³``; 0 where the feature does not vary.
      fourth: float32 ``[..., D]``, mean of ``z⁴``; 0 where the feature does not vary.

    Source:
      Pébay, "Formulas for robust, one-pass parallel computation of covariances and arbitrary-order
      statistical moments" (Sandia report SAND2008-6212, 2008): the pairwise updates of the third
      and fourth, divided by powers of the merged standard deviation.

    Cost:
      step: four reads of the values.

    Caveats:
      Biased (divided by N): both shrink in small batches, and the kurtosis of N values is below N.
      NaN where a feature varies by no more than the rounding of its own mean.
    """

    name: ClassVar[str] = "higher_moments"
    cost: ClassVar[str] = "step"
    where: ClassVar[str] = "input"

    count: Array
    mean: Array
    std: Array
    cubed: Array
    fourth: Array

    @classmethod
    def of(cls, x: Array, mask: Array | None = None) -> HigherMoments:
        """Moments of ``x[..., D]`` over all axes but the last, where `mask` (if any) is True.

        Raises:
          InputError: the mask is not a bool array of shape ``x.shape[:-1]``.
        """
        x_ND = pooled(x)
        keep_N1 = jnp.ones((x_ND.shape[0], 1), bool) if mask is None else counted(x, mask)[:, None]
        count = jnp.sum(keep_N1, dtype=jnp.float32)

        def mean_of(y_ND: Array) -> Array:
            return jnp.sum(jnp.where(keep_N1, y_ND, 0.0), axis=0) / count

        # A mean of large values is off by its rounding; the mean of what is left is not.
        rough_D = mean_of(x_ND)
        rest_D = mean_of(x_ND - rough_D[None])
        y_ND = jnp.where(keep_N1, x_ND - rough_D[None] - rest_D[None], 0.0)
        scale_D = jnp.max(jnp.abs(y_ND), axis=0, initial=0.0)
        y_ND = y_ND / jnp.where(scale_D > 0, scale_D, 1.0)[None]
        std_D = jnp.sqrt(mean_of(jnp.square(y_ND)))
        z_ND = y_ND / jnp.where(std_D > 0, std_D, 1.0)[None]
        some = count > 0
        return cls(
            count,
            rough_D + rest_D,
            jnp.where(some, std_D * scale_D, 0.0),
            jnp.where(some, mean_of(z_ND * jnp.square(z_ND)), 0.0),
            jnp.where(some, mean_of(jnp.square(jnp.square(z_ND))), 0.0),
        )

    def merge(self, other: HigherMoments) -> HigherMoments:
        """Moments of the two samples together. Merging with an empty sample changes nothing."""
        a, b = broadcast_leading(self, other)
        count = a.count + b.count
        of_b = share_of(b.count, count)[..., None]
        of_a = 1 - of_b
        delta = b.mean - a.mean
        within = jnp.hypot(jnp.sqrt(of_a) * a.std, jnp.sqrt(of_b) * b.std)
        std = jnp.hypot(within, jnp.sqrt(of_a * of_b) * delta)
        unit = jnp.where(std > 0, std, 1.0)
        d, r_a, r_b = delta / unit, a.std / unit, b.std / unit
        product = of_a * of_b
        cubed_a, cubed_b = r_a * r_a**2 * a.cubed, r_b * r_b**2 * b.cubed
        cubed = (
            of_a * cubed_a
            + of_b * cubed_b
            + 3 * product * d * (r_b**2 - r_a**2)
            + product * (of_a - of_b) * d**3
        )
        fourth = (
            of_a * r_a**4 * a.fourth
            + of_b * r_b**4 * b.fourth
            + 4 * product * d * (cubed_b - cubed_a)
            + 6 * product * d**2 * (of_a * r_b**2 + of_b * r_a**2)
            + product * (of_a**2 - product + of_b**2) * d**4
        )
        merged = {"mean": a.mean + delta * of_b, "std": std, "cubed": cubed, "fourth": fourth}
        return HigherMoments(
            count,
            **{
                name: unless_empty(a.count, b.count, getattr(a, name), getattr(b, name), value)
                for name, value in merged.items()
            },
        )

    def _defined(self, value: Array) -> Array:
        varies = self.std > _EPS * jnp.abs(self.mean)
        return jnp.where((self.count > 0)[..., None] & varies, value, jnp.nan)

    @property
    def skewness(self) -> Array:
        """Mean of ``z³``, float32 ``[..., D]``."""
        return self._defined(self.cubed)

    @property
    def excess_kurtosis(self) -> Array:
        """Mean of ``z⁴`` minus 3, float32 ``[..., D]``."""
        return self._defined(self.fourth - 3)

    def labelled(self) -> dict[str, Array]:
        return {"skewness": self.skewness, "excess_kurtosis": self.excess_kurtosis}
