"""Figure: how much the choice of the learning rate matters, and how large it may be."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ici.analysis.answers import sensitivity, uneven
from ici.analysis.digest import Digest
from ici.analysis.records import short
from ici.analysis.sensitivity import largest_stable_lr
from ici.analysis.statistics import mean_interval
from ici.report.provenance import of_runs
from ici.report.style import LineStyle, new_figure, norm_styles

NO_LOSSES = "no run has both losses"


def draw_sensitivity(digest: Digest, setting: dict[str, Any], title: str = "") -> Figure | None:
    """Learning-rate sensitivity and the largest stable learning rate of each norm.

    None where a single learning rate was trained.
    """
    if digest.runs.sizes["lr"] < 2:
        return None
    spread = sensitivity(digest, setting)
    norms = digest.runs["norm"].values.tolist()
    figure = new_figure(
        6.4, 0.9 + 0.32 * len(norms), f"Learning rate{title}", _caption(digest, setting)
    )
    left, right = figure.subplots(1, 2, sharey=True)
    lrs = np.sort(digest.runs["lr"].values)
    for row, (norm, style) in enumerate(norm_styles(norms).items()):
        values = np.asarray(spread.get(norm, np.nan), float).ravel()
        missing = "no rate ends below the first loss" if norm in spread else NO_LOSSES
        _draw_spread(left, row, values[np.isfinite(values)], style, missing)
        ended = digest.runs["diverged_at"].sel({"norm": norm, **setting}).notnull().sortby("lr")
        largest = float(largest_stable_lr(lrs, ended.transpose("lr", "seed").values))
        _draw_largest(right, row, largest, lrs, style)
    left.set_yticks(range(len(norms)), norms)
    left.set_ylim(len(norms) - 0.5, -0.5)
    left.margins(x=0.12)
    left.set_xlabel("learning-rate sensitivity (nats)")
    right.set_xscale("log")
    right.set_xticks(lrs, [short(float(lr)) for lr in lrs], rotation=60)
    right.xaxis.set_minor_locator(NullLocator())
    # Room for what is written behind the last rate, a fixed share of the axis.
    right.set_xlim(lrs[0] / (lrs[-1] / lrs[0]) ** 0.08, lrs[-1] * (lrs[-1] / lrs[0]) ** 0.5)
    right.set_xlabel("largest learning rate without a divergence")
    return figure


def _draw_spread(axes: Axes, row: int, values: np.ndarray, style: LineStyle, missing: str) -> None:
    """Mean and interval, the seeds as ticks below; what is `missing` where there is no value."""
    if not values.size:
        axes.annotate(
            missing,
            (0.02, row),
            xycoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=6.5,
        )
        return
    found = mean_interval(values)
    if values.size > 1:
        axes.plot(values, np.full(values.size, row + 0.22), "|", color=style.colour, markersize=5)
    if found.exists:
        axes.plot([found.low, found.high], [row, row], color=style.colour, linewidth=1)
    axes.plot(found.estimate, row, style.marker, color=style.colour, markersize=6)
    text = f"{found.estimate:.3g}"
    if found.exists:
        text += f" [{found.low:.3g}, {found.high:.3g}]"
    axes.annotate(
        text,
        (found.estimate, row),
        (0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=6.5,
    )


def _draw_largest(axes: Axes, row: int, largest: float, lrs: np.ndarray, style: LineStyle) -> None:
    text = "none is stable"
    if largest:
        axes.plot(largest, row, style.marker, color=style.colour, markersize=6)
        text = f"{short(largest)}{' (end of grid)' if largest == lrs[-1] else ''}"
    axes.annotate(
        text,
        (largest or lrs[0], row),
        (7, 0),
        textcoords="offset points",
        va="center",
        fontsize=6.5,
    )


def _caption(digest: Digest, setting: dict[str, Any]) -> str:
    n, window = digest.n_seeds, digest.runs.attrs["final_window_steps"]
    interval = (
        f"mean and 95 % Student t interval of {n} seeds, ticks: the seeds"
        if n > 1
        else "one seed, no interval"
    )
    lrs = digest.runs["lr"].values
    return (
        f"{of_runs(digest, setting)} Left: mean over learning rates of how far the final training "
        f"loss (mean of the last {window} steps) lies above the best rate's, diverged runs at "
        f"their first loss (Wortsman et al. 2023, §2.2); {interval}. It depends on the grid: "
        f"{len(lrs)} rates{uneven(lrs)} from {short(float(lrs.min()))} to "
        f"{short(float(lrs.max()))}. Right: the largest rate at which no seed diverged, and none "
        "at any smaller one; a value of the grid, it has no interval."
    )
