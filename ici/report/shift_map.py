"""Figure: how far every layer's input has shifted, site by step."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ici.analysis.records import Records, check_one_setting, diverged, select, short
from ici.analysis.shifts import reference_shift, shared_sites
from ici.analysis.summary import over_seeds
from ici.report.style import (
    describe_seeds,
    is_leftmost,
    new_figure,
    panel_rows,
    panels,
    step_axis,
)

DECADES = 6

_MAX_LABELS = 24


def draw_shift_map(results: Records, lr: float, why: str = "", title: str = "") -> Figure:
    """Reference-batch mean shift against step 0, a panel per norm, one logarithmic scale.

    A cell is the median over the seeds that did not diverge (over all while they last, where
    every one did) of the root mean square over live units. Rows are the sites that all norms
    share, first at the top.

    Raises:
      InputError: the record holds several depths or other settings, no such learning rate, or no
        moments.
    """
    check_one_setting(results)
    results = select(results, lr=lr)
    sites = shared_sites(results)
    norms = results.runs["norm"].values.tolist()
    shifts = reference_shift(results, "initial", sites)
    shown = {norm: _panel(results, shifts, norm) for norm in norms}
    floor, top = _scale(np.concatenate([panel.values.ravel() for panel in shown.values()]))
    any_few = any(panel.few.any() for panel in shown.values())
    n_rows, n_columns = panel_rows(len(norms))
    figure = new_figure(
        2.0 + 2.2 * n_columns,
        n_rows * max(2.4, 1.2 + min(0.17 * len(sites), 5.0)),
        f"Shift of layer inputs from step 0, lr {short(lr)}{title}",
        _caption(results, floor, any_few, why),
    )
    grid = panels(figure, len(norms))
    steps = shifts["step"].values.astype(float)
    image = None
    for axes, norm in zip(grid, norms, strict=True):
        values, dead, few, label = shown[norm]
        edges = _edges(steps), np.arange(len(sites) + 1) - 0.5
        image = axes.pcolormesh(
            *edges,
            np.maximum(values, floor).T,
            norm=LogNorm(floor, top),
            cmap="viridis",
            rasterized=True,
        )
        _hatch(axes, edges, (np.isnan(values) & ~dead).T, "xxxx")
        _hatch(axes, edges, dead.T, "....")
        _dots(axes, edges, few)
        axes.set_title(f"{norm} ({label})")
        step_axis(axes, results.experiment["steps"])
        axes.set_xlim(edges[0][0], edges[0][-1])
        axes.tick_params(left=is_leftmost(axes))
        if is_leftmost(axes):
            axes.set_ylabel("layer input, in execution order")
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    every = math.ceil(len(sites) / _MAX_LABELS)
    grid[0].set_yticks(range(0, len(sites), every), sites[::every])
    grid[0].invert_yaxis()
    assert image is not None
    bar = figure.colorbar(image, ax=grid, extend="min", pad=0.02, aspect=25)
    bar.set_label("mean shift, RMS over units\n(σ at step 0)")
    return figure


class _Panel(NamedTuple):
    """Median shift ``[step, site]``, where all units are dead, where it rests on fewer seeds than
    elsewhere, and which seeds it is of."""

    values: np.ndarray
    dead: np.ndarray
    few: np.ndarray
    label: str


def _panel(results: Records, shifts: xr.Dataset, norm: str) -> _Panel:
    ended = diverged(select(results, norm=norm)).transpose("seed").values
    seeds = np.flatnonzero(~ended) if not ended.all() else np.arange(len(ended))
    part = shifts.sel(norm=norm).isel(seed=seeds)
    median = over_seeds(part["mean_shift"]).sel(over_seeds="median").transpose("step", "site")
    recorded = part["dead_features"].notnull().any("seed").transpose("step", "site")
    values = np.where(np.isfinite(median.values), median.values, np.nan)
    label = describe_seeds(0 if ended.all() else len(seeds), len(ended))
    n = part["mean_shift"].notnull().sum("seed").transpose("step", "site").values
    few = (n > 0) & (n < len(seeds))
    return _Panel(values, np.isnan(values) & recorded.values, few, label)


def _scale(values: np.ndarray) -> tuple[float, float]:
    """Floor and top of the colour scale: the top decade above the data, `DECADES` at most."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return 1e-4, 1.0
    top = 10.0 ** math.ceil(math.log10(float(positive.max())))
    bottom = 10.0 ** math.floor(math.log10(float(positive.min())))
    return min(max(bottom, top * 10.0**-DECADES), top / 10), top


def _dots(axes: Axes, edges: tuple[np.ndarray, np.ndarray], mask: np.ndarray) -> None:
    """A dot amid each cell of ``mask[step, site]``."""
    column, row = np.nonzero(mask)
    if column.size:
        x, y = ((edge[1:] + edge[:-1]) / 2 for edge in edges)
        # White on a dark rim: seen on every colour of the scale, in grey too.
        axes.plot(
            x[column],
            y[row],
            linestyle="",
            marker="o",
            markersize=2.6,
            color="white",
            markeredgecolor="black",
            markeredgewidth=0.5,
        )


def _edges(centres: np.ndarray) -> np.ndarray:
    """Borders of cells around measured steps: halfway to the neighbours."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    between = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([centres[:1], between, centres[-1:]])


def _hatch(axes: Axes, edges: tuple[np.ndarray, np.ndarray], mask: np.ndarray, hatch: str) -> None:
    if mask.any():
        cells = np.ma.masked_array(np.zeros(mask.shape), ~mask)
        axes.pcolor(
            *edges,
            cells,
            cmap="Greys",
            vmin=-0.2,
            vmax=4,
            hatch=hatch,
            edgecolor="0.45",
            linewidth=0,
        )


def _examples(results: Records) -> str:
    """How many examples the reference batch really has: a small data set gives fewer."""
    # Positions of sequences and pixels count too, except where a site has lost them.
    count = results.reference["count"].min().item()
    asked = results.experiment.get("reference_size", count)
    return "?" if math.isnan(count) else f"{min(count, asked):g}"


def _caption(results: Records, floor: float, any_few: bool, why: str) -> str:
    experiment = results.experiment
    dots = (
        "White dot: the median rests on fewer seeds than elsewhere in the panel; in the others "
        "every unit is dead there, or the run has ended. "
    )
    return (
        f"Fixed reference batch of {_examples(results)} training examples, "
        f"measured every {experiment.get('reference_every', '?')} steps: an unchanged network "
        f"gives exactly 0 (as at step 0). Values up to {floor:g}, 0 among them, have the darkest "
        "colour. Median over the seeds that did not diverge (where all did: over those still "
        "running). Dead units (constant over the batch at either time) are left out. Hatched ×: "
        f"no run left or nothing recorded; dotted white: every unit dead. {dots * any_few}"
        f"σ: standard deviation of a unit over the batch at step 0. {why}"
    )
