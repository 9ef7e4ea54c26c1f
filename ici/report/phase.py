"""Figure: where training works, over depth and learning rate, a panel per norm."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from ici.analysis.digest import Digest
from ici.analysis.records import describe_setting, short
from ici.report.provenance import of_runs
from ici.report.stacked import cell_settings, stacked
from ici.report.style import is_leftmost, new_figure, plain_log

_ROW_INCHES, _COLUMN_INCHES, _LETTER_INCHES = 0.34, 0.32, 0.06
_MAX_WIDTH_INCHES = 12.0
# Beyond these, rows get lower, and then their marks smaller.
_MAX_HEIGHT_INCHES, _MIN_ROW_INCHES, _LOW_ROW_INCHES = 16.0, 0.14, 0.26


def draw_phase(digest: Digest, title: str = "") -> Figure:
    """Median final loss of every cell as colour, what became of its seeds as marks.

    Rows are the settings (depths and whatever else was swept), columns the learning rates. Marks
    read without colour: ``✕ k/n`` seeds diverged, ``…`` one is still going, ``▬`` one made no
    progress, ``▲`` one spiked, ``●`` all reached the target. A cell without a final loss is white.
    """
    settings, runs = cell_settings(digest), digest.runs.sortby("lr")
    norms, lrs = runs["norm"].values.tolist(), runs["lr"].values.tolist()
    losses = _median(stacked(digest, runs["final_loss"]))
    marks = _marks(digest)
    names, label = _names(settings)
    row_inches = float(np.clip(_MAX_HEIGHT_INCHES / len(settings), _MIN_ROW_INCHES, _ROW_INCHES))
    panel_inches = 0.2 + max(0.9, _COLUMN_INCHES * len(lrs))
    left_inches = 1.4 + _LETTER_INCHES * max(len(name) for name in names)
    columns = int(np.clip((_MAX_WIDTH_INCHES - left_inches) // panel_inches, 1, len(norms)))
    rows = -(-len(norms) // columns)
    figure = new_figure(
        max(left_inches + columns * panel_inches, 5.0),
        rows * max(1.7, 1.0 + row_inches * len(settings)),
        f"Where it trains{title}",
        _caption(digest),
    )
    grid = _panels(figure, rows, columns, len(norms))
    positive = losses[np.isfinite(losses) & (losses > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    colours = mpl.colormaps["cividis"].with_extremes(bad="white")
    scale = LogNorm(low, max(high, 1.1 * low))
    size = 6.0 if row_inches >= _LOW_ROW_INCHES else 4.0
    image = None
    for i, (axes, norm) in enumerate(zip(grid, norms, strict=True)):
        shown = np.ma.masked_invalid(np.where(losses[:, i] > 0, losses[:, i], np.nan))
        image = axes.pcolormesh(shown, cmap=colours, norm=scale, edgecolors="0.6", linewidth=0.4)
        _write_marks(axes, marks[:, i], losses[:, i], scale, size)
        axes.set_title(norm)
        axes.set_xticks(np.arange(len(lrs)) + 0.5, [short(lr) for lr in lrs], rotation=60)
        axes.set_yticks(np.arange(len(settings)) + 0.5, names)
        axes.tick_params(length=0, labelleft=is_leftmost(axes))
        if axes.xaxis.get_tick_params()["labelbottom"]:
            axes.set_xlabel("learning rate")
        if is_leftmost(axes):
            axes.set_ylabel(label)
    if image is not None:
        bar = figure.colorbar(image, ax=grid, label="final loss (nats)", aspect=12, pad=0.01)
        plain_log(bar.ax.yaxis, low, high)
        # The bar is short.
        if high / low < 3:
            bar.ax.yaxis.set_major_locator(MaxNLocator(4))
        elif high / low < 100:
            bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        bar.ax.tick_params(which="minor", length=0)
    return figure


def _panels(figure: Figure, rows: int, columns: int, n: int) -> list[Axes]:
    """Of many learning rates, fewer panels fit side by side than of curves."""
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for unused in grid[n:]:
        unused.remove()
    for lowest in grid[max(0, n - columns) : n]:
        lowest.tick_params(labelbottom=True)
    return grid[:n]


def _median(losses: np.ndarray) -> np.ndarray:
    """Over the seeds that have a final loss ``[setting, norm, lr]``; NaN where none has."""
    known = np.isfinite(losses).any(axis=-1)
    middle = np.full(known.shape, np.nan)
    middle[known] = np.nanmedian(np.where(np.isfinite(losses), losses, np.nan)[known], axis=-1)
    return middle


def _names(settings: list[dict[str, Any]]) -> tuple[list[str], str]:
    """What the rows are called, and the axis they lie on."""
    if len(settings[0]) == 1:
        (dim,) = settings[0]
        return [short(setting[dim]) for setting in settings], dim
    return [describe_setting(setting) or "all" for setting in settings], ""


def _marks(digest: Digest) -> np.ndarray:
    """What is written into each cell ``[setting, norm, lr]``: divergences above the other marks."""
    runs = digest.runs.sortby("lr")
    ended = stacked(digest, runs["diverged_at"].notnull())
    met = np.zeros(ended.shape[:-1], bool)
    if "steps_to_target" in runs:
        met = np.isfinite(stacked(digest, runs["steps_to_target"])).all(axis=-1)
    signs = {
        "…": stacked(digest, runs["going"]).any(axis=-1),
        "▬": stacked(digest, runs["no_progress"]).any(axis=-1),
        "▲": (stacked(digest, runs["spikes"]) > 0).any(axis=-1),
        "●": met,
    }
    texts = np.empty(met.shape, object)
    for at in np.ndindex(met.shape):
        k, n = int(ended[at].sum()), ended.shape[-1]
        lines = [f"✕{k}/{n}" if k else "", "".join(s for s, holds in signs.items() if holds[at])]
        texts[at] = "\n".join(line for line in lines if line)
    return texts


def _write_marks(
    axes: Axes, marks: np.ndarray, losses: np.ndarray, scale: LogNorm, size: float
) -> None:
    for (row, column), text in np.ndenumerate(marks):
        loss = losses[row, column]
        dark = np.isfinite(loss) and loss > 0 and float(scale(loss)) < 0.5
        axes.text(
            column + 0.5,
            row + 0.5,
            text,
            ha="center",
            va="center",
            fontsize=size,
            linespacing=1.1,
            color="white" if dark else "black",
        )


def _caption(digest: Digest) -> str:
    n, attrs = digest.n_seeds, digest.runs.attrs
    median = f"median over {n} seeds" if n > 1 else "of one seed, no interval"
    target = f" ● every seed reached {attrs['target']} ({digest.target_source})."
    return (
        f"{of_runs(digest)} Colour: final training loss (mean of a run's last "
        f"{attrs['final_window_steps']} steps), {median}; white: no seed has one. ✕ k/n: k of n "
        "seeds diverged, they are in no median; … a seed is still going; ▬ a seed ended no lower "
        f"than its first loss; ▲ a seed spiked ({digest.spikes.rule.describe()})."
        f"{target if digest.target is not None else ''}"
    )
