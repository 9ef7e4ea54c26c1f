"""Distribution shift between two snapshots of one site, from their moments.

Notation: features d have mean ``μ`` and standard deviation ``σ`` in snapshot a (before) and b
(after). The Gaussian forms of the Wasserstein-2 distance and of the Kullback-Leibler divergence
are the exact ones for normal features and summaries of two moments for others.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from ici.errors import InputError
from ici.measure.statistics import Moments

DEAD_STD = 1e-6


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shift:
    """Shift a -> b per feature; every array is float32 ``[..., D]``, NaN at dead features.

    Attributes:
      mean_shift: ``(μ_b − μ_a) / σ_a``, signed, in standard deviations of a.
      scale_shift: ``ln(σ_b / σ_a)``.
      w2: ``sqrt((μ_b − μ_a)² + (σ_b − σ_a)²)``, Gaussian Wasserstein-2, in units of x.
      w2_relative: ``w2 / σ_a``.
      kl: ``KL(a‖b) = ln(σ_b/σ_a) + (σ_a² + (μ_a − μ_b)²) / (2σ_b²) − ½``, nats.
      kl_symmetric: ``KL(a‖b) + KL(b‖a)``, nats.
      dead: bool, σ below the stated ε in a or in b; `w2` is defined there, the ratios are not.
    """

    mean_shift: Array
    scale_shift: Array
    w2: Array
    w2_relative: Array
    kl: Array
    kl_symmetric: Array
    dead: Array

    def aggregate(self) -> dict[str, Array]:
        """Per-site summaries ``[...]`` over the live features.

        ``mean_shift`` and ``scale_shift`` are root mean squares, the others means; ``*_p50`` and
        ``*_p95`` are percentiles over features of the magnitude; ``dead_features`` counts those
        left out. A site with no live feature gives NaN.
        """
        live = ~self.dead
        n_live = jnp.sum(live, axis=-1, dtype=jnp.float32)
        n_live = jnp.where(n_live > 0, n_live, jnp.nan)

        def mean_live(value: Array) -> Array:
            return jnp.sum(jnp.where(live, value, 0.0), axis=-1) / n_live

        summary: dict[str, Array] = {}
        for name in ("mean_shift", "scale_shift"):
            summary[name] = jnp.sqrt(mean_live(jnp.square(getattr(self, name))))
        for name in ("w2", "w2_relative", "kl", "kl_symmetric"):
            summary[name] = mean_live(getattr(self, name))
        for name in tuple(summary):
            magnitude = jnp.where(live, jnp.abs(getattr(self, name)), jnp.nan)
            for percent in (50, 95):
                summary[f"{name}_p{percent}"] = jnp.nanpercentile(magnitude, percent, axis=-1)
        summary["dead_features"] = jnp.sum(self.dead, axis=-1, dtype=jnp.float32)
        return summary


def shift(a: Moments, b: Moments, dead_std: float = DEAD_STD) -> Shift:
    """Shift of every feature from snapshot `a` to snapshot `b` of the same site.

    `a` and `b` broadcast over leading axes (a reference against a whole series). Features whose
    standard deviation is below `dead_std` in either snapshot are marked dead: ratios there are
    NaN and aggregates leave them out. Identical snapshots give exactly 0 everywhere.

    Raises:
      InputError: the snapshots have different numbers of features, or `dead_std` is not positive.
    """
    if a.mean.shape[-1] != b.mean.shape[-1]:
        raise InputError(
            f"shift of {a.mean.shape[-1]} features to {b.mean.shape[-1]}: wanted two snapshots "
            "of the same site."
        )
    if not dead_std > 0:
        raise InputError(f"dead_std is {dead_std}: wanted a positive standard deviation.")
    std_a, std_b = a.std, b.std
    dead = (std_a < dead_std) | (std_b < dead_std)
    safe_a, safe_b = jnp.where(dead, 1.0, std_a), jnp.where(dead, 1.0, std_b)
    displacement = b.mean - a.mean
    w2 = jnp.hypot(displacement, std_b - std_a)
    log_ratio = jnp.log(safe_b / safe_a)
    squared = jnp.square(displacement)

    def kl(log_ratio: Array, std_from: Array, std_to: Array) -> Array:
        return log_ratio + (jnp.square(std_from) + squared) / (2 * jnp.square(std_to)) - 0.5

    kl_ab = kl(log_ratio, safe_a, safe_b)

    def live(value: Array) -> Array:
        return jnp.where(dead, jnp.nan, value)

    return Shift(
        mean_shift=live(displacement / safe_a),
        scale_shift=live(log_ratio),
        w2=w2,
        w2_relative=live(w2 / safe_a),
        kl=live(kl_ab),
        kl_symmetric=live(kl_ab + kl(-log_ratio, safe_b, safe_a)),
        dead=dead,
    )
