"""Figure: steps of one run, looked at one by one."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ici.analysis.records import short
from ici.analysis.shifts import reference_shift, shared_sites
from ici.report.style import new_figure, save
from ici.store.places import Place
from ici.store.replays import REPLAY_FIGURE, recorded_replays
from ici.store.results import Results, open_results

_MAX_LABELS = 24


def draw_replays(folder: Place) -> list[Place]:
    """Figures of the replays in the record at `folder` that have none yet; returns the pictures."""
    drawn = []
    for path, _ in recorded_replays(folder):
        if (path / REPLAY_FIGURE).exists():
            continue
        (path / REPLAY_FIGURE).parent.mkdir(parents=True, exist_ok=True)
        save(draw_replay(open_results(path)), (path / REPLAY_FIGURE).parent, "replay")
        drawn.append(path / REPLAY_FIGURE)
    return drawn


def draw_replay(results: Results) -> Figure:
    """Loss and gradient norm of every step, and the shift of every layer's input since the first.

    `results` is the record that `ici.replay` made.
    """
    about = results.manifest.replay or {}
    run = about.get("run", {})
    train = results.train.squeeze(drop=True)
    steps = train["step"].values
    sites = shared_sites(results)
    first = int(results.reference["step"].values[0])
    shift = reference_shift(results, first, sites)["mean_shift"].squeeze(drop=True)
    shift = shift.transpose("site", "step")
    name = ", ".join(f"{k} {v if isinstance(v, str) else short(v)}" for k, v in _told(run).items())
    height = 3.6 + min(0.22 * len(sites), 6.0)
    figure = new_figure(8.0, height, f"Replay of {name}", _caption(results, about))
    low = 0.6 * max(len(sites) / 10, 2.0)
    upper, middle, lower = figure.subplots(
        3, 1, sharex=True, gridspec_kw={"height_ratios": [1.2, 0.8, low]}
    )
    upper.plot(steps, train["loss"].values, color="black", lw=1.2)
    upper.set_ylabel("training loss")
    middle.plot(steps, train["grad_norm"].values, color="0.35", lw=1.2)
    middle.set_yscale("log")
    middle.set_ylabel("gradient norm")
    values = shift.values
    positive = values[np.isfinite(values) & (values > 0)]
    top = 10.0 ** math.ceil(math.log10(positive.max())) if positive.size else 1.0
    bottom = (
        max(10.0 ** math.floor(math.log10(positive.min())), top * 1e-6) if positive.size else 0.1
    )
    at = shift["step"].values
    image = lower.pcolormesh(
        np.append(at, at[-1] + 1) - 0.5,
        np.arange(len(sites) + 1) - 0.5,
        np.maximum(values, bottom),
        norm=LogNorm(bottom, max(top, 10 * bottom)),
        cmap="viridis",
        rasterized=True,
    )
    every = math.ceil(len(sites) / _MAX_LABELS)
    lower.set_yticks(range(0, len(sites), every), sites[::every])
    lower.tick_params(axis="y", labelsize=7)
    lower.invert_yaxis()
    lower.set_xlabel("step")
    lower.set_ylabel("layer input")
    bar = figure.colorbar(image, ax=[upper, middle, lower], extend="min", pad=0.02, aspect=40)
    bar.set_label(f"mean shift since step {int(at[0])}, RMS over units (σ)")
    return figure


def _told(run: dict[str, object]) -> dict[str, object]:
    """The labels of a run that are not some default."""
    always = ("norm", "depth", "lr", "seed")
    return {k: v for k, v in run.items() if k in always}


def _caption(results: Results, about: dict[str, object]) -> str:
    off, size = about.get("n_deviating"), about.get("deviation", 0)
    gradients_off = about.get("n_deviating_gradients", 0)
    if off == 0 and gradients_off == 0:
        verified = "Every loss is the recorded one, bit for bit."
    elif gradients_off == 0:
        verified = (
            "Every gradient norm is the recorded one, bit for bit; losses, summed in another order "
            f"here, differ at {off} steps by up to {size:.3g}."
        )
    else:
        verified = (
            f"{off} losses are not the recorded ones, by up to {size:.3g}, nor are the gradient "
            f"norms of {gradients_off} steps."
        )
    return (
        f"Steps {about.get('from_step')} to {about.get('to_step')} of one run, trained again. "
        f"{verified} Shift: of the fixed reference batch between every two updates, "
        "against the first state shown; an unchanged network has 0, which has the darkest colour."
    )
