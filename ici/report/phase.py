"""Figure: where training works, over depth and learning rate, a panel per norm."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ici.analysis.digest import Digest
from ici.analysis.records import describe_setting, short
from ici.report.captions import captions
from ici.report.stacked import cell_settings, stacked
from ici.report.style import is_leftmost, new_figure, panel_rows, panels, plain_log

_ROW_INCHES, _COLUMN_INCHES = 0.34, 0.42


def draw_phase(digest: Digest, title: str = "") -> Figure:
    """Median final loss of every cell as colour, what became of its seeds as marks.

    Rows are the settings (depths and whatever else was swept), columns the learning rates. Marks
    read without colour: ``✕ k/n`` seeds diverged, ``▬`` one made no progress, ``▲`` one spiked,
    ``●`` all reached the target.
    """
    settings, runs = cell_settings(digest), digest.runs.sortby("lr")
    norms, lrs = runs["norm"].values.tolist(), runs["lr"].values.tolist()
    losses = stacked(digest, runs["final_loss"])  # setting, norm, lr, seed
    known = np.isfinite(losses).any(axis=-1)
    middle = np.full(known.shape, np.nan)
    middle[known] = np.nanmedian(losses[known], axis=-1)
    marks = _marks(digest)
    rows, columns = panel_rows(len(norms))
    figure = new_figure(
        1.9 + columns * (0.4 + _COLUMN_INCHES * len(lrs)),
        rows * max(1.9, 0.9 + _ROW_INCHES * len(settings)),
        f"Where it trains{title}",
        captions(digest)["phase"],
    )
    grid = panels(figure, len(norms))
    positive = middle[np.isfinite(middle) & (middle > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    colours = mpl.colormaps["cividis"].with_extremes(bad="white")
    scale = LogNorm(low, max(high, 1.01 * low))
    image = None
    for i, (axes, norm) in enumerate(zip(grid, norms, strict=True)):
        shown = np.ma.masked_invalid(np.where(middle[:, i] > 0, middle[:, i], np.nan))
        image = axes.pcolormesh(shown, cmap=colours, norm=scale, edgecolors="white", linewidth=1)
        _write_marks(axes, marks[:, i], middle[:, i], scale)
        axes.set_title(norm)
        axes.set_xticks(np.arange(len(lrs)) + 0.5, [short(lr) for lr in lrs], rotation=60)
        axes.set_yticks(np.arange(len(settings)) + 0.5, _names(settings))
        axes.tick_params(length=0, labelleft=is_leftmost(axes))
        axes.set_xlabel("learning rate")
    if image is not None:
        bar = figure.colorbar(image, ax=grid, label="final loss (nats)", aspect=12, pad=0.01)
        plain_log(bar.ax.yaxis, low, high)
        bar.ax.tick_params(which="minor", length=0)
    return figure


def _names(settings: list[dict]) -> list[str]:
    return [describe_setting(setting) or "all" for setting in settings]


def _marks(digest: Digest) -> np.ndarray:
    """What is written into each cell ``[setting, norm, lr]``."""
    runs = digest.runs.sortby("lr")
    ended = stacked(digest, runs["diverged_at"].notnull()).astype(int)
    stuck = np.any(stacked(digest, runs["no_progress"]), axis=-1)
    spiked = np.any(stacked(digest, runs["spikes"]) > 0, axis=-1)
    met = np.zeros(ended.shape[:-1], bool)
    if "steps_to_target" in runs:
        met = np.all(np.isfinite(stacked(digest, runs["steps_to_target"])), axis=-1)
    n = ended.shape[-1]
    texts = np.empty(met.shape, object)
    stuck, spiked = np.asarray(stuck), np.asarray(spiked)
    for at in np.ndindex(met.shape):
        k = int(ended[at].sum())
        parts = [f"✕{k}/{n}" if k else "", "▬" if stuck[at] else ""]
        parts += ["▲" if spiked[at] else "", "●" if met[at] else ""]
        texts[at] = " ".join(part for part in parts if part)
    return texts


def _write_marks(axes: Axes, marks: np.ndarray, losses: np.ndarray, scale: LogNorm) -> None:
    for (row, column), text in np.ndenumerate(marks):
        loss = losses[row, column]
        dark = np.isfinite(loss) and loss > 0 and float(scale(loss)) < 0.5
        axes.text(
            column + 0.5,
            row + 0.5,
            text,
            ha="center",
            va="center",
            fontsize=6,
            color="white" if dark else "black",
        )
