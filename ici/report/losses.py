"""Figures: training loss over steps, and final loss over learning rates."""

from __future__ import annotations

from dataclasses import dataclass
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
    is_leftmost,
    new_figure,
    norm_styles,
    ordered_styles,
    panel_rows,
    panels,
    step_axis,
)

N_BINS = 100
# Higher losses, of runs about to diverge, would press the others into a line.
TOP_RATIO = 30.0

_N_MARKERS = 4
_ROW_INCHES = 0.14
_CROSS_INCHES = 0.2


def draw_loss_curves(results: Records, title: str = "") -> Figure:
    """Training loss over steps for every learning rate, a panel per norm, divergences marked.

    Lines are the median over the running seeds of means over bins of steps, bands their range,
    thin lines the largest loss of any step and running seed in a bin.

    Raises:
      InputError: the record holds several depths or other settings.
    """
    check_one_setting(results)
    loss = training_loss(results).sortby("lr")
    norms, lrs = loss["norm"].values.tolist(), loss["lr"].values.tolist()
    width = max(1, int(results.experiment["steps"]) // N_BINS)
    bins = loss.coarsen(step=width, boundary="pad")
    curves, peaks = over_seeds(bins.mean()), bins.max().max("seed")
    low, top = _limits(
        np.append(curves.values.ravel(), peaks.values.ravel()), TOP_RATIO * _first_loss(loss)
    )
    n_rows = int(diverged(results).any("seed").sum("lr").max())
    rows = _Rows(low, top, n_rows * _ROW_INCHES / (2.4 + n_rows * _ROW_INCHES), n_rows)
    clipped = f"{float(f'{rows.end:.2g}'):g}" if bool((peaks > rows.end).any()) else None
    panel_lines, n_columns = panel_rows(len(norms))
    figure = new_figure(
        1.4 + 2.4 * n_columns,
        (3.2 + _ROW_INCHES * n_rows) * panel_lines,
        f"Training loss{title}",
        _curves_caption(results, width, clipped),
    )
    grid = panels(figure, len(norms))
    styles = ordered_styles(len(lrs))
    for axes, norm in zip(grid, norms, strict=True):
        row = 0
        for i, (lr, style) in enumerate(zip(lrs, styles, strict=True)):
            run = {"norm": norm, "lr": lr}
            axes.plot(peaks["step"], peaks.sel(run), color=style.colour, linewidth=0.4, alpha=0.6)
            _draw_curve(axes, curves.sel(run), style, (i + 0.5) / len(lrs))
            row += _mark_divergences(axes, results, loss, run, style, rows, row)
        axes.set_title(norm)
        step_axis(axes, results.experiment["steps"])
        if is_leftmost(axes):
            axes.set_ylabel("training loss (nats)")
    _log_axis(grid[0], low, rows.end)
    grid[0].yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if value <= top else "")
    )
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.dashes, label=short(lr), **_marker(s))
        for lr, s in zip(lrs, styles, strict=True)
    ]
    if bool(diverged(results).any()):
        handles.append(Line2D([], [], color="black", marker="x", linestyle="", label="diverged"))
    figure.legend(
        handles=handles, title="lr", loc="outside right center", frameon=False, handlelength=4.5
    )
    return figure


def _first_loss(loss: xr.DataArray) -> float:
    first = loss.isel(step=0).values
    first = first[np.isfinite(first)]
    return float(np.median(first)) if first.size else 1.0


