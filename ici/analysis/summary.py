"""The summary of an experiment: every norm and learning rate over its seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ici.analysis.convergence import run_steps_to_target
from ici.analysis.parts import common_sites, lined_up, not_begun, parts
from ici.analysis.records import (
    Records,
    Target,
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
from ici.analysis.shifts import deepest_site, mean_shift, reference_shift
from ici.measure.spikes import PRESETS, SpikeRule, events, score

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
    scores = score(runs, rule)
    counts = np.where(scores.n_judged > 0, 0.0, np.nan)
    for i in np.flatnonzero(scores.n_spikes):
        counts[i] = len(events(runs[i], rule))
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


def _final_mean_shift(results: Records, site: str) -> xr.Dataset:
    shifts = mean_shift(results, results.reference.sel(site=[site]), "initial")
    shifts = shifts.isel(site=0, drop=True)
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


def _censored(table: xr.Dataset) -> xr.DataArray:
    """Steps to target over seeds: a run still going counts as not yet, and where that decides the
    answer, there is none (NaN)."""
    steps = table["steps_to_target"]
    going = table["going"] & steps.isnull()
    summary = over_seeds(steps.fillna(np.inf))
    return summary.where(np.isfinite(summary) | ~going.any("seed"))


def run_table(
    results: Records,
    rule: SpikeRule = PRESETS["olmo_core"],
    site: str | None = None,
    target: Target | None = None,
) -> xr.Dataset:
    """What each run came to, ``(run…)``; the numbers behind every table and comparison.

    - ``diverged_at``: step whose update was refused, NaN for none; ``going``: steps to come.
    - ``final_loss`` (training; NaN where diverged), ``first_loss``, ``no_progress``.
    - ``validation_accuracy`` or, unless classes are predicted, ``validation_loss``: the last
      evaluation, and with ``best_`` in front the best one; NaN where diverged.
    - ``spikes``: events, NaN where no value was judged.
    - ``steps_to_target``: inf where missed, NaN where not met yet; absent without a target.
    - ``shift``, ``dead_features``: of `site` at the last measurement against step 0; absent
      without moments.

    Args:
      results: the record, or a part of one.
      rule: what counts as a spike.
      site: whose shift; the deepest that all runs share unless given.
      target: the experiment's own unless given.

    Raises:
      InputError: nothing is recorded yet, or the groups share no site.
    """
    check_recorded(results)
    ended = diverged(results)
    variable = score_variable(results)
    scores = validation(results, variable)
    best = scores.max("step") if variable == "accuracy" else scores.min("step")
    values = {
        "diverged_at": results.runs["diverged_at"].transpose(*run_dims(results)).load(),
        "going": still_going(results),
        "final_loss": final_loss(results),
        "first_loss": training_loss(results).isel(step=0, drop=True),
        "no_progress": no_progress(results),
        f"validation_{variable}": last_recorded(scores).where(~ended),
        f"best_validation_{variable}": best.where(~ended),
        "spikes": run_spikes(results, rule),
    }
    target = target or target_of(results)
    if target is not None:
        values["steps_to_target"] = run_steps_to_target(results, target)
    if has_moments(results.reference):
        site = deepest_site(results) if site is None else site
        shifts = _final_mean_shift(results, site)
        values |= {"shift": shifts["mean_shift"], "dead_features": shifts["dead_features"]}
    table = xr.Dataset(
        {name: each.drop_vars("site", errors="ignore") for name, each in values.items()}
    )
    table.attrs = {
        "spike_rule": rule.describe(),
        "final_window_steps": final_window_steps(results),
        "site": site,
        "n_features": None if site is None else count_features(results, site),
        "target": None if target is None else str(target),
        "n_seeds": int(results.runs.sizes["seed"]),
    }
    return table.transpose(*run_dims(results))


def whole_table(
    results: Records, rule: SpikeRule = PRESETS["olmo_core"], target: Target | None = None
) -> xr.Dataset:
    """`run_table` of a whole record, read in parts; the site is the deepest that all share."""
    sites = common_sites(results)
    tables = []
    for part in parts(results):
        site = None
        if has_moments(part.reference):
            # Raises where the groups have none in common.
            site = sites[-1] if sites else deepest_site(results)
        tables.append(run_table(part, rule, site, target))
    table = joined(tables, results)
    table.attrs["incomplete"] = incomplete(results)
    return table


def incomplete(results: Records) -> str:
    """A sentence on the groups that have no recorded step; empty where all have one."""
    missing = not_begun(results)
    if not missing:
        return ""
    several_depths = len(results.experiment["depth"]) > 1
    names = [f"{norm} at depth {depth}" if several_depths else norm for norm, depth in missing]
    n_groups = len(results.experiment["norm"]) * len(results.experiment["depth"])
    runs = results.runs["diverged_at"]
    n_runs = runs.size // (runs.sizes["norm"] * runs.sizes["depth"])
    return (
        f"The record is incomplete: {n_runs * (n_groups - len(missing))} of {n_runs * n_groups} "
        f"planned runs have recorded a step; not started: {', '.join(names)}."
    )


def joined(tables: Sequence[xr.Dataset], results: Records) -> xr.Dataset:
    """Tables of parts of a record as one, in the experiment's order; NaN where a run is missing."""
    attrs = dict(tables[0].attrs)
    if attrs.get("n_features") is not None:
        attrs["n_features"] = max(table.attrs["n_features"] for table in tables)
    if len(tables) == 1:
        return tables[0]
    missing = {"going": True, "no_progress": False, "cause": "", "first_nonfinite": ""}
    whole = lined_up(tables, results.experiment)
    for name, value in missing.items():
        if name in whole:
            whole[name] = whole[name].fillna(value).astype(tables[0][name].dtype)
    whole.attrs = attrs
    return whole


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
    deepest_site, n_features (these two None without moments), incomplete (see `incomplete`).

    Raises:
      InputError: nothing is recorded yet, or the groups share no site.
    """
    table = whole_table(results, rule)
    return summary_of(table)


def summary_of(table: xr.Dataset) -> xr.Dataset:
    """`summarise` from the runs of a `run_table`."""
    validation_name = next(name for name in table if str(name).startswith("validation_"))
    names = ["final_loss", validation_name]
    names += [name for name in ("shift", "dead_features") if name in table]
    summary = xr.Dataset(
        {name: over_seeds(table[name]) for name in names}
        | {f"n_seeds_{name}": table[name].notnull().sum("seed") for name in names}
        | {
            "spikes": table["spikes"].sum("seed", min_count=1),
            "n_diverged": table["diverged_at"].notnull().sum("seed"),
            "n_no_progress": table["no_progress"].sum("seed"),
            # Those of groups to come have recorded nothing.
            "n_going": (table["going"] & table["first_loss"].notnull()).sum("seed"),
        }
    )
    if "shift" in table:
        summary["n_dead"] = summary["n_seeds_dead_features"] - summary["n_seeds_shift"]
    if "steps_to_target" in table:
        summary["steps_to_target"] = _censored(table)
    kept = ("n_seeds", "target", "spike_rule", "final_window_steps", "n_features")
    summary.attrs = {name: table.attrs[name] for name in kept}
    summary.attrs["incomplete"] = table.attrs.get("incomplete", "")
    summary.attrs["deepest_site"] = table.attrs["site"]
    dims = [dim for dim in table["diverged_at"].dims if dim != "seed"]
    return summary.transpose(*dims, ...)
