"""Figure: mean and standard deviation of layer inputs over training."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ici.analysis.records import (
    Records,
    check_one_setting,
    diverged,
    has_moments,
    run_dims,
    select,
    short,
)
from ici.analysis.shifts import shared_sites
from ici.errors import InputError
from ici.report.style import (
    BLUE,
    DASHES,
    VERMILLION,
    broken_path,
    describe_seeds,
    lone_marker,
    new_figure,
    panel_rows,
    step_axis,
)

PERCENTILES = (15, 50, 85)

_N_SITES = 4
_LINEAR_UP_TO = 10.0
_NAME_CHARACTERS = 20  # of a site, beside a panel


def draw_layer_inputs(results: Records, lr: float, why: str = "", title: str = "") -> Figure:
    """Percentiles over units of each unit's mean and standard deviation, a column per norm.

    Many norms continue below the first ones, on the same scales.

    The moments are those that the training step measured on its own batch. Percentiles 15, 50 and
    85 as in figure 1 of Ioffe & Szegedy (2015), who take them over the values of one unit; here
    they are over the units of a layer. Units of all seeds that did not diverge are taken
    together; where every seed diverged, those of the seed that lasted longest.

    Raises:
      InputError: the record holds several depths or other settings, no such learning rate, or no
        moments.
    """
    check_one_setting(results)
    if not has_moments(results.probe):
        raise InputError(
            f"{results.path} holds no mean and std of layer inputs over training: wanted a record "
            'whose probe has "moments" among its stats.'
        )
    results = select(results, lr=lr)
    sites = few_sites(shared_sites(results))
    norms = results.runs["norm"].values.tolist()
    n_bands, n_columns = panel_rows(len(norms))
    figure = new_figure(
        2.0 + 2.2 * n_columns,
        0.9 + 1.35 * len(sites) * n_bands,
        f"Layer inputs over training, lr {short(lr)}{title}",
        _caption(results, why),
    )
    grid = _grid(figure, sites, len(norms))
    bands = {norm: _bands(results, norm, sites) for norm in norms}
    largest = np.max([_largest(b["mean"], b["std"]) for b in bands.values()], axis=0)
    for (norm, band), column in zip(bands.items(), grid, strict=True):
        for row, axes in enumerate(column):
            _draw_means(axes, band["steps"], band["mean"][:, :, row])
            _draw_stds(axes, band["steps"], band["std"][:, :, row])
            axes.axhline(0, color="0.6", linewidth=0.5, zorder=0)
            if band["ended"] is not None:
                axes.axvline(band["ended"], color="0.3", linewidth=0.8, linestyle=":")
                axes.plot(
                    band["ended"], 0.93, "x", color="black", transform=axes.get_xaxis_transform()
                )
            step_axis(axes, results.experiment["steps"])
        column[0].set_title(f"{norm} ({band['seeds']})")
    for axes, reaches in zip(grid[0], largest, strict=True):
        # Within ±1 the one scale is the other.
        if largest.max() > _LINEAR_UP_TO and reaches > 1:
            axes.set_yscale("symlog", linthresh=1.0)
            axes.yaxis.set_major_locator(FixedLocator(_symlog_ticks(reaches)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
    scale = "mean and std of a unit of the layer's input"
    if largest.max() > _LINEAR_UP_TO:
        scale += " (linear within ±1, log beyond)"
    figure.supylabel(scale, fontsize=8)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def _grid(figure: Figure, sites: list[str], n_norms: int) -> list[list[Axes]]:
    """Panels ``[norm][site]``; those of a site share their scale."""
    n_bands, n_columns = panel_rows(n_norms)
    n_sites = len(sites)
    drawn = figure.subplots(n_bands * n_sites, n_columns, sharex=True, squeeze=False)
    for unused in drawn[-n_sites:, n_norms - (n_bands - 1) * n_columns :].ravel():
        unused.remove()
    grid = []
    for norm in range(n_norms):
        band, column = divmod(norm, n_columns)
        grid.append(drawn[band * n_sites : (band + 1) * n_sites, column].tolist())
        for site, axes in zip(sites, grid[norm], strict=True):
            if norm:
                axes.sharey(grid[0][sites.index(site)])
            axes.tick_params(labelleft=column == 0, labelbottom=axes is grid[norm][-1])
            if column == 0:
                axes.set_ylabel(broken_path(site, _NAME_CHARACTERS))
    return grid


def few_sites(sites: list[str], n: int = _N_SITES) -> list[str]:
    """The last site, and `n` − 1 from first to last of the kind that is most frequent.

    The kind of a site is the last part of its path: inputs of linear layers are not shown beside
    inputs of norms.
    """
    if len(sites) <= n:
        return sites
    kinds = [site.split("/")[-1] for site in sites[:-1]]
    most = max(kinds, key=kinds.count)
    # Where no kind recurs, all are one kind.
    mixed = kinds.count(most) == 1
    alike = [site for site, kind in zip(sites[:-1], kinds, strict=True) if mixed or kind == most]
    positions = np.unique(np.linspace(0, len(alike) - 1, n - 1).round().astype(int))
    return [*(alike[i] for i in positions), sites[-1]]


def _bands(results: Records, norm: str, sites: list[str]) -> dict[str, Any]:
    """Percentiles ``[percentile, step, site]`` of one norm's runs, and which runs these are."""
    runs = select(results, norm=norm)
    dead_at = runs.runs["diverged_at"].transpose("seed").values
    survives = ~diverged(runs).transpose("seed").values
    seeds = np.flatnonzero(survives) if survives.any() else np.array([np.nanargmax(dead_at)])
    moments = runs.probe[["mean", "std"]].sel(site=sites)
    moments = moments.isel(seed=seeds).transpose(*run_dims(runs), "step", "site", "feature")
    n, of = len(seeds), len(survives)
    return {
        "steps": moments["step"].values,
        "mean": _percentiles(moments["mean"].values),
        "std": _percentiles(moments["std"].values),
        "ended": None if survives.any() else float(dead_at[seeds[0]]),
        "seeds": describe_seeds(n, of) if survives.any() else f"longest of {of} diverged seeds",
    }


