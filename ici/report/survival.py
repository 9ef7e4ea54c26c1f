"""Figure: how long it takes to the target, with the runs that never meet it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ici.analysis.choices import best_lr
from ici.analysis.digest import Digest
from ici.analysis.records import short
from ici.analysis.statistics import kaplan_meier
from ici.report.provenance import of_runs
from ici.report.style import LineStyle, new_figure, norm_styles

BEST, ALL = "each at its best rate", "all rates"


def draw_survival(digest: Digest, setting: dict[str, Any], title: str = "") -> Figure | None:
    """Kaplan–Meier curves of steps to the target per norm: at its best rate, and over all rates.

    None without a target or without a finished run.
    """
    if "steps_to_target" not in digest.runs:
        return None
    steps = digest.runs["steps_to_target"].sel(setting)
    steps = steps.where(~digest.runs["going"].sel(setting))
    if not bool(steps.notnull().any()):
        return None
    horizon, best = int(digest.scores["step"].max()), best_lr(digest)
    figure = new_figure(
        6.8,
        2.9 + 0.13 * steps.sizes["norm"],
        f"Time to the target{title}",
        _caption(digest, setting),
    )
    left, right = figure.subplots(1, 2, sharey=True)
    axes_of: dict[str, Axes] = {BEST: left, ALL: right}
    for norm, style in norm_styles(steps["norm"].values.tolist()).items():
        of_norm = steps.sel(norm=norm)
        lr = float(best.sel({"norm": norm, **setting}))
        chosen = {ALL: of_norm.values.ravel()}
        if not math.isnan(lr):
            chosen[BEST] = of_norm.sel(lr=lr).values.ravel()
        for kind, times in chosen.items():
            rate = f", lr {short(lr)}" if kind == BEST else ""
            _draw(axes_of[kind], times[~np.isnan(times)], horizon, style, f"{norm}{rate}")
    for kind, axes in axes_of.items():
        axes.set_title(kind)
        axes.set_xlabel("step")
        axes.set_xlim(0, horizon * 1.02)
        axes.set_ylim(-0.03, 1.03)
        if axes.get_legend_handles_labels()[0]:
            # Below: a step function leaves no corner free.
            axes.legend(
                frameon=False,
                fontsize=6.5,
                title="norm: runs that met it",
                loc="upper center",
                bbox_to_anchor=(0.5, -0.2),
                handlelength=3.2,
            )
        else:
            axes.text(
                0.5, 0.5, "no norm has a rate without divergence", ha="center", fontsize=6.5,
                transform=axes.transAxes,
            )  # fmt: skip
    axes_of[BEST].set_ylabel("share that has not met the target")
    return figure


def _draw(axes: Axes, times: np.ndarray, horizon: int, style: LineStyle, name: str) -> None:
    if not times.size:
        return
    curve = kaplan_meier(times, horizon)
    if np.isfinite(curve.low).any():
        axes.fill_between(
            curve.steps,
            curve.low,
            curve.high,
            step="post",
            color=style.colour,
            alpha=0.15,
            linewidth=0,
        )
    axes.plot(
        curve.steps,
        curve.survival,
        color=style.colour,
        linestyle=style.dashes,
        drawstyle="steps-post",
        marker=style.marker,
        markersize=3.5,
        label=f"{name}: {int(np.isfinite(times).sum())}/{times.size}",
    )


def _caption(digest: Digest, setting: dict[str, Any]) -> str:
    going = int(digest.runs["going"].sel(setting).sum())
    left_out = f" {going} runs still going are left out." if going else ""
    n = digest.n_seeds
    left = f"Left: {n} seeds a curve." if n > 1 else "Left: one seed, no interval."
    best = "best median validation " + digest.score
    return (
        f"{of_runs(digest, setting)} Kaplan–Meier: share of runs that have not met "
        f"{digest.runs.attrs['target']} yet ({digest.target_source}), evaluated every "
        f"{digest.experiment.get('eval_every', '?')} steps; runs that never met it are censored at "
        f"their end, diverged ones as if they had run on.{left_out} {left} The rate is that of the "
        f"{best} on these seeds, among rates at which no seed diverged. Right: runs of all "
        "learning rates, pooled. Band: pointwise 95 % log-log interval (Greenwood), as of "
        "independent runs; none while the share is 1 or 0."
    )
