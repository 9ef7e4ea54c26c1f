"""Figure: the loss landscape along the gradient, over training."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ici.analysis.digest import Digest
from ici.analysis.records import short
from ici.report.provenance import of_runs, of_seeds
from ici.report.style import lone_marker, new_figure, norm_styles, plain_log, step_axis


def draw_landscape(
    digest: Digest, setting: dict[str, Any], lr: float, why: str = "", title: str = ""
) -> Figure | None:
    """Bands of the loss and of the distance of gradients along the gradient, and smoothness.

    With sharpness times learning rate where that was measured; None where neither was.
    """
    panels = _panels(digest)
    if not panels:
        return None
    figure = new_figure(
        0.8 + 2.5 * len(panels),
        2.9,
        f"Loss landscape along the gradient, lr {short(lr)}{title}",
        _caption(digest, setting, lr, why, panels),
    )
    for axes, (measurement, name, label) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        values = digest.measured[measurement][name].sel({**setting, "lr": lr})
        limit = 2.0 if measurement == "sharpness" else None
        _draw(axes, values, label, int(digest.experiment["steps"]), limit)
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


def _draw(axes: Axes, values: xr.DataArray, label: str, steps: int, limit: float | None) -> None:
    """Norms as lines, with a band over step sizes where there are several; `limit` is dotted."""
    # A step that overflows has no place on an axis.
    values = values.where(np.isfinite(values))
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
    positive = values.values[values.values > 0]
    if limit is not None:
        axes.axhline(limit, color="0.3", linewidth=0.7, linestyle=":")
        positive = np.append(positive, limit)
    # Within a small factor, a logarithmic axis has hardly a number.
    if drawn and positive.max() > 4 * positive.min():
        axes.set_yscale("log")
        plain_log(axes.yaxis, positive.min(), positive.max())
    axes.set_title(label)
    step_axis(axes, steps)


def _caption(
    digest: Digest,
    setting: dict[str, Any],
    lr: float,
    why: str,
    panels: list[tuple[str, str, str]],
) -> str:
    shown = {measurement for measurement, _, _ in panels}
    text = f"{of_runs(digest, {**setting, 'lr': lr})} "
    if "landscape" in shown:
        multiples = digest.measured["landscape"]["multiple"].values
        text += (
            f"Along the gradient at one point, over {len(multiples)} step sizes of "
            f"{multiples.min():g} to {multiples.max():g} learning rates: the loss, the distance of "
            "the gradient there from the one here, and the largest ratio of that distance to the "
            "step (Santurkar et al. 2018, §3.2). Bands: range over those where it "
            "is finite; lines: their median. "
        )
    if "sharpness" in shown:
        text += (
            "λ max: largest eigenvalue of the loss's Hessian on the training batch; dotted: 2, "
            "above which plain gradient descent leaves a quadratic. "
        )
    return f"{text}{of_seeds(digest)} {why}"
