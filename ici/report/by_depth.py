"""Figures of blocks in execution order: gradient norm, gradient shift, attribution."""

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
from ici.report.captions import captions
from ici.report.style import (
    is_leftmost,
    new_figure,
    norm_styles,
    panel_rows,
    panels,
    plain_log,
)


def _few_steps(steps: np.ndarray, n: int = 3) -> list[int]:
    """First, middle and last position of some steps."""
    return sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(n, len(steps)))})


def _present(values: xr.DataArray, dim: str) -> xr.DataArray:
    """Without the labels along `dim` that none of the networks shown has."""
    known = values.notnull().any([each for each in values.dims if each != dim])
    return values.isel({dim: known.values})


def _lines(axes: Axes, values: xr.DataArray, log: bool, labels: dict[str, str]) -> None:
    """A line per norm over blocks; what a log axis cannot show is a gap."""
    for norm, style in norm_styles(values["norm"].values.tolist()).items():
        line = values.sel(norm=norm).values.astype(float)
        line = np.where(line > 0, line, np.nan) if log else line
        known = np.isfinite(line)
        axes.plot(
            np.arange(len(line))[known],
            line[known],
            color=style.colour,
            linestyle=style.dashes,
            marker=style.marker,
            markersize=4,
            label=labels.get(norm, norm),
        )
    if log and bool((values > 0).any()):
        axes.set_yscale("log")
        positive = values.values[np.isfinite(values.values) & (values.values > 0)]
        plain_log(axes.yaxis, positive.min(), positive.max())
    names = values["block"].values.tolist()
    axes.set_xticks(range(len(names)), names, rotation=75, fontsize=5.5)


def draw_gradient_norms(
    digest: Digest, setting: dict[str, Any], lr: float, title: str = ""
) -> Figure | None:
    """Gradient norm of every block at the first, middle and last probed step, norms as lines.

    With the factor by which it grows per layer towards the input. None where the record has no
    norms of blocks.
    """
    if digest.gradients is None:
        return None
    chosen = digest.gradients.sel({**setting, "lr": lr})
    norms = _present(chosen["gradient_norm"].transpose("step", "norm", "block"), "block")
    if not norms.sizes["block"]:
        return None
    at = _few_steps(norms["step"].values)
    text = captions(digest)
    figure = new_figure(
        1.2 + 2.6 * len(at),
        3.2,
        f"Gradient norm by depth, lr {short(lr)}{title}",
        f"{text['gradients']} Legend: growth per layer towards the input. {text['growth']}",
    )
    grid = figure.subplots(1, len(at), sharey=True, squeeze=False)[0]
    for axes, i in zip(grid, at, strict=True):
        labels = {}
        if "growth" in chosen:
            for norm in norms["norm"].values.tolist():
                fit = chosen.isel(step=i).sel(norm=norm)
                if np.isfinite(fit["growth"]):
                    labels[norm] = (
                        f"{norm} × {float(fit['growth']):.2f} (R² {float(fit['r2']):.2f})"
                    )
        _lines(axes, norms.isel(step=i), True, labels)
        axes.set_title(f"step {int(norms['step'][i])}")
        axes.legend(frameon=False, fontsize=6)
    grid[0].set_ylabel("gradient norm")
    return figure


def draw_gradient_shift(
    digest: Digest, setting: dict[str, Any], lr: float, title: str = ""
) -> Figure | None:
    """Gradient shift of every block: L2, relative and cosine, medians over the measured steps.

    None where it was not measured.
    """
    if "gradient_shift" not in digest.measured:
        return None
    chosen = digest.measured["gradient_shift"].sel({**setting, "lr": lr})
    parts = (
        ("gradient_shift", "‖G − G′‖", True),
        ("gradient_shift_relative", "‖G − G′‖ / ‖G‖", True),
        ("gradient_shift_cosine", "cos(G, G′)", False),
    )
    figure = new_figure(
        8.6,
        3.2,
        f"Gradient shift per layer, lr {short(lr)}{title}",
        f"{captions(digest)['gradientShift']} Median over {chosen.sizes['step']} measured steps. "
        "The first layer has none: nothing lies below it.",
    )
    for axes, (name, label, log) in zip(figure.subplots(1, 3), parts, strict=True):
        values = _present(chosen[name].median("step").transpose("norm", "block"), "block")
        _lines(axes, values, log, {})
        axes.set_title(label)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside right center",
        frameon=False,
        title="norm",
        handlelength=3.2,
    )
    return figure


def draw_attribution(
    digest: Digest, setting: dict[str, Any], lr: float, title: str = ""
) -> Figure | None:
    """The attribution matrix of each norm at the last measured step; None without one.

    Exact zeros are left white: their block is not upstream of the site.
    """
    if "attribution" not in digest.measured:
        return None
    matrix = digest.measured["attribution"]["attribution"].sel({**setting, "lr": lr})
    matrix = matrix.transpose("step", "norm", "block", "site")
    known = matrix.notnull().any(["norm", "block", "site"])
    if not bool(known.any()):
        return None
    matrix = matrix.isel(step=int(np.flatnonzero(known.values)[-1]))
    matrix = _present(_present(matrix, "block"), "site")
    norms = matrix["norm"].values.tolist()
    rows, columns = panel_rows(len(norms))
    height = 0.9 + 0.13 * matrix.sizes["block"] + 0.5
    figure = new_figure(
        2.0 + columns * (0.5 + 0.13 * matrix.sizes["site"]),
        rows * max(2.2, height),
        f"Whose update shifts whose inputs, lr {short(lr)}, step {int(matrix['step'])}{title}",
        captions(digest)["attribution"].replace("Blank", "White"),
    )
    grid = panels(figure, len(norms))
    positive = matrix.values[np.isfinite(matrix.values) & (matrix.values > 0)]
    high = positive.max() if positive.size else 1.0
    low = max(positive.min(), high * 1e-6) if positive.size else 0.1
    colours = mpl.colormaps["cividis"].with_extremes(bad="white")
    image = None
    for axes, norm in zip(grid, norms, strict=True):
        values = matrix.sel(norm=norm).values
        shown = np.ma.masked_where(~(values > 0), values)
        scale = LogNorm(low, max(high, 1.01 * low))
        image = axes.imshow(shown, cmap=colours, norm=scale, aspect="auto")
        axes.set_title(norm)
        sites, blocks = matrix["site"].values.tolist(), matrix["block"].values.tolist()
        axes.set_xticks(range(len(sites)), sites, rotation=90, fontsize=5)
        axes.set_yticks(range(len(blocks)), blocks, fontsize=5)
        axes.tick_params(labelleft=is_leftmost(axes))
        axes.set_xlabel("inputs of")
        if is_leftmost(axes):
            axes.set_ylabel("update of")
    if image is not None:
        figure.colorbar(image, ax=grid, label="shift (σ)", pad=0.01)
    return figure
