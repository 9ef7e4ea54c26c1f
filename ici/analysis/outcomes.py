"""What became of each run: the rules that tell divergence, no progress, spikes and success apart.

Bjorck et al. ("Understanding batch normalization", 2018) call a run diverged when a loss is not
finite, when one update multiplies the loss by more than 1000, or when the final loss is no lower
than the first. Here each has a name of its own, since the remedies differ.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from ici.analysis.records import Records, run_dims
from ici.errors import InputError

CAUSES = ("", "loss not finite", "loss ratio", "gradient not finite")
# From good to bad; what a run gets is the worst that applies.
OUTCOMES = ("reached target", "trained", "spiked", "no progress", "diverged", "still going")


def divergence_cause(losses: ArrayLike, diverged_at: ArrayLike, ratio: float = 1e3) -> np.ndarray:
    """Why runs diverged, one of `CAUSES` ``[...]``; empty for those that did not.

    ``losses[..., T]`` with the loss of the refused step, ``diverged_at[...]`` its position, NaN for
    none. A finite loss above `ratio` times the first is "loss ratio"; a finite loss below means
    that the gradient was not finite.

    Source: Bjorck et al., "Understanding batch normalization", 2018, §3.1 and App. B.
    """
    values = np.asarray(losses, np.float64)
    at = np.asarray(diverged_at, np.float64)
    position = np.nan_to_num(at, nan=0.0).astype(int)
    last = np.take_along_axis(values, position[..., None], axis=-1)[..., 0]
    with np.errstate(invalid="ignore", over="ignore"):
        above = np.abs(last) > ratio * np.abs(values[..., 0])
    cause = np.where(np.isfinite(last), np.where(above, CAUSES[2], CAUSES[3]), CAUSES[1])
    return np.where(np.isnan(at), CAUSES[0], cause)


def relative_loss_step(before: ArrayLike, after: ArrayLike) -> np.ndarray:
    """Loss after an update over the loss before it, on the same batch ``[...]``.

    Above 1 the update made its own batch worse; above 1000 Bjorck et al. count the run as diverged.
    The measurement ``"loss_step"`` of an experiment records both losses.

    Source: Bjorck et al., "Understanding batch normalization", 2018, §3.1.

    Raises:
      InputError: a loss before the update that is not positive has no ratio.
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if (first <= 0).any():
        raise InputError("a loss before the update is not positive: wanted losses > 0.")
    return second / first


def run_divergence_cause(results: Records) -> xr.DataArray:
    """`divergence_cause` of every run ``(run…)``."""
    loss = results.train["loss"].transpose(*run_dims(results), "step")
    at = results.runs["diverged_at"].transpose(*run_dims(results))
    ratio = float(results.experiment.get("divergence_ratio") or 1e3)
    return at.copy(data=divergence_cause(loss.values, at.values, ratio)).rename("cause")


def run_first_nonfinite(results: Records) -> xr.DataArray:
    """What was not finite first in the step that ended each run, in words ``(run…)``; empty for
    runs that did not diverge or ended by a loss ratio, and where the record does not say."""
    at = results.runs["diverged_at"].transpose(*run_dims(results))
    known = results.runs.get("first_nonfinite")
    if known is None:
        return at.copy(data=np.full(at.shape, "", object)).rename("first_nonfinite")
    return known.transpose(*at.dims).fillna("")


def run_outcome(table: xr.Dataset) -> xr.DataArray:
    """One of `OUTCOMES` for every run of a `run_table` ``(run…)``.

    "spiked" is a run that ended well after at least one spike; a run that reached its target and
    spiked is "spiked" too: look at both columns.
    """
    codes = xr.full_like(table["diverged_at"], OUTCOMES.index("trained"), dtype=int)
    if "steps_to_target" in table:
        codes = codes.where(~np.isfinite(table["steps_to_target"]), OUTCOMES.index(OUTCOMES[0]))
    for name, rule in (
        ("spiked", table["spikes"] > 0),
        ("no progress", table["no_progress"]),
        ("still going", table["going"]),
        ("diverged", table["diverged_at"].notnull()),
    ):
        codes = codes.where(~rule, OUTCOMES.index(name))
    return codes.copy(data=np.asarray(OUTCOMES)[codes.values]).rename("outcome")
