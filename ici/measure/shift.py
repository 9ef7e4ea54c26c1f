"""Distribution shift between two snapshots of one site, from their moments.

Notation: features d have mean ``μ`` and standard deviation ``σ`` in snapshot a (before) and b
(after). The Gaussian forms of the Wasserstein-2 distance and of the Kullback-Leibler divergence
are the exact ones for normal features and summaries of two moments for others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from ici.errors import InputError
from ici.measure.statistics import Moments, broadcast_leading

DEAD_STD = 1e-6


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shift:
    """Shift a -> b per feature; every array is float32 ``[..., D]``, NaN at dead features.

    Snapshots of a fixed reference batch: what moves on the same inputs is an internal shift.

    Attributes:
      mean_shift: ``(μ_b − μ_a) / σ_a``, signed, in standard deviations of a.
      scale_shift: ``ln(σ_b / σ_a)``.
      w2: ``sqrt((μ_b − μ_a)² + (σ_b − σ_a)²)``, Gaussian Wasserstein-2, in units of x.
      w2_relative: ``w2 / σ_a``.
      kl: ``KL(a‖b) = ln(σ_b/σ_a) + (σ_a² + (μ_a − μ_b)²) / (2σ_b²) − ½``, nats.
      kl_symmetric: ``KL(a‖b) + KL(b‖a)``, nats.
      dead: bool, σ below the stated ε in a or in b; `w2` is defined there, the ratios are not.

    Source:
      Ioffe & Szegedy (ICML 2015) for the notion: change in the distribution of a layer's inputs.
      Distance and divergence: the closed forms for two normal distributions, such as Givens &
      Shortt (Michigan Mathematical Journal 31, 1984) for Wasserstein-2.

    Cost:
      step: arithmetic on the moments of two snapshots; the values are not read again.

    Caveats:
      Two moments describe a normal feature whole and others in part: a shift that keeps mean and
      spread shows in percentiles and in `wasserstein1` only. Dead features (σ < ε) are left out of
      ratios and counted. Between different training batches even an unchanged network shifts:
      give the noise floor beside it.
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
                # A live feature that is not finite must show here too, as it does in the mean.
                value = jnp.nanpercentile(magnitude, percent, axis=-1)
                summary[f"{name}_p{percent}"] = jnp.where(
                    jnp.any(live & jnp.isnan(magnitude), axis=-1), jnp.nan, value
                )
        summary["dead_features"] = jnp.sum(self.dead, axis=-1, dtype=jnp.float32)
        return summary


def _expm1_minus(x: Array) -> Array:
    """``exp(x) − 1 − x``, which is never negative."""
    return jnp.maximum(jnp.expm1(x) - x, 0.0)


def shift(a: Moments, b: Moments, dead_std: float = DEAD_STD) -> Shift:
    """Shift of every feature from snapshot `a` to snapshot `b` of the same site.

    `a` and `b` broadcast over leading axes (a reference against a whole series). Features whose
    standard deviation is below `dead_std` in either snapshot are marked dead: ratios there are
    NaN and aggregates leave them out. Identical snapshots give exactly 0 everywhere.

    Raises:
      InputError: the snapshots have different numbers of features, or `dead_std` is not positive.

    Source:
      See `Shift`, which has the definitions.

    Cost:
      step: arithmetic on the moments of two snapshots.

    Caveats:
      Meant for one reference batch; between training batches see `noise_floor`.
    """
    if a.mean.shape[-1] != b.mean.shape[-1]:
        raise InputError(
            f"shift of {a.mean.shape[-1]} features to {b.mean.shape[-1]}: wanted two snapshots "
            "of the same site."
        )
    if not dead_std > 0:
        raise InputError(f"dead_std is {dead_std}: wanted a positive standard deviation.")
    a, b = broadcast_leading(a, b)
    std_a, std_b = a.std, b.std
    dead = (std_a < dead_std) | (std_b < dead_std)
    safe_a, safe_b = jnp.where(dead, 1.0, std_a), jnp.where(dead, 1.0, std_b)
    displacement = b.mean - a.mean
    w2 = jnp.hypot(displacement, std_b - std_a)
    log_ratio = jnp.log1p((safe_b - safe_a) / safe_a)

    def kl(log_ratio: Array, std_to: Array) -> Array:
        # ln r + (1/r² + (Δμ/σ)²)/2 − ½ without the difference of nearly equal terms, which for
        # shifts below 1e-3 σ would be rounding noise of either sign.
        return 0.5 * (jnp.square(displacement / std_to) + _expm1_minus(-2 * log_ratio))

    kl_ab = kl(log_ratio, safe_b)

    def live(value: Array) -> Array:
        return jnp.where(dead, jnp.nan, value)

    return Shift(
        mean_shift=live(displacement / safe_a),
        scale_shift=live(log_ratio),
        w2=w2,
        w2_relative=live(w2 / safe_a),
        kl=live(kl_ab),
        kl_symmetric=live(kl_ab + kl(-log_ratio, safe_a)),
        dead=dead,
    )


def shift_series(
    series: Moments, against: Literal["initial", "previous"] | int = "initial"
) -> Shift:
    """Shift of every snapshot of a series from an earlier one; arrays are ``[K, ..., D]``.

    Args:
      series: moments of one site with snapshots along the first axis, such as
        ``jax.tree.map(lambda *leaves: jnp.stack(leaves), *list_of_moments)``.
      against: ``"initial"`` (the first snapshot), ``"previous"`` (the one before; NaN at the
        first), or the position of a snapshot in the series.

    Raises:
      InputError: a single snapshot instead of a series, or no snapshot of that position.
    """
    if series.count.ndim < 1:
        raise InputError(
            "shift_series of one snapshot: wanted moments with snapshots along the first axis."
        )
    n = series.count.shape[0]
    if against == "previous":
        earlier = jax.tree.map(lambda leaf: jnp.concatenate([leaf[:1], leaf[:-1]]), series)
        moved = shift(earlier, series)
        return jax.tree.map(
            lambda leaf: leaf if leaf.dtype == jnp.bool_ else leaf.at[0].set(jnp.nan), moved
        )
    position = 0 if against == "initial" else against
    if isinstance(position, str) or not -n <= position < n:
        raise InputError(
            f"shift against {against!r}: wanted 'initial', 'previous' or a position among the "
            f"{n} snapshots."
        )
    first = jax.tree.map(lambda leaf: leaf[position][None], series)
    return shift(first, series)
