"""All figures of an experiment, as files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ici.analysis import choices
from ici.analysis.digest import Digest
from ici.analysis.digest import digest as digest_of
from ici.analysis.parts import gathered
from ici.analysis.records import (
    Records,
    check_recorded,
    describe_setting,
    settings,
    short,
)
from ici.analysis.summary import whole_table
from ici.errors import InputError
from ici.report.attribution import draw_attribution
from ici.report.gradient_norms import draw_gradient_norms
from ici.report.gradient_shift import draw_gradient_shift
from ici.report.landscape import draw_landscape
from ici.report.layer_inputs import draw_layer_inputs
from ici.report.losses import draw_final_loss, draw_loss_curves
from ici.report.phase import draw_phase
from ici.report.sensitivity import draw_sensitivity
from ici.report.shift_map import draw_shift_map
from ici.report.spike_anatomy import draw_spike_anatomy
from ici.report.style import RC, save
from ici.report.survival import draw_survival
from ici.store.places import Place, place

MAX_SETTINGS = 8
OF_MOMENTS = {"layer_inputs": draw_layer_inputs, "shift_map": draw_shift_map}
OF_LOSSES = {"loss_curves": draw_loss_curves, "final_loss": draw_final_loss}
OF_RATES = {"sensitivity": draw_sensitivity, "time_to_target": draw_survival}
OF_BLOCKS = {
    "gradient_norm": draw_gradient_norms,
    "gradient_shift": draw_gradient_shift,
    "attribution": draw_attribution,
    "landscape": draw_landscape,
}


def draw_all(
    results: Records,
    folder: str | Place,
    lr: float | None = None,
    digest: Digest | None = None,
) -> list[Place]:
    """Draws every figure as PNG and PDF and returns the files' paths.

    ``phase`` and ``spike_anatomy`` are of the whole record. The others are of one setting, a depth
    together with whatever else was swept besides norm, learning rate and seed; with several, its
    values are part of the file names, and of more than `MAX_SETTINGS` as many are drawn, spread
    over the grid, with a warning. The figures that show one learning rate show `lr`, or the one
    `telling_lr` finds. What was not recorded is not drawn; where that is mean and standard
    deviation of layer inputs, a warning says so.

    Raises:
      InputError: nothing is recorded yet, no run has this `lr`, or the folder cannot be written.
    """
    check_recorded(results)
    digest = digest_of(results) if digest is None else digest
    lrs = digest.runs["lr"].values.tolist()
    if lr is not None and lr not in lrs:
        raise InputError(f"no run has lr {lr}: wanted one of {lrs}.")
    folder = place(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {folder} ({error.strerror}): wanted a place to write to."
        ) from error
    _warn_of_moments(digest)
    paths: list[Place] = []
    with mpl.rc_context(RC):
        for name, draw in _figures(results, digest, lr):
            figure = draw()
            if figure is not None:
                paths += save(figure, folder, name)
    return paths


def _figures(
    results: Records, digest: Digest, lr: float | None
) -> Iterator[tuple[str, Callable[[], Figure | None]]]:
    """Names and drawings, one after another, so that no two figures are held at once."""
    going = int(digest.runs["going"].sum())
    unfinished = f" ({going} runs still going)" if going else ""
    yield "phase", lambda: draw_phase(digest, unfinished)
    yield "spike_anatomy", lambda: draw_spike_anatomy(results, digest, unfinished)
    chosen, several = _shown_settings(results)
    for setting in chosen:
        suffix = "".join(f"_{dim}={short(value)}" for dim, value in setting.items())
        suffix = suffix if several else ""
        title = f", {describe_setting(setting)}" if setting else ""
        going = int(digest.runs["going"].sel(setting).sum())
        title += f" ({going} runs still going)" if going else ""
        shown, why = (lr, "lr: as asked for.") if lr is not None else _telling(digest, setting)
        for kind, draw in OF_MOMENTS.items():
            if _has_moments(digest)[kind]:
                yield kind + suffix, _of_moments(draw, results, setting, shown, why, title)
        runs = gathered(results, ("train",), **setting)
        for kind, draw in OF_LOSSES.items():
            yield kind + suffix, _bound(draw, runs, title)
        for kind, draw in OF_RATES.items():
            yield kind + suffix, _bound(draw, digest, setting, title)
        for kind, draw in OF_BLOCKS.items():
            yield kind + suffix, _bound(draw, digest, setting, shown, why, title)


def _bound(draw: Callable[..., Any], *arguments: Any) -> Callable[[], Figure | None]:
    return lambda: draw(*arguments)


def _of_moments(
    draw: Callable[..., Any],
    results: Records,
    setting: dict[str, Any],
    lr: float,
    why: str,
    title: str,
) -> Callable[[], Figure | None]:
    # All but one rate of the moments stay on disk.
    return lambda: draw(gathered(results, **setting, lr=[lr]), lr, why, title)


def _shown_settings(results: Records) -> tuple[list[dict[str, Any]], bool]:
    every = settings(results)
    if len(every) <= MAX_SETTINGS:
        return every, len(every) > 1
    at = np.linspace(0, len(every) - 1, MAX_SETTINGS).round().astype(int)
    warnings.warn(
        f"{MAX_SETTINGS} of {len(every)} settings are drawn; the interactive page has all.",
        RuntimeWarning,
        stacklevel=4,
    )
    return [every[i] for i in at], True


def _warn_of_moments(digest: Digest) -> None:
    has = _has_moments(digest)
    absent = [kind for kind in OF_MOMENTS if not has[kind]]
    if absent:
        warnings.warn(
            f"no figure {' and '.join(absent)}: mean and std of layer inputs were not recorded.",
            stacklevel=3,
        )


def _has_moments(digest: Digest) -> dict[str, bool]:
    return {"layer_inputs": digest.inputs is not None, "shift_map": digest.shift is not None}


def _telling(digest: Digest, setting: dict[str, Any]) -> tuple[float, str]:
    table = digest.runs.sel(setting)
    table.attrs = digest.runs.attrs
    return choices.telling_lr(table)


def telling_lr(results: Records) -> tuple[float, str]:
    """`ici.analysis.choices.telling_lr` of a record of one setting."""
    return choices.telling_lr(whole_table(results))
