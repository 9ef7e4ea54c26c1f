"""How many steps a run takes to a target."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from ici.analysis.records import (
    Records,
    Target,
    score_variable,
    still_going,
    target_of,
    validation,
)
from ici.errors import InputError
from ici.store.results import Results


def steps_to_target(
    evaluations: ArrayLike, steps: ArrayLike, target: float, higher_is_better: bool = True
) -> np.ndarray:
    """Step of the first of ``evaluations[..., E]`` that meets `target`, float64 ``[...]``.

    ``steps[E]`` are the training steps of the evaluations, increasing. inf where none meets it
    (right-censored: the run may have met it between or after its evaluations); an evaluation that
    is NaN does not. Time to a target on validation data as in AlgoPerf (Dahl et al., "Benchmarking
    neural network training algorithms", 2023).

    Raises:
      InputError: `steps` do not fit the evaluations or do not increase, or the target is NaN.
    """
    values, at = np.asarray(evaluations), np.asarray(steps, dtype=np.float64)
    if at.ndim != 1 or values.ndim == 0 or values.shape[-1] != len(at):
        raise InputError(
            f"evaluations have shape {values.shape} and steps {at.shape}: wanted one step for "
            "each entry of the last axis."
        )
    if (np.diff(at) <= 0).any():
        raise InputError("steps are not increasing: wanted the evaluations in training order.")
    if math.isnan(target):
        raise InputError("target is nan: wanted a number.")
    met = values >= target if higher_is_better else values <= target
    if not len(at):
        return np.full(values.shape[:-1], np.inf)
    return np.where(met.any(axis=-1), at[met.argmax(axis=-1)], np.inf)


def run_steps_to_target(results: Records, target: Target | None = None) -> xr.DataArray:
    """Steps to a validation accuracy or loss for every run, float64 ``(run…)``.

    The target is the experiment's own unless given. inf where a run ended without meeting it,
    diverged runs included; NaN where a run that is still going has not met it yet.

    Raises:
      InputError: neither the call nor the experiment has a target.
    """
    target = target or target_of(results)
    if target is None:
        raise InputError(
            "the experiment has neither target_accuracy nor target_loss: give target, such as "
            "Target('accuracy', 0.7)."
        )
    score = validation(results, target.variable)
    met_at = steps_to_target(
        score.values, score["step"].values, target.value, target.higher_is_better
    )
    labelled = score.isel(step=0, drop=True).astype(np.float64).copy(data=met_at)
    return labelled.where(np.isfinite(met_at) | ~still_going(results)).rename("steps_to_target")


def target_from_best(scores: xr.DataArray, variable: str) -> Target | None:
    """The target that the best setting sets: the median over its seeds of their best evaluation.

    ``scores`` are the best evaluations of every run ``(run…)``, NaN for diverged ones. The best
    setting is the one whose median over seeds is best; a setting of which a seed diverged sets no
    target. None where no setting is left.

    Source: Dahl et al. (AlgoPerf), "Benchmarking neural network training algorithms", 2023, §4.2:
    targets from the median of repeated runs of the best setting that was found.
    """
    higher = Target(variable, 0.0).higher_is_better
    median = scores.median("seed", skipna=False)
    if not bool(median.notnull().any()):
        return None
    return Target(variable, float(median.max() if higher else median.min()))


def chosen_target(
    results: Records, scores: xr.DataArray | None = None
) -> tuple[Target | None, str]:
    """The target to judge speed by, and where it comes from, in words.

    The experiment's own; without one, `target_from_best` of `scores`, the best evaluations
    ``(run…)``.
    """
    own = target_of(results)
    if own is not None:
        return own, "set by the experiment"
    if scores is None:
        return None, "none"
    found = target_from_best(scores, score_variable(results))
    if found is None:
        return None, "none: every setting has a seed that diverged"
    return found, "set by the record: median over seeds of the best setting's best evaluation"


def examples_to_target(steps: xr.DataArray, results: Records) -> xr.DataArray:
    """Training examples seen up to the target ``(run…)``: steps times the batch size."""
    return steps * int(results.experiment["batch_size"])


def seconds_to_target(steps: xr.DataArray, results: Records) -> xr.DataArray:
    """Seconds of training up to the target ``(run…)``; NaN where the record holds no times.

    Steps times what a step of one run of that norm and depth took: the run's share of the fleet's
    time, with its measurements and without compilation, on the hardware of the record. Seconds of
    different records compare only on equal and equally idle hardware.
    """
    times = xr.full_like(steps, np.nan)
    if isinstance(results, Results):
        for entry in results.manifest.groups.values():
            # Records written before there were times have none.
            seconds = entry.run_step_s
            known = entry.norm in steps["norm"].values and entry.depth in steps["depth"].values
            if seconds is not None and known:
                times.loc[{"norm": entry.norm, "depth": entry.depth}] = seconds
    return steps * times
