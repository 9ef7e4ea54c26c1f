"""All figures of an experiment, as files."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib as mpl
import xarray as xr

from ici.analysis.records import (
    Records,
    check_recorded,
    describe_setting,
    diverged,
    has_moments,
    select,
    settings,
    short,
    still_going,
)
from ici.analysis.shifts import deepest_site
from ici.analysis.summary import count_features, final_shift, no_progress
from ici.errors import InputError
from ici.report.layer_inputs import PERCENTILES, draw_layer_inputs
from ici.report.losses import draw_final_loss, draw_loss_curves
from ici.report.shift_map import draw_shift_map
from ici.report.style import RC, save

OF_MOMENTS = {"layer_inputs": draw_layer_inputs, "shift_map": draw_shift_map}


def draw_all(results: Records, folder: str | Path, lr: float | None = None) -> list[Path]:
    """Draws every figure of every setting as PNG and PDF and returns the files' paths.

    A setting is a depth together with whatever else was swept besides norm, learning rate and
    seed; with several, its values are part of the file names. The figures that show one learning
    rate show `lr`, or the one `telling_lr` finds. Where the record has no mean and standard
    deviation of layer inputs, a warning says so in place of the figures of them.

    Raises:
      InputError: nothing is recorded yet, no run has this `lr`, or the folder cannot be written.
    """
    check_recorded(results)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {folder} ({error.strerror}): wanted a place to write to."
        ) from error
    moments = has_moments(results.probe), has_moments(results.reference)
    if not all(moments):
        absent = " and ".join(
            kind for kind, has in zip(OF_MOMENTS, moments, strict=True) if not has
        )
        warnings.warn(
            f"no figure {absent}: mean and std of layer inputs were not recorded.", stacklevel=2
        )
    several = len(settings(results)) > 1
    paths: list[Path] = []
    for setting in settings(results):
        runs = select(results, **setting)
        suffix = "".join(f"_{dim}={short(value)}" for dim, value in setting.items())
        name = suffix if several else ""
        title = f", {describe_setting(setting)}" if setting else ""
        going = int(still_going(runs).sum())
        if going:
            title += f" ({going} runs still going)"
        shown, why = (lr, "") if lr is not None else telling_lr(runs)
        with mpl.rc_context(RC):
            figures = {
                kind: draw(runs, shown, why, title)
                for (kind, draw), has in zip(OF_MOMENTS.items(), moments, strict=True)
                if has
            }
            figures |= {
                "loss_curves": draw_loss_curves(runs, title),
                "final_loss": draw_final_loss(runs, title),
            }
            for kind, figure in figures.items():
                paths += save(figure, folder, kind + name)
    return paths


def telling_lr(results: Records) -> tuple[float, str]:
    """The learning rate at which to compare layers between norms, and the rule in words.

    The largest at which the network without norm still trains in most seeds (did not diverge,
    ended below its first loss, has a live unit at the deepest site) and keeps enough units of that
    site alive for the percentiles of `draw_layer_inputs` to show them. Where it never does both,
    the largest at which it trains in most seeds; where it never trains, the smallest. Without such
    networks, every norm has to.
    """
    trains = ~diverged(results) & ~no_progress(results)
    alive, dead = trains, ""
    if has_moments(results.reference):
        site = deepest_site(results)
        share = final_shift(results, site)["dead_features"] / count_features(results, site)
        trains &= share < 1
        alive = trains & (share < PERCENTILES[-1] / 100)
        dead = f"with fewer than {PERCENTILES[-1]} % of the units dead at {site}"
    without = "none" in trains["norm"].values
    who = "the network without norm" if without else "every norm"

    def largest(counts: xr.DataArray) -> float | None:
        enough = counts.mean("seed") > 0.5
        enough = enough.sel(norm="none") if without else enough.all("norm")
        lrs = enough["lr"].values[enough.values]
        return float(lrs.max()) if len(lrs) else None

    if dead and (lr := largest(alive)) is not None:
        return lr, f"lr: the largest at which {who} still trains in most seeds {dead}."
    if (lr := largest(trains)) is not None:
        never = f"; at none {dead}" if dead else ""
        return lr, f"lr: the largest at which {who} still trains in most seeds{never}."
    return float(trains["lr"].min()), f"lr: the smallest, as {who} trains in most seeds at none."
