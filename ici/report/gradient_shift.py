"""Figure: how much the layers below change a layer's gradient."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from ici.analysis.digest import Digest
from ici.analysis.records import short
from ici.report.blocks import draw_over_blocks, few_steps, log_scale, present
from ici.report.provenance import of_runs, of_seeds
from ici.report.style import new_figure

PARTS = (
    ("gradient_shift", "‖G − G′‖", True),
    ("gradient_shift_relative", "‖G − G′‖ / ‖G‖", True),
    ("gradient_shift_cosine", "cos(G, G′)", False),
)


def draw_gradient_shift(
    digest: Digest, setting: dict[str, Any], lr: float, why: str = "", title: str = ""
) -> Figure | None:
    """Gradient shift of every block: L2, relative and cosine, norms as lines.

    Rows are the first, the middle and the last measured step. Blocks whose gradient does not move
    at all, as the first one's, have no point. None where it was not measured.
    """
    if "gradient_shift" not in digest.measured:
        return None
    measured = digest.measured["gradient_shift"].sel({**setting, "lr": lr})
    # An unmoved gradient has cosine 1 by definition, which would pass for a measurement.
    moved = measured["gradient_shift"] > 0
    known = few_steps(present(measured["gradient_shift"].where(moved), "block"))
    steps, blocks = known["step"].values.tolist(), known["block"].values.tolist()
    if not steps:
        return None
    figure = new_figure(
        8.8,
        0.9 + 1.7 * len(steps),
        f"Gradient shift per layer, lr {short(lr)}{title}",
        _caption(digest, setting, lr, why),
    )
    grid = figure.subplots(len(steps), len(PARTS), sharex=True, sharey="col", squeeze=False)
    for column, (name, label, log) in enumerate(PARTS):
        values = measured[name].where(moved).sel(step=steps, block=blocks)
        values = values.transpose("step", "norm", "block")
        for row in range(len(steps)):
            draw_over_blocks(grid[row, column], values.isel(step=row), {})
        if log:
            log_scale(grid[0, column], values)
        grid[0, column].set_title(label)
    for row, step in enumerate(steps):
        grid[row, 0].set_ylabel(f"step {step}")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(),
        loc="outside right center",
        frameon=False,
        title="norm",
        handlelength=3.2,
    )
    return figure


def _caption(digest: Digest, setting: dict[str, Any], lr: float, why: str) -> str:
    n = digest.measured["gradient_shift"].sizes["step"]
    return (
        f"{of_runs(digest, {**setting, 'lr': lr})} Change of each layer's gradient when the layers "
        "below it take their update, on the same batch (Santurkar et al. 2018, Def. 2.1), at the "
        f"first, middle and last of {n} measured steps. {of_seeds(digest)} The floor is exactly 0, "
        f"for a layer with nothing to change below it, as the first: it has no point. {why}"
    )
