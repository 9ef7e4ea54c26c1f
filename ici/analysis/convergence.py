"""How many steps a run takes to a target."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from ici.analysis.records import Records, Target, still_going, target_of, validation
from ici.errors import InputError


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
