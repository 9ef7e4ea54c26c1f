"""Exact earth mover's distance between two samples of a site."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from ici.errors import InputError
from ici.measure.statistics import counted, pooled


def wasserstein1(x_a: Array, x_b: Array, mask: Array | None = None) -> Array:
    """Empirical Wasserstein-1 distance of each feature, float32 ``[D]``, in units of x.

    ``mean_n |sort(x_a)_n − sort(x_b)_n|`` over the pooled values of ``x_a[..., D]`` and
    ``x_b[..., D]``: the least mean distance by which one sample's values must move to become the
    other's.

    Args:
      x_a: values before.
      x_b: values after, as many.
      mask: bool of shape ``x_a.shape[:-1]``, the positions that count in both.

    Raises:
      InputError: different numbers of values or features, or a mask of another shape.

    Source:
      Huang & Yu, "An internal covariate shift bounding algorithm for deep neural networks by
      unitizing layers' outputs" (CVPR 2020), on one unit; the sorted form is the optimal transport
      on the line.

    Cost:
      reference: sorts all values of both samples, which must be kept whole: not for every step.

    Caveats:
      Between different inputs it is positive without any shift, of order σ/√N. Features with a
      value that is not finite give NaN or inf.
    """
    a_ND, b_ND = pooled(x_a), pooled(x_b)
    if a_ND.shape != b_ND.shape:
        raise InputError(
            f"wasserstein1 of {a_ND.shape[0]} values of {a_ND.shape[1]} features and "
            f"{b_ND.shape[0]} of {b_ND.shape[1]}: wanted as many of both, from one reference batch."
        )
    if mask is None:
        return jnp.mean(jnp.abs(jnp.sort(a_ND, axis=0) - jnp.sort(b_ND, axis=0)), axis=0)
    mask_N = counted(x_a, mask)
    count = jnp.sum(mask_N)
    a_ND, b_ND = (jnp.sort(jnp.where(mask_N[:, None], x, jnp.inf), axis=0) for x in (a_ND, b_ND))
    kept_N1 = (jnp.arange(a_ND.shape[0]) < count)[:, None]
    distance_ND = jnp.where(kept_N1, jnp.abs(a_ND - b_ND), 0.0)
    return jnp.sum(distance_ND, axis=0) / count