def _marker(style: LineStyle) -> dict[str, Any]:
    return {
        "marker": style.marker,
        "markersize": 5.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def _draw_curve(axes: Axes, curve: xr.DataArray, style: LineStyle, offset: float) -> None:
    """Median and band, with few markers that `offset` in [0, 1) keeps off other curves' ones."""
    steps = curve["step"].values
    median, low, high = (curve.sel(over_seeds=name).values for name in ("median", "min", "max"))
    axes.fill_between(steps, low, high, color=style.colour, alpha=0.25, linewidth=0)
    known = np.flatnonzero(np.isfinite(median))
    at = (np.arange(_N_MARKERS) + offset) / _N_MARKERS * len(known)
    axes.plot(
        steps,
        median,
        color=style.colour,
        linestyle=style.dashes,
        markevery=np.unique(known[at.astype(int)]).tolist() if known.size else [],
        **_marker(style),
    )


@dataclass(frozen=True)
class _Rows:
    """Rows above a logarithmic loss axis, one for each learning rate at which a seed diverged."""

    low: float
    top: float
    share: float
    n: int

    @property
    def end(self) -> float:
        """Loss at which an axis has to end to have room for the rows."""
        return self.low * (self.top / self.low) ** (1 / (1 - self.share))

    def height(self, row: int) -> float:
        """Loss at which to draw a row, the first at the top."""
        return self.end * (self.top / self.end) ** ((row + 0.5) / self.n)


def _mark_divergences(
    axes: Axes,
    results: Records,
    loss: xr.DataArray,
    run: dict[str, Any],
    style: LineStyle,
    rows: _Rows,
    row: int,
) -> int:
    """Crosses in a row of their own where seeds diverged, a stem from the last loss of each, and
    their number; returns whether there are any."""
    at = results.runs["diverged_at"].sel(run)
    seeds = at["seed"].values[np.isfinite(at.transpose("seed").values)]
    if not seeds.size:
        return 0
    height = rows.height(row)
    outline = [withStroke(linewidth=2.6, foreground="black")]
    for seed in seeds:
        step = float(at.sel(seed=seed))
        before = loss.sel(run | {"seed": seed})
        before = before.values[np.isfinite(before.values)]
        last = min(float(before[-1]), height) if before.size else rows.top
        axes.plot([step, step], [last, height], color=style.colour, linewidth=0.7)
        axes.plot(
            step,
            height,
            "x",
            color=style.colour,
            markersize=4,
            markeredgewidth=1.2,
            clip_on=False,
            zorder=5,
            path_effects=outline,
        )
    first, last = (float(end(at.sel(seed=seeds))) for end in (np.min, np.max))
    left_half = (first + last) / 2 < int(results.experiment["steps"]) / 2
    axes.annotate(
        f"lr {short(run['lr'])}: {len(seeds)}/{at.sizes['seed']} diverged",
        (last if left_half else first, height),
        (6 if left_half else -6, 0),
        textcoords="offset points",
        fontsize=6.5,
        ha="left" if left_half else "right",
        va="center",
        annotation_clip=False,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )
    return 1


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

    Diverged seeds have no final loss: they are crosses along the top, a row per norm that has any.

    Raises:
      InputError: the record holds several depths or other settings.
    """
    check_one_setting(results)
    ended = diverged(results).sortby("lr")
    losses = over_seeds(final_loss(results).sortby("lr"))
    norms, lrs = losses["norm"].values.tolist(), losses["lr"].values.astype(float)
    wild = [norm for norm in norms if bool(ended.sel(norm=norm).any())]
    rows_inches = _CROSS_INCHES * (len(wild) + 0.5)
    rows_share = rows_inches / (2.4 + rows_inches) if wild else 0.02
    figure = new_figure(
        5.2,
        3.1 + _CROSS_INCHES * max(1, len(wild)),
        f"Final training loss{title}",
        _final_caption(results),
    )
    axes = figure.subplots()
    n_seeds = ended.sizes["seed"]
    apart = _ratio_apart(lrs, len(norms))
    for i, (norm, style) in enumerate(norm_styles(norms).items()):
        # Norms side by side, so that their intervals do not hide one another.
        at = lrs * apart ** (i - (len(norms) - 1) / 2)
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
                height = 1 - rows_share * (wild.index(norm) + 0.5) / (len(wild) + 0.5)
                _mark_diverged_seeds(axes, lr, height, int(n_diverged), n_seeds, style)
    axes.set_xscale("log")
    axes.set_xticks(lrs, [short(float(lr)) for lr in lrs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("learning rate")
    axes.set_ylabel("final training loss (nats)")
    low, high = _limits(losses.values, np.inf)
    _log_axis(axes, low, low * (high / low) ** (1 / (1 - rows_share)))
    axes.set_xlim(lrs.min() / 1.5, lrs.max() * 1.5)
    figure.legend(loc="outside right center", frameon=False, title="norm", handlelength=3.2)
    return figure


def _ratio_apart(lrs: np.ndarray, n_norms: int) -> float:
    """Ratio of the places of neighbouring norms: all stay nearer to their rate than to another."""
    gap = np.diff(np.log(lrs)).min() if len(lrs) > 1 else np.inf
    return float(np.exp(min(np.log(1.06), 0.5 * gap / max(1, n_norms - 1))))


def _mark_diverged_seeds(
    axes: Axes, lr: float, height: float, n: int, of: int, style: LineStyle
) -> None:
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


def _curves_caption(results: Records, width: int, clipped: str | None) -> str:
    n = results.runs.sizes["seed"]
    seeds = (
        f"median over the running ones of {n} seeds, band: their min to max"
        if n > 1
        else "one seed, no band"
    )
    text = f"{_runs(results)} Means over bins of {width} steps; line: {seeds}. "
    if width > 1 or n > 1:
        text += "Thin line: the largest loss of a single step in each bin, of any seed. "
    text += "Markers only tell the lines apart. "
    if bool(diverged(results).any()):
        text += (
            "A line up to a × marks where a seed diverged, from its last loss before; k/n: k of n "
            "seeds did. "
        )
    if clipped:
        text += f"Losses above {clipped} are cut off."
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
