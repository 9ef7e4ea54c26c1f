"""Shift of every site's input distribution on the fixed reference batch.

The reference batch is the same examples at every measurement, so a network that did not change
has shift exactly 0 and there is no sampling noise to subtract.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array

from ici.analysis.records import Records, has_moments, run_dims
from ici.errors import InputError
from ici.measure import Moments, shift
from ici.measure.shift import DEAD_STD

Against = Literal["initial", "previous"] | int

_CHUNK_ROWS = 1 << 10
_CHUNK_VALUES = 1 << 21


def reference_shift(
    results: Records, against: Against = "initial", sites: Sequence[str] | None = None
) -> xr.Dataset:
    """Shift of the reference batch at every site, float32 ``(run…, step, site)``.

    Variables are those of `Shift.aggregate`: mean_shift and scale_shift (root mean square over
    features, in standard deviations of the earlier snapshot and in nats), w2, w2_relative, kl,
    kl_symmetric (means), the 50th and 95th percentile of each, and dead_features. NaN where a
    group has no such site, where a run has ended, and in all but dead_features where every
    feature is dead.

    Args:
      results: the record.
      against: the earlier snapshot: ``"initial"`` (step 0), ``"previous"`` (the measurement
        before; NaN at the first), or a step at which the reference batch was measured.
      sites: names of the sites; None is all of them.

    Raises:
      InputError: an unknown site, a step without a measurement, or no moments recorded.
    """
    return site_shift(results, results.reference, against, sites)


def site_shift(
    results: Records, node: xr.Dataset, against: Against, sites: Sequence[str] | None = None
) -> xr.Dataset:
    """`reference_shift` of any node with moments.

    On the probed training batches (``results.probe``) two snapshots see different examples, so
    that a network that does not change has the shift of its sampling noise.
    """
    _check_moments(results, node)
    reference = node[["mean", "std"]]
    if sites is not None:
        known = reference["site"].values.tolist()
        for site in sites:
            if site not in known:
                raise InputError(f"no site {site!r}: wanted one of {', '.join(known)}.")
        reference = reference.sel(site=list(sites))
    reference = reference.transpose(*run_dims(results), "step", "site", "feature").load()
    reference = reference.where(~(reference["step"] > results.runs["diverged_at"]))
    reference = reference.transpose(*run_dims(results), "step", "site", "feature")
    steps = reference["step"].values
    *lead, n_steps, n_sites, n_features = reference["mean"].shape
    rows = np.arange(int(np.prod(lead)) * n_steps * n_sites).reshape(-1, n_steps, n_sites)
    earlier, first_step = _earlier(rows, steps, against)
    aggregates = _aggregate(
        reference["mean"].values.reshape(-1, n_features),
        reference["std"].values.reshape(-1, n_features),
        _is_feature(reference["mean"].values).reshape(-1, n_features),
        earlier.reshape(-1),
    )
    dims = (*run_dims(results), "step", "site")
    variables = {}
    for name, values in aggregates.items():
        labelled = values.reshape(*lead, n_steps, n_sites)
        labelled[..., :first_step, :] = np.nan
        variables[name] = (dims, labelled)
    coordinates = {dim: reference[dim] for dim in dims}
    return xr.Dataset(variables, coordinates, attrs={"against": str(against)})


def mean_shift(results: Records, node: xr.Dataset, against: Against) -> xr.Dataset:
    """``mean_shift`` and ``dead_features`` of `site_shift` alone, float32 ``(run…, step, site)``.

    On the host and in one pass, for what looks at every site of every run: the percentiles of the
    other quantities are what takes the time.
    """
    _check_moments(results, node)
    mean, std = (
        node[name].transpose(*run_dims(results), "step", "site", "feature")
        for name in ("mean", "std")
    )
    steps = mean["step"].values
    running = ~(mean["step"] > results.runs["diverged_at"]).transpose(*run_dims(results), "step")
    *lead, n_steps, n_sites, n_features = mean.shape
    shape = (-1, n_steps, n_sites, n_features)
    means, stds = mean.values.reshape(shape), std.values.reshape(shape)
    exists = np.isfinite(means).any(axis=1, keepdims=True)
    rows = np.arange(n_steps)[:, None]
    earlier, first_step = _earlier(rows.T[..., None], steps, against)
    before = np.broadcast_to(earlier[0, :, 0], n_steps)
    mean_a, std_a = means[:, before], stds[:, before]
    with np.errstate(all="ignore"):
        dead = (std_a < DEAD_STD) | (stds < DEAD_STD)
        live = exists & ~dead
        moved = np.square(np.where(live, (means - mean_a) / std_a, 0.0), dtype=np.float64)
        n_live = live.sum(axis=-1)
        shifts = np.sqrt(moved.sum(axis=-1) / np.where(n_live, n_live, np.nan))
    recorded = exists.any(axis=-1) & (~exists | (~np.isnan(mean_a) & ~np.isnan(means))).all(axis=-1)
    recorded &= running.values.reshape(-1, n_steps)[..., None]
    recorded[:, :first_step] = False
    dims = (*run_dims(results), "step", "site")
    values = {"mean_shift": shifts, "dead_features": (exists & dead).sum(axis=-1)}
    return xr.Dataset(
        {
            name: (dims, np.where(recorded, v, np.nan).astype(np.float32).reshape(mean.shape[:-1]))
            for name, v in values.items()
        },
        {dim: mean[dim] for dim in dims},
        attrs={"against": str(against)},
    )


def _check_moments(results: Records, node: xr.Dataset) -> None:
    if not has_moments(node):
        raise InputError(
            f"{results.path} holds no mean and std of layer inputs: wanted a record whose probe "
            'has "moments" among its stats.'
        )


def _earlier(rows: np.ndarray, steps: np.ndarray, against: Against) -> tuple[np.ndarray, int]:
    """For each row ``[run, step, site]`` the row it is compared with, and how many steps have
    none."""
    if against == "previous":
        return np.concatenate([rows[:, :1], rows[:, :-1]], axis=1), 1
    step = 0 if against == "initial" else against
    position = np.flatnonzero([s == step for s in steps.tolist()])
    if not position.size:
        raise InputError(
            f"shift against {against!r}: wanted 'initial', 'previous' or a measured step, "
            f"one of {', '.join(str(s) for s in steps)}."
        )
    return np.broadcast_to(rows[:, position], rows.shape), 0


def _is_feature(mean: np.ndarray) -> np.ndarray:
    """Which features exist ``[run…, step, site, feature]``: filling is NaN at every step."""
    exists = np.isfinite(mean).any(axis=-3, keepdims=True)
    return np.broadcast_to(exists, mean.shape)


def _aggregate(
    mean: np.ndarray, std: np.ndarray, exists: np.ndarray, earlier: np.ndarray
) -> dict[str, np.ndarray]:
    """`Shift.aggregate` of each row ``[R, feature]`` against row ``earlier[R]``."""
    n_rows, n_features = mean.shape
    size = max(1, min(_CHUNK_ROWS, _CHUNK_VALUES // max(1, n_features)))
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, n_rows, size):
        # The last chunk is filled up with the last row: one shape, and so one compilation, for
        # whatever selection of runs and sites.
        now = np.minimum(np.arange(start, start + size), n_rows - 1)
        before = earlier[now]
        chunk = (mean[before], std[before], mean[now], std[now], exists[now])
        parts.append(jax.device_get(_aggregate_chunk(*jax.device_put(chunk))))
    return {name: np.concatenate([part[name] for part in parts])[:n_rows] for name in parts[0]}


@jax.jit
def _aggregate_chunk(
    mean_a: Array, std_a: Array, mean_b: Array, std_b: Array, exists: Array
) -> dict[str, Array]:
    def moments(mean: Array, std: Array) -> Moments:
        # Filling becomes a feature without spread: dead, hence outside every aggregate.
        filled = jnp.where(exists, mean, 0.0), jnp.where(exists, std, 0.0)
        return Moments(jnp.ones(mean.shape[:-1]), filled[0], jnp.square(filled[1]))

    aggregate = shift(moments(mean_a, std_a), moments(mean_b, std_b)).aggregate()
    n_filling = jnp.sum(~exists, axis=-1, dtype=jnp.float32)
    recorded = jnp.any(exists, axis=-1) & jnp.all(
        ~exists | (~jnp.isnan(mean_a) & ~jnp.isnan(mean_b)), axis=-1
    )
    aggregate["dead_features"] = aggregate["dead_features"] - n_filling
    return {name: jnp.where(recorded, value, jnp.nan) for name, value in aggregate.items()}


def shared_sites(results: Records) -> list[str]:
    """Sites that every group of runs has, in execution order.

    Raises:
      InputError: no moments recorded.
    """
    # Both nodes are of the same sites; either may lack moments.
    node = results.reference if has_moments(results.reference) else results.probe
    _check_moments(results, node)
    first = node["mean"].isel(step=0)
    has = first.notnull().any("feature")
    within_group = [dim for dim in has.dims if dim not in ("norm", "depth", "site")]
    # A group whose first measurement is not committed yet has no say.
    has = has.any(within_group)
    started = has.any("site")
    shared = (has | ~started).all([dim for dim in has.dims if dim != "site"]) & started.any()
    return has["site"].values[shared.values].tolist()


def deepest_site(results: Records) -> str:
    """The last site in execution order that every group of runs has.

    Raises:
      InputError: the groups have no site in common.
    """
    sites = shared_sites(results)
    if not sites:
        raise InputError("the groups have no site in common: wanted runs of one model family.")
    return sites[-1]
