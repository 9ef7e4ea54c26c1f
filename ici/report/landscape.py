"""Figure: the loss landscape along the gradient, over training."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ici.analysis.digest import Digest
from ici.analysis.records import short
from ici.report.captions import captions
from ici.report.style import lone_marker, new_figure, norm_styles, plain_log, step_axis


def draw_landscape(
    digest: Digest, setting: dict[str, Any], lr: float, title: str = ""
) -> Figure | None:
    """Bands of the loss and of the distance of gradients along the gradient, and smoothness.

    With sharpness times learning rate where that was measured; None where neither was.
    """
    panels = _panels(digest)
    if not panels:
        return None
    text = captions(digest)
    caption = text["landscape"] + " Bands: over step sizes; lines: their median."
    if "sharpness" in digest.measured:
        caption += f" Sharpness: {text['sharpness']}"
    figure = new_figure(
        0.8 + 2.5 * len(panels),
        2.9,
        f"Loss landscape along the gradient, lr {short(lr)}{title}",
        caption,
    )
    for axes, (measurement, name, label) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        values = digest.measured[measurement][name].sel({**setting, "lr": lr})
        _draw(axes, values, label, int(digest.experiment["steps"]))
        if measurement == "sharpness":
            axes.axhline(2, color="0.3", linewidth=0.7, linestyle=":")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside right center",
        frameon=False,
        title="norm",
        handlelength=3.2,
    )
    return figure


def _panels(digest: Digest) -> list[tuple[str, str, str]]:
    wanted = [
        ("landscape", "loss_along", "loss"),
        ("landscape", "gradient_distance", "gradient predictiveness"),
        ("landscape", "effective_smoothness", "effective β-smoothness"),
        ("sharpness", "sharpness_times_lr", "λ max × learning rate"),
    ]
    return [panel for panel in wanted if panel[0] in digest.measured]


def _draw(axes: Axes, values: xr.DataArray, label: str, steps: int) -> None:
    drawn = False
    for norm, style in norm_styles(values["norm"].values.tolist()).items():
        line = values.sel(norm=norm)
        at = line["step"].values
        if "multiple" in line.dims:
            line = line.transpose("step", "multiple")
            known = line.notnull().any("multiple").values
            rows = np.where(known[:, None], line.values, 0.0)
            low, middle, high = (
                np.where(known, f(rows, axis=1), np.nan)
                for f in (np.nanmin, np.nanmedian, np.nanmax)
            )
            axes.fill_between(at, low, high, color=style.colour, alpha=0.2, linewidth=0)
        else:
            middle = line.values
        drawn |= bool((middle > 0).any())
        axes.plot(
            at,
            middle,
            color=style.colour,
            linestyle=style.dashes,
            marker=style.marker if lone_marker(middle) or len(at) < 40 else "",
            markersize=3.5,
            label=norm,
        )
    if drawn:
        axes.set_yscale("log")
        positive = values.values[np.isfinite(values.values) & (values.values > 0)]
        plain_log(axes.yaxis, positive.min(), positive.max())
    axes.set_title(label)
    step_axis(axes, steps)