def _percentiles(values: np.ndarray) -> np.ndarray:
    """`PERCENTILES` ``[percentile, step, site]`` of ``[seed, step, site, feature]``."""
    units = np.moveaxis(values, 0, -1)
    units = units.reshape(*units.shape[:2], -1)
    # A diverging step may hold inf, whose percentiles are undefined.
    units = np.where(np.isfinite(units), units, np.nan)
    known: np.ndarray = np.logical_or.reduce(np.isfinite(units), axis=-1)
    filled = np.where(known[..., None], units, 0.0)
    found = np.nanpercentile(filled, PERCENTILES, axis=-1)
    return np.where(known, found, np.nan)


def _largest(*bands: np.ndarray) -> np.ndarray:
    """Largest finite size ``[site]`` in ``[percentile, step, site]``."""
    sizes = np.abs(np.stack(bands))
    return np.where(np.isfinite(sizes), sizes, 0.0).max(axis=(0, 1, 2))


def _draw_means(axes: Axes, steps: np.ndarray, band: np.ndarray) -> None:
    low, middle, high = band
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(steps, middle, color=BLUE, label="mean of a unit", marker=lone_marker(middle))


def _draw_stds(axes: Axes, steps: np.ndarray, band: np.ndarray) -> None:
    """As lines, since two filled bands would hide one another."""
    low, middle, high = band
    style = {"color": VERMILLION, "linestyle": DASHES[1]}
    axes.plot(steps, middle, **style, label="std of a unit", marker=lone_marker(middle))
    for edge in (low, high):
        axes.plot(steps, edge, **style, linewidth=0.6)


def _symlog_ticks(largest: float) -> list[float]:
    """Ticks of a symmetric logarithmic axis, fewer the further it reaches."""
    mantissas, step = ((1, 3), 1) if largest < 100 else ((1,), 1 if largest < 1e5 else 3)
    ticks = [m * 10.0**power for power in range(0, 39, step) for m in mantissas]
    near = [0.5, *ticks] if largest < 100 else ticks
    return [*(-tick for tick in near), 0.0, *near]


def _caption(results: Records, why: str) -> str:
    experiment = results.experiment
    batch, measured = experiment.get("batch_size", "?"), results.probe.sizes["step"]
    text = (
        "Thick line: median unit; band or thin lines: 15th to 85th percentile over the units of "
        "the layer and the seeds shown (the percentiles of Ioffe & Szegedy 2015, fig. 1, there "
        f"over values of one unit). Moments of each training batch of {batch}, measured by the "
        f"training step at {measured} of {experiment['steps']} steps. "
    )
    ended = diverged(results)
    if bool(ended.any()):
        text += "Diverged seeds are left out; ×: where all did, the end of the longest. "
    return text + why
