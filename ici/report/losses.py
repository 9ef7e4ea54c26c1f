"""Figures: training loss over steps, and final loss over learning rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from ici.analysis.records import (
    Records,
    check_one_setting,
    diverged,
    short,
    training_loss,
)
from ici.analysis.summary import final_loss, final_window_steps, over_seeds
from ici.report.style import (
    LineStyle,
    lone_marker,
    new_figure,
    norm_styles,
    ordered_styles,
    step_axis,
)

N_BINS = 100
# Higher losses, of runs about to diverge, would press the others into a line.
TOP_RATIO = 30.0


def draw_loss_curves(results: Records, title: str = "") -> Figure:
    """Training loss over steps for every learning rate, a panel per norm, divergences marked.

    Lines are the median over the running seeds of means over bins of steps, bands their range.

    Raises:
      InputError: the record holds several depths or other settings.
    """
    check_one_setting(results)
    loss = training_loss(results).sortby("lr")
    norms, lrs = loss["norm"].values.tolist(), loss["lr"].values.tolist()
    width = max(1, int(results.experiment["steps"]) // N_BINS)
    binned = loss.coarsen(step=width, boundary="pad").mean()
    curves = over_seeds(binned)
    low, top = _limits(curves.values, TOP_RATIO * _first_loss(loss))
    clipped = bool((curves > top).any())
    figure = new_figure(
        1.4 + 2.4 * len(norms),
        3.2,
        f"Training loss{title}",
        _curves_caption(results, width, clipped),
    )
    grid = figure.subplots(1, len(norms), sharex=True, sharey=True, squeeze=False)[0]
    styles = ordered_styles(len(lrs))
    for axes, norm in zip(grid, norms, strict=True):
        for lr, style in zip(lrs, styles, strict=True):
            run = {"norm": norm, "lr": lr}
            _draw_curve(axes, curves.sel(run), style)
            _mark_divergences(axes, results, loss, run, style, top)
        axes.set_title(norm)
        step_axis(axes, results.experiment["steps"])
    _log_axis(grid[0], low, top)
    grid[0].set_ylabel("training loss (nats)")
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.dashes, label=short(lr))
        for lr, s in zip(lrs, styles, strict=True)
    ]
    if bool(diverged(results).any()):
        handles.append(Line2D([], [], color="black", marker="x", linestyle="", label="diverged"))
    figure.legend(
        handles=handles, title="lr", loc="outside right center", frameon=False, handlelength=3
    )
    return figure


def _first_loss(loss: xr.DataArray) -> float:
    first = loss.isel(step=0).values
    first = first[np.isfinite(first)]
    return float(np.median(first)) if first.size else 1.0


def _draw_curve(axes: Axes, curve: xr.DataArray, style: LineStyle) -> None:
    steps = curve["step"].values
    median, low, high = (curve.sel(over_seeds=name).values for name in ("median", "min", "max"))
    axes.fill_between(steps, low, high, color=style.colour, alpha=0.25, linewidth=0)
    axes.plot(steps, median, color=style.colour, linestyle=style.dashes, marker=lone_marker(median))


def _mark_divergences(
    axes: Axes,
    results: Records,
    loss: xr.DataArray,
    run: dict[str, Any],
    style: LineStyle,
    top: float,
) -> None:
    """A stem from each diverged seed's last loss up to a cross at the top."""
    at = results.runs["diverged_at"].sel(run)
    for seed in at["seed"].values:
        step = float(at.sel(seed=seed))
        if np.isfinite(step):
            before = loss.sel(run | {"seed": seed})
            before = before.values[np.isfinite(before.values)]
            last = float(before[-1]) if before.size else top
            axes.plot([step, step], [min(last, top), top], color=style.colour, linewidth=0.7)
            axes.plot(
                step,
                0.98,
                "x",
                color=style.colour,
                markersize=5,
                markeredgewidth=1.4,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                zorder=5,
                path_effects=[withStroke(linewidth=2.6, foreground="black")],
            )


def _limits(values: np.ndarray, top: float) -> tuple[float, float]:
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return (top / 1e3, top) if np.isfinite(top) else (0.1, 10.0)
    low, high = float(positive.min()), min(float(positive.max()), top)
    return low / 1.15, max(high, low * 2) * 1.15


