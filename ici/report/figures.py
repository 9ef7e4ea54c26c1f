"""All figures of an experiment, as files."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

from ici.analysis.records import (
    Records,
    check_recorded,
    describe_setting,
    diverged,
    select,
    settings,
    short,
    still_going,
)
from ici.analysis.summary import final_shift, no_progress
from ici.errors import InputError
from ici.report.layer_inputs import draw_layer_inputs
from ici.report.losses import draw_final_loss, draw_loss_curves
from ici.report.shift_map import draw_shift_map
from ici.report.style import RC, save


def draw_all(results: Records, folder: str | Path, lr: float | None = None) -> list[Path]:
    """Draws every figure of every setting as PNG and PDF and returns the files' paths.

    A setting is a depth together with whatever else was swept besides norm, learning rate and
    seed; with several, its values are part of the file names. The figures that show one learning
    rate show `lr`, or the one `telling_lr` finds.

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
                "layer_inputs": draw_layer_inputs(runs, shown, why, title),
                "shift_map": draw_shift_map(runs, shown, why, title),
                "loss_curves": draw_loss_curves(runs, title),
                "final_loss": draw_final_loss(runs, title),
            }
            for kind, figure in figures.items():
                paths += save(figure, folder, kind + name)
    return paths


def telling_lr(results: Records) -> tuple[float, str]:
    """The learning rate at which to compare layers between norms, and the rule in words.

    The largest at which the network without norm still trains in some seed: did not diverge,
    ended below its first loss, and has live units at the deepest site. Without such networks, the
    largest at which every norm trains in some seed. Failing both, the smallest.
    """
    site_shift = final_shift(results)["mean_shift"]
    trains = ~diverged(results) & ~no_progress(results) & np.isfinite(site_shift)
    trains = trains.any("seed")
    if "none" in trains["norm"].values:
        enough, who = trains.sel(norm="none"), "the network without norm still trains"
    else:
        enough, who = trains.all("norm"), "every norm still trains"
    lrs = enough["lr"].values[enough.values]
    if len(lrs):
        return float(lrs.max()), f"lr: the largest at which {who} in some seed."
    return float(enough["lr"].values.min()), f"lr: the smallest, as {who} at none."
