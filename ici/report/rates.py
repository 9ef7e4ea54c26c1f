"""Figures: what the learning rate does, and how long it takes to the target."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ici.analysis.answers import sensitivity
from ici.analysis.choices import best_lr
from ici.analysis.digest import Digest
from ici.analysis.records import short
from ici.analysis.sensitivity import largest_stable_lr
from ici.analysis.statistics import kaplan_meier, mean_interval
from ici.report.captions import captions
from ici.report.style import new_figure, norm_styles


def draw_sensitivity(digest: Digest, setting: dict[str, Any], title: str = "") -> Figure | None:
    """Learning-rate sensitivity and the largest stable learning rate of each norm.

    None where a single learning rate was trained, or no run has a first loss.
    """
    if digest.runs.sizes["lr"] < 2:
        return None
    spread = sensitivity(digest, setting)
    norms = digest.runs["norm"].values.tolist()
    figure = new_figure(
        6.4, 0.9 + 0.32 * len(norms), f"Learning rate{title}", _sensitivity_caption(digest)
    )
    left, right = figure.subplots(1, 2, sharey=True)
    lrs = np.sort(digest.runs["lr"].values)
    for i, (norm, style) in enumerate(norm_styles(norms).items()):
        if norm in spread:
            _interval(left, i, spread[norm], style)
        ended = digest.runs["diverged_at"].sel({"norm": norm, **setting}).notnull().sortby("lr")
        largest = float(largest_stable_lr(lrs, ended.transpose("lr", "seed").values))
        if largest:
            right.plot(largest, i, style.marker, color=style.colour, markersize=6)
            more = " (end of grid)" if largest == lrs[-1] else ""
            text = f"{short(largest)}{more}"
        else:
            text = "none is stable"
        right.annotate(
            text,
            (largest or lrs[0], i),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
        )
    left.set_yticks(range(len(norms)), norms)
    left.set_ylim(len(norms) - 0.5, -0.5)
    left.set_xlabel("learning-rate sensitivity (nats)")
    right.set_xscale("log")
    right.set_xticks(lrs, [short(float(lr)) for lr in lrs], rotation=60)
    right.xaxis.set_minor_locator(NullLocator())
    right.set_xlim(lrs[0] / 1.6, lrs[-1] * 6)
    right.set_xlabel("largest learning rate without a divergence")
    return figure


def _interval(axes: Axes, row: int, values: np.ndarray, style: Any) -> None:
    known = values[np.isfinite(values)]
    if not known.size:
        return
    found = mean_interval(known)
    axes.plot(known, np.full(known.size, row + 0.18), "|", color=style.colour, markersize=5)
    if found.exists:
        axes.plot([found.low, found.high], [row, row], color=style.colour, linewidth=1)
    axes.plot(found.estimate, row, style.marker, color=style.colour, markersize=6)
    axes.annotate(
        f"{found.estimate:.3g}",
        (found.estimate, row),
        (0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=6.5,
    )


def _sensitivity_caption(digest: Digest) -> str:
    n = digest.n_seeds
    interval = (
        f"mean and 95 % Student t interval of {n} seeds, ticks: the seeds"
        if n > 1
        else "one seed, no interval"
    )
    return (
        "Left: mean over learning rates of how far the final training loss lies above the best "
        f"rate's, diverged runs at their first loss (Wortsman et al. 2023, §2.2); {interval}. It "
        f"depends on the grid: {digest.runs.sizes['lr']} rates. Right: the largest rate at which "
        "no seed diverges, and none at any smaller one."
    )


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
    n_norms = steps.sizes["norm"]
    height = 2.9 + 0.13 * n_norms
    figure = new_figure(6.8, height, f"Time to the target{title}", captions(digest)["survival"])
    kinds = ["each at its best rate", "all rates"]
    axes_of = dict(zip(kinds, figure.subplots(1, 2, sharey=True), strict=True))
    for norm, style in norm_styles(steps["norm"].values.tolist()).items():
        of_norm = steps.sel(norm=norm)
        lr = float(best.sel({"norm": norm, **setting}))
        chosen = {"all rates": of_norm.values.ravel()}
        if not math.isnan(lr):
            chosen["each at its best rate"] = of_norm.sel(lr=lr).values.ravel()
        for kind, times in chosen.items():
            times = times[~np.isnan(times)]
            if times.size:
                rate = f", lr {short(lr)}" if kind != "all rates" else ""
                met = np.isfinite(times).sum()
                label = f"{norm}{rate}: {met}/{times.size}"
                _survival_curve(axes_of[kind], kaplan_meier(times, horizon), style, label)
    for kind, axes in axes_of.items():
        axes.set_title(kind)
        axes.set_xlabel("step")
        axes.set_xlim(0, horizon)
        axes.set_ylim(-0.03, 1.03)
        if axes.get_legend_handles_labels()[0]:
            # Below: a step function leaves no corner free.
            axes.legend(
                frameon=False,
                fontsize=6.5,
                title="norm: runs that met it",
                loc="upper center",
                bbox_to_anchor=(0.5, -0.2),
            )
    axes_of["each at its best rate"].set_ylabel("share that has not met the target")
    return figure


def _survival_curve(axes: Axes, curve: Any, style: Any, label: str) -> None:
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
        label=label,
    )