def _log_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic loss axis whose ticks are plain numbers, a few whatever the range."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high / low < 15 else (1.0, 2.0, 5.0)
    if high / low > 300:
        subs = (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_final_loss(results: Records, title: str = "") -> Figure:
    """Final training loss over learning rate for every norm, with the range over seeds.

    Diverged seeds have no final loss: they are crosses along the top, a row per norm.

    Raises:
      InputError: the record holds several depths or other settings.
    """
    check_one_setting(results)
    ended = diverged(results).sortby("lr")
    losses = over_seeds(final_loss(results).sortby("lr"))
    norms, lrs = losses["norm"].values.tolist(), losses["lr"].values.astype(float)
    figure = new_figure(5.2, 3.4, f"Final training loss{title}", _final_caption(results))
    axes = figure.subplots()
    n_seeds = ended.sizes["seed"]
    for i, (norm, style) in enumerate(norm_styles(norms).items()):
        # Norms side by side, so that their intervals do not hide one another.
        at = lrs * 1.06 ** (i - (len(norms) - 1) / 2)
        values = losses.sel(norm=norm)
        median, low, high = (
            values.sel(over_seeds=name).values for name in ("median", "min", "max")
        )
        axes.errorbar(
            at,
            median,
            yerr=[median - low, high - median],
            color=style.colour,
            linestyle=style.dashes,
            marker=style.marker,
            markersize=4,
            capsize=2,
            elinewidth=0.9,
            label=norm,
        )
        for lr, n_diverged in zip(at, ended.sel(norm=norm).sum("seed").values, strict=True):
            if n_diverged:
                _mark_diverged_seeds(axes, lr, i, int(n_diverged), n_seeds, style)
    axes.set_xscale("log")
    axes.set_xticks(lrs, [short(float(lr)) for lr in lrs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("learning rate")
    axes.set_ylabel("final training loss (nats)")
    low, high = _limits(losses.values, np.inf)
    rows = 0.075 * (len(norms) + 0.5) if bool(ended.any()) else 0.02
    _log_axis(axes, low, low * (high / low) ** (1 / (1 - rows)))
    axes.set_xlim(lrs.min() / 1.5, lrs.max() * 1.5)
    figure.legend(loc="outside right center", frameon=False, title="norm", handlelength=3.2)
    return figure


def _mark_diverged_seeds(
    axes: Axes, lr: float, row: int, n: int, of: int, style: LineStyle
) -> None:
    height = 0.97 - 0.075 * row
    transform = axes.get_xaxis_transform()
    axes.plot(lr, height, "x", color=style.colour, transform=transform, markeredgewidth=1.6)
    axes.annotate(
        f"{n}/{of}",
        (lr, height),
        (5, 0),
        xycoords=transform,
        textcoords="offset points",
        fontsize=6.5,
        va="center",
        color=style.colour,
        annotation_clip=False,
    )


def _curves_caption(results: Records, width: int, clipped: bool) -> str:
    n = results.runs.sizes["seed"]
    seeds = (
        f"median over the running ones of {n} seeds, band: their min to max"
        if n > 1
        else "one seed, no band"
    )
    text = f"{_runs(results)} Means over bins of {width} steps; line: {seeds}. "
    if bool(diverged(results).any()):
        text += "A line up to a × marks where a seed diverged, from its last loss before. "
    if clipped:
        text += f"Higher losses than about {TOP_RATIO:g} × the median first loss are cut off."
    return text


def _final_caption(results: Records) -> str:
    n = results.runs.sizes["seed"]
    seeds = f"Median and min–max of {n} seeds" if n > 1 else "One seed, no interval"
    text = (
        f"{_runs(results)} {seeds}, of the mean loss over each run's last "
        f"{final_window_steps(results)} steps. Norms are set apart sideways for legibility. "
    )
    if bool(diverged(results).any()):
        text += "× k/n along the top: k of n seeds diverged; they are in no median."
    return text


def _runs(results: Records) -> str:
    """What was run, in a line."""
    experiment, sizes = results.experiment, results.runs.sizes
    n_runs = int(np.prod([sizes[dim] for dim in results.runs["diverged_at"].dims]))
    return (
        f"{n_runs} {'run' if n_runs == 1 else 'runs'} of {experiment['steps']} steps, "
        f"{experiment.get('optimizer', '?')}, "
        f"batch {experiment.get('batch_size', '?')}, {int(diverged(results).sum())} diverged."
    )
