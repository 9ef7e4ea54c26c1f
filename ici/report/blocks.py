"""Lines over the blocks of a network, in execution order."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ici.report.style import norm_styles, plain_log

_MAX_LABELS = 26


def present(values: xr.DataArray, dim: str) -> xr.DataArray:
    """Without the labels along `dim` that none of the networks shown has."""
    known = values.notnull().any([each for each in values.dims if each != dim])
    return values.isel({dim: known.values})


def few_steps(values: xr.DataArray) -> xr.DataArray:
    """First, middle and last of the steps at which any network has a value."""
    known = np.flatnonzero(values.notnull().any([d for d in values.dims if d != "step"]).values)
    few = np.linspace(0, known.size - 1, min(3, known.size)).round().astype(int)
    return values.isel(step=known[few])


def draw_over_blocks(axes: Axes, values: xr.DataArray, labels: dict[str, str]) -> None:
    """A line per norm ``(norm, block)``."""
    blocks = values["block"].values.tolist()
    for norm, style in norm_styles(values["norm"].values.tolist()).items():
        line = values.sel(norm=norm).values
        known = np.isfinite(line)
        axes.plot(
            np.flatnonzero(known),
            line[known],
            color=style.colour,
            linestyle=style.dashes,
            marker=style.marker,
            markersize=4,
            label=labels.get(norm, norm),
        )
    every = -(-len(blocks) // _MAX_LABELS)
    axes.set_xticks(range(0, len(blocks), every), blocks[::every], rotation=90, fontsize=5.5)
    axes.set_xlim(-0.5, len(blocks) - 0.5)


def log_scale(axes: Axes, values: xr.DataArray) -> None:
    """A logarithmic axis for all of `values`; as it is where none is positive."""
    positive = values.values[np.isfinite(values.values) & (values.values > 0)]
    if positive.size:
        low, high = float(positive.min()), float(positive.max())
        room = (high / low) ** 0.05 * 1.05
        axes.set_yscale("log")
        axes.set_ylim(low / room, high * room)
        plain_log(axes.yaxis, low, high)
