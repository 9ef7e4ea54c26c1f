"""Figure: spikes from near by, and which layers' inputs moved before them."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ici.analysis.anatomy import Anatomy
from ici.analysis.digest import Digest
from ici.analysis.records import Records, run_dims, select, short, training_loss
from ici.analysis.shifts import mean_shift
from ici.report.captions import captions
from ici.report.style import BLACK, BLUE, GREEN, PURPLE, VERMILLION, new_figure, plain_log

MAX_SHOWN, MAX_MOVERS = 6, 3
_BEFORE_STEPS, _AFTER_STEPS = 80, 40
_MOVER_STYLES = ((BLUE, "s"), (VERMILLION, "D"), (GREEN, "^"))


def draw_spike_anatomy(results: Records, digest: Digest, title: str = "") -> Figure | None:
    """Loss and shift of the first movers around the largest spikes, and the test of their lead.

    Spikes are ordered by height over their level; one of each run comes before a second. None
    without spikes.
    """
    shown = _largest(digest.spikes.spikes)
    if not shown:
        return None
    lead = digest.spikes.lead
    text = captions(digest)["spikes"]
    if lead is not None and lead.n_events:
        text = (
            f"{lead.n_led} of {lead.n_events} spikes were led by a shift at most "
            f"{lead.lookback_steps} steps before; with the spikes at {lead.n_rotations} other sets "
            f"of times {100 * lead.null_share:.0f} % are (p = {lead.p_value:.3g}). " + text
        )
    text = (
        f"The {len(shown)} largest of {len(digest.spikes.spikes)} spikes, one of each run first. "
        "Top: training loss, dotted: its level, bar: from onset to recovery. Bottom: mean shift "
        "between probes of the layer inputs that moved first; open mark: out of range. " + text
    )
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(1.0 + 2.7 * columns, 2.9 * rows, f"Spike anatomy{title}", text)
    grid = figure.subplots(2 * rows, columns, squeeze=False, sharex=False)
    for i, spike in enumerate(shown):
        top, bottom = (
            grid[2 * (i // columns), i % columns],
            grid[2 * (i // columns) + 1, i % columns],
        )
        _draw(results, spike, top, bottom)
    for i in range(len(shown), rows * columns):
        for row in (0, 1):
            grid[2 * (i // columns) + row, i % columns].remove()
    for row in range(rows):
        grid[2 * row, 0].set_ylabel("loss")
        grid[2 * row + 1, 0].set_ylabel("shift (σ)")
    return figure


def _largest(spikes: tuple[Anatomy, ...]) -> list[Anatomy]:
    ordered = sorted(spikes, key=lambda s: -abs(s.event.height) / max(abs(s.event.level), 1e-12))
    seen: set[Any] = set()
    first, rest = [], []
    for spike in ordered:
        run = tuple(spike.run.items())
        (rest if run in seen else first).append(spike)
        seen.add(run)
    return (first + rest)[:MAX_SHOWN]


def _draw(results: Records, spike: Anatomy, top: Axes, bottom: Axes) -> None:
    one = select(results, **{dim: [value] for dim, value in spike.run.items()})
    event = spike.event
    span = (event.onset - _BEFORE_STEPS, event.onset + _AFTER_STEPS)
    loss = training_loss(one).squeeze(list(run_dims(one)), drop=True)
    near = loss.sel(step=slice(*span))
    top.plot(near["step"], near, color=BLACK, linewidth=0.8)
    top.axhline(event.level, color="0.5", linewidth=0.6, linestyle=":")
    end = event.end if event.end is not None else span[1]
    top.axvspan(event.onset, min(end, span[1]), color=PURPLE, alpha=0.35, linewidth=0)
    label = ", ".join(str(v) if k == "norm" else f"{k} {short(v)}" for k, v in spike.run.items())
    top.set_title(f"{label}\nonset {event.onset}", fontsize=6.5)
    top.tick_params(labelbottom=False)
    top.set_xlim(span)
    bottom.set_xlim(span)
    bottom.set_xlabel("step")
    if not spike.movers:
        bottom.set_yticks([])
        bottom.text(
            0.5,
            0.5,
            "no layer input left its range",
            ha="center",
            transform=bottom.transAxes,
            fontsize=6.5,
        )
        return
    shifts = mean_shift(one, one.probe, "previous")["mean_shift"]
    shifts = shifts.squeeze(list(run_dims(one)), drop=True).sel(step=slice(*span))
    for mover, (colour, marker) in zip(spike.movers[:MAX_MOVERS], _MOVER_STYLES, strict=False):
        line = shifts.sel(site=mover.site)
        bottom.plot(
            line["step"],
            line,
            color=colour,
            marker=marker,
            markersize=2.5,
            linewidth=0.8,
            label=mover.site,
        )
        at = np.flatnonzero(line["step"].values == mover.step)
        if at.size:
            bottom.plot(
                mover.step,
                float(line[at[0]]),
                marker,
                markersize=7,
                markerfacecolor="none",
                color=colour,
            )
    bottom.axvline(event.onset, color=PURPLE, linewidth=0.8)
    shown = shifts.sel(site=[mover.site for mover in spike.movers[:MAX_MOVERS]]).values
    positive = shown[np.isfinite(shown) & (shown > 0)]
    if positive.size:
        bottom.set_yscale("log")
        plain_log(bottom.yaxis, positive.min(), positive.max())
    bottom.legend(frameon=False, fontsize=5.5)
