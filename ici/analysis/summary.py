"""The summary of an experiment: every norm and learning rate over its seeds."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ici.analysis.convergence import run_steps_to_target
from ici.analysis.records import (
    Records,
    check_recorded,
    diverged,
    has_moments,
    last_position,
    last_recorded,
    run_dims,
    score_variable,
    still_going,
    target_of,
    training_loss,
    validation,
)
from ici.analysis.shifts import deepest_site, reference_shift
from ici.analysis.spikes import PRESETS, SpikeRule, events, score

FINAL_SHARE = 0.05
OVER_SEEDS = ("median", "min", "max")


def final_window_steps(results: Records) -> int:
    """Steps over which the final loss is averaged: the last twentieth of the run."""
    return max(1, round(FINAL_SHARE * int(results.experiment["steps"])))


def final_loss(results: Records) -> xr.DataArray:
    """Mean training loss over each run's last `final_window_steps` steps ``(run…)``, nats.

    NaN for diverged runs: they have no final loss. For a run that is still going or stopped at
    its target, the last steps are the last recorded ones.
    """
    loss = training_loss(results)
    recorded = loss.notnull()
    from_end = recorded.isel(step=slice(None, None, -1)).cumsum("step")
    from_end = from_end.isel(step=slice(None, None, -1))
    last = loss.where(recorded & (from_end <= final_window_steps(results)))
    return last.mean("step").where(~diverged(results))


def no_progress(results: Records) -> xr.DataArray:
    """Whether a run that did not diverge ended no lower than its first loss, bool ``(run…)``.

    Bjorck et al. ("Understanding batch normalization", 2018) count such runs as diverged too;
    here they are told apart.
    """
    return final_loss(results) >= training_loss(results).isel(step=0, drop=True)


def run_spikes(results: Records, rule: SpikeRule = PRESETS["olmo_core"]) -> xr.DataArray:
    """Number of spike events in each run's training loss, float64 ``(run…)``.

    NaN where a run is too short for the rule to judge a single value.
    """
    loss = training_loss(results)
    runs = loss.values.reshape(-1, loss.sizes["step"])
    counts = np.array([len(events(series, rule)) for series in runs], dtype=np.float64)
    counts[score(runs, rule).n_judged == 0] = np.nan
    shape = loss.shape[:-1]
    return loss.isel(step=0, drop=True).astype(np.float64).copy(data=counts.reshape(shape))


def final_shift(results: Records, site: str | None = None) -> xr.Dataset:
    """Reference-batch shift of one site at each run's last measurement against step 0.

    Variables as in `reference_shift`, ``(run…)``; NaN for diverged runs. The site is the deepest
    that all runs share unless given.
    """
    site = deepest_site(results) if site is None else site
    shifts = reference_shift(results, "initial", [site]).isel(site=0, drop=True)
    last = shifts.isel(step=last_position(shifts["dead_features"])).drop_vars("step")
    return last.where(~diverged(results))


def count_features(results: Records, site: str) -> int:
    """Number of features that a site has in any run."""
    exists = results.reference["mean"].sel(site=site).notnull()
    return int(exists.any([dim for dim in exists.dims if dim != "feature"]).sum())


def over_seeds(values: xr.DataArray) -> xr.DataArray:
    """Median, minimum and maximum over the seeds whose value is not NaN, ``(…, over_seeds)``."""
    numbers: np.ndarray = values.transpose(..., "seed").values.astype(np.float64)
    known: np.ndarray = np.logical_not(np.isnan(numbers))
    none: np.ndarray = np.logical_not(known.any(axis=-1))
    # A row without any value would make NumPy warn; it gets a number that is blanked below.
    filled = np.where(none[..., None], 0.0, numbers)
    known = known | none[..., None]
    statistics = np.stack(
        [
            np.nanmedian(filled, axis=-1),
            np.min(filled, axis=-1, where=known, initial=np.inf),
            np.max(filled, axis=-1, where=known, initial=-np.inf),
        ],
        axis=-1,
    )
    statistics[none] = np.nan
    dims = [dim for dim in values.dims if dim != "seed"]
    coordinates = {dim: values[dim] for dim in dims}
    return xr.DataArray(
        statistics, {**coordinates, "over_seeds": list(OVER_SEEDS)}, [*dims, "over_seeds"]
    )


def _censored(results: Records, steps: xr.DataArray) -> xr.DataArray:
    """Steps to target over seeds: a run still going counts as not yet, and where that decides the
    answer, there is none (NaN)."""
    going = still_going(results) & steps.isnull()
    summary = over_seeds(steps.fillna(np.inf))
    return summary.where(np.isfinite(summary) | ~going.any("seed"))


def summarise(results: Records, rule: SpikeRule = PRESETS["olmo_core"]) -> xr.Dataset:
    """What each norm and learning rate came to, over seeds.

    Dimensions are those of the runs without seed. With a further dimension ``over_seeds``
    (median, min, max):

    - ``steps_to_target``: over all seeds, inf where missed; absent without a target.
    - ``final_loss`` (training), ``validation_accuracy`` or, unless classes are predicted,
      ``validation_loss`` (last evaluation), ``shift``
      (reference batch, deepest shared site, last measurement against step 0: mean shift, root
      mean square over features, in standard deviations) and ``dead_features`` (features of that
      site left out of ``shift`` for having no spread at either time): over the seeds that did
      not diverge. ``shift`` and ``dead_features`` are absent where the record has no moments.

    Without it: ``n_seeds_`` and one of the names above but the first (on how many seeds that cell
    rests: those whose value is not NaN), ``spikes`` (events of all seeds together, NaN where no
    value was judged), ``n_diverged``, ``n_no_progress``, ``n_dead`` (seeds all of whose features
    at the deepest site are dead; absent without moments) and ``n_going``, numbers of seeds.
    Attributes hold the constants: n_seeds, target (a text), spike_rule, final_window_steps,
    deepest_site, n_features (the last two None without moments).

    Raises:
      InputError: nothing is recorded yet, or the groups share no site.
    """
    check_recorded(results)
    has_diverged = diverged(results)
    score = score_variable(results)
    last_score = last_recorded(validation(results, score)).where(~has_diverged)
    target = target_of(results)
    spikes = run_spikes(results, rule)
    values = {"final_loss": final_loss(results), f"validation_{score}": last_score}
    site = n_features = None
    if has_moments(results.reference):
        site = deepest_site(results)
        shifts = final_shift(results, site)
        values |= {"shift": shifts["mean_shift"], "dead_features": shifts["dead_features"]}
        n_features = count_features(results, site)
    summary = xr.Dataset(
        {name: over_seeds(per_run) for name, per_run in values.items()}
        | {f"n_seeds_{name}": per_run.notnull().sum("seed") for name, per_run in values.items()}
        | {
            "spikes": spikes.sum("seed", min_count=1),
            "n_diverged": has_diverged.sum("seed"),
            "n_no_progress": no_progress(results).sum("seed"),
            "n_going": still_going(results).sum("seed"),
        }
    )
    if site is not None:
        summary["n_dead"] = summary["n_seeds_dead_features"] - summary["n_seeds_shift"]
    if target is not None:
        summary["steps_to_target"] = _censored(results, run_steps_to_target(results))
    summary.attrs = {
        "n_seeds": int(results.runs.sizes["seed"]),
        "target": None if target is None else str(target),
        "spike_rule": rule.describe(),
        "final_window_steps": final_window_steps(results),
        "deepest_site": site,
        "n_features": n_features,
    }
    return summary.transpose(*[d for d in run_dims(results) if d != "seed"], ...)
