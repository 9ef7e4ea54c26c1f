"""Figure: whether gradients vanish or explode on their way down."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ici.analysis.digest import Digest
from ici.analysis.records import short
from ici.report.blocks import draw_over_blocks, few_steps, log_scale, present
from ici.report.provenance import of_runs, of_seeds
from ici.report.style import new_figure

_LEGEND_INCHES = 0.42


def draw_gradient_norms(
    digest: Digest, setting: dict[str, Any], lr: float, why: str = "", title: str = ""
) -> Figure | None:
    """Gradient norm of every block at the first, middle and last probed step, norms as lines.

    The legend holds the factor by which it grows per layer towards the input, and R² of that fit,
    at each of these steps. None where the record has no norms of blocks.
    """
    if digest.gradients is None:
        return None
    chosen = digest.gradients.sel({**setting, "lr": lr})
    norms = present(chosen["gradient_norm"].transpose("step", "norm", "block"), "block")
    norms = few_steps(norms.where(norms > 0))
    steps = norms["step"].values.tolist()
    if not steps:
        return None
    chosen = chosen.sel(step=steps)
    figure = new_figure(
        2.6 + 2.4 * len(steps),
        max(3.3, 1.0 + _LEGEND_INCHES * norms.sizes["norm"]),
        f"Gradient norm by depth, lr {short(lr)}{title}",
        _caption(digest, setting, lr, why),
    )
    grid = figure.subplots(1, len(steps), sharey=True, squeeze=False)[0]
    labels = {norm: f"{norm}{_fits(chosen, norm)}" for norm in norms["norm"].values.tolist()}
    for i, (axes, step) in enumerate(zip(grid, steps, strict=True)):
        draw_over_blocks(axes, norms.isel(step=i), labels)
        axes.set_title(f"step {step}")
    grid[0].set_ylabel("gradient norm")
    log_scale(grid[0], norms)
    at = ", ".join(f"{step}" for step in steps)
    figure.legend(
        *grid[0].get_legend_handles_labels(),
        loc="outside right center",
        frameon=False,
        fontsize=6.5,
        title=f"norm, growth per layer\nat step {at}" if "growth" in chosen else "norm",
        handlelength=3.2,
    )
    return figure


def _fits(chosen: xr.Dataset, norm: str) -> str:
    """The factors and R² of the fits at each step, in two lines."""
    if "growth" not in chosen:
        return ""
    growth, r2 = (chosen[name].sel(norm=norm).transpose("step").values for name in ("growth", "r2"))
    if not np.isfinite(growth).any():
        return ""
    factors, fits = (", ".join(_two(value) for value in values) for values in (growth, r2))
    return f"\n× {factors}\nR² {fits}"


def _two(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _caption(digest: Digest, setting: dict[str, Any], lr: float, why: str) -> str:
    every = (digest.experiment.get("probe") or {}).get("every", "?")
    fit = ""
    if digest.gradients is not None and "growth" in digest.gradients:
        fit = (
            " Growth: least squares line through the log norms of the repeated blocks; factor per "
            "layer towards the input, above 1 gradients explode, below 1 they vanish; it says "
            "little where R² is far below 1."
        )
    return (
        f"{of_runs(digest, {**setting, 'lr': lr})} Norm of the gradient of each block on the "
        f"training batch, probed every {every} steps; first, middle and last probe.{fit} "
        f"{of_seeds(digest)} {why}"
    )
