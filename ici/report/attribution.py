"""Figure: whose update shifts whose inputs."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ici.analysis.digest import Digest
from ici.analysis.records import short
from ici.report.provenance import of_runs, of_seeds
from ici.report.style import is_leftmost, new_figure, panel_rows, panels, plain_log

TOGETHER = {"update_shift": "all together", "interaction": "interaction"}
_CELL_INCHES = 0.13
# Between the blocks and what they do together, in rows.
_GAP = 0.6
_DECADES = 5


def draw_attribution(
    digest: Digest, setting: dict[str, Any], lr: float, why: str = "", title: str = ""
) -> Figure | None:
    """The attribution matrix of each norm at the last measured step; None without one.

    Colour is the shift (σ) of a site's inputs (column) when a single block (row) takes its update;
    below, all blocks together, and what the sum of the single ones leaves over. Exact zeros are
    white, what was not measured is hatched.
    """
    if "attribution" not in digest.measured:
        return None
    measured = digest.measured["attribution"].sel({**setting, "lr": lr})
    known = measured["attribution"].notnull()
    at = np.flatnonzero(known.any(["norm", "block", "site"]).values)
    if not at.size:
        return None
    measured = measured.isel(
        step=int(at[-1]),
        block=known.any(["norm", "step", "site"]).values,
        site=known.any(["norm", "step", "block"]).values,
    )
    norms = measured["norm"].values.tolist()
    blocks, sites = measured["block"].values.tolist(), measured["site"].values.tolist()
    rows, columns = panel_rows(len(norms))
    figure = new_figure(
        2.0 + columns * max(1.6, 0.4 + _CELL_INCHES * len(sites)),
        rows * max(2.4, 1.5 + _CELL_INCHES * (len(blocks) + 3)),
        f"Whose update shifts whose inputs, lr {short(lr)}, step {int(measured['step'])}{title}",
        _caption(digest, setting, lr, why),
    )
    grid = panels(figure, len(norms))
    together = [name for name in TOGETHER if name in measured]
    scale = _scale(*(measured[name].values for name in ("attribution", *together)))
    image = None
    for axes, norm in zip(grid, norms, strict=True):
        of_norm = measured.sel(norm=norm)
        matrix = of_norm["attribution"].transpose("block", "site").values
        image = _draw(axes, matrix, 0, scale)
        if together:
            below = xr.concat([of_norm[name] for name in together], "part", coords="minimal")
            _draw(axes, below.transpose("part", "site").values, len(blocks) + _GAP, scale)
        axes.set_title(norm if np.isfinite(matrix).any() else f"{norm} (no seed left)")
        _name(axes, [*blocks, *(TOGETHER[name] for name in together)], len(blocks), sites)
    grid[0].set_ylim(len(blocks) + _GAP + len(together) if together else len(blocks), 0)
    if image is not None:
        bar = figure.colorbar(image, ax=grid, label="shift (σ)", pad=0.01, extend="min", aspect=25)
        plain_log(bar.ax.yaxis, scale.vmin or 0.1, scale.vmax or 1.0)
    return figure


def _scale(*values: np.ndarray) -> LogNorm:
    every = np.concatenate([each.ravel() for each in values])
    positive = every[np.isfinite(every) & (every > 0)]
    high = float(positive.max()) if positive.size else 1.0
    low = max(float(positive.min()), high * 10.0**-_DECADES) if positive.size else 0.1
    return LogNorm(low, max(high, 1.01 * low))


def _draw(axes: Axes, matrix: np.ndarray, top: float, scale: LogNorm) -> Any:
    """Cells of ``matrix[row, column]`` from the height `top` on; returns their colours."""
    edges = np.arange(matrix.shape[1] + 1), top + np.arange(matrix.shape[0] + 1)
    if np.isnan(matrix).any():
        axes.pcolor(
            *edges,
            np.ma.masked_array(np.zeros(matrix.shape), ~np.isnan(matrix)),
            cmap="Greys",
            vmin=-0.2,
            vmax=4,
            hatch="xxxx",
            edgecolor="0.45",
            linewidth=0,
        )
    shown = np.ma.masked_where(~(matrix > 0), matrix)
    colours = mpl.colormaps["cividis"].with_extremes(bad=(0, 0, 0, 0))
    return axes.pcolormesh(*edges, shown, cmap=colours, norm=scale)


def _name(axes: Axes, rows: list[str], n_blocks: int, sites: list[str]) -> None:
    heights = np.arange(len(rows)) + 0.5
    heights[n_blocks:] += _GAP
    axes.set_yticks(heights, rows, fontsize=5.5)
    axes.set_xticks(np.arange(len(sites)) + 0.5, sites, rotation=90, fontsize=5.5)
    axes.tick_params(labelleft=is_leftmost(axes), length=1.5)
    if axes.xaxis.get_tick_params()["labelbottom"]:
        axes.set_xlabel("inputs of")
    if is_leftmost(axes):
        axes.set_ylabel("update of")


def _caption(digest: Digest, setting: dict[str, Any], lr: float, why: str) -> str:
    return (
        f"{of_runs(digest, {**setting, 'lr': lr})} Shift of each layer input (columns) when only "
        "one block (row) takes its update; all together: the whole update; interaction: what the "
        f"sum of the single ones leaves of that. {of_seeds(digest)} Reference batch of "
        f"{digest.experiment.get('reference_size', '?')} examples: a network that does not change "
        "has shift exactly 0, there is no sampling noise. White: exactly 0, as where the block is "
        "not upstream. Hatched: no such layer, every unit dead, or no seed left. The scale ends at "
        f"the smallest shift, or {_DECADES} decades below the largest. {why}"
    )
