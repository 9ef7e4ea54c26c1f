"""Figure: spikes from near by, and which layers' inputs moved before them."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ici.analysis.anatomy import LEAD, LOOKBACK_STEPS, Anatomy, Lead, excursions
from ici.analysis.digest import Digest
from ici.analysis.parts import gathered
from ici.analysis.records import Records, has_moments, run_dims, short, training_loss
from ici.analysis.shifts import mean_shift
from ici.report.provenance import of_runs
from ici.report.style import BLACK, BLUE, GREEN, PURPLE, VERMILLION, new_figure, plain_log

MAX_SHOWN, MAX_MOVERS, MAX_COLUMNS = 6, 3, 3
_BEFORE_STEPS, _AFTER_STEPS = 80, 40
_MOVER_STYLES = ((BLUE, "s", "-"), (VERMILLION, "D", "--"), (GREEN, "^", ":"))


def draw_spike_anatomy(results: Records, digest: Digest, title: str = "") -> Figure | None:
    """Loss and shift of the first movers around the largest spikes, and the test of their lead.

    Spikes are ordered by height over their level; one of each run comes before a second. Only the
    runs that are shown are read. None without spikes.
    """
    shown = _largest(digest.spikes.spikes)
    if not shown:
        return None
    lead = digest.spikes.lead
    tested = lead is not None and lead.n_events > 0
    columns = min(MAX_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    width = max(5.0, 1.0 + 2.7 * columns)
    figure = new_figure(
        width, 2.9 * rows + 0.9 * tested, f"Spike anatomy{title}", _caption(digest, len(shown))
    )
    grid = figure.add_gridspec(
        2 * rows + tested, columns, height_ratios=[1.0] * (2 * rows) + [0.35] * tested
    )
    left: list[Axes] = []
    for i, spike in enumerate(shown):
        row, column = divmod(i, columns)
        top = figure.add_subplot(grid[2 * row, column])
        bottom = figure.add_subplot(grid[2 * row + 1, column], sharex=top)
        _draw(results, spike, top, bottom)
        if not column:
            top.set_ylabel("loss")
            bottom.set_ylabel("shift (σ)")
            left += [top, bottom]
    if lead is not None and tested:
        _draw_lead(figure.add_subplot(grid[-1, :]), lead)
    figure.align_ylabels(left)
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
    labels = {dim: [value] for dim, value in spike.run.items()}
    one = gathered(results, ("train", "probe"), **labels)
    event = spike.event
    span = (event.onset - _BEFORE_STEPS, event.onset + _AFTER_STEPS)
    near = training_loss(one).squeeze(list(run_dims(one)), drop=True).sel(step=slice(*span))
    top.plot(near["step"], near, color=BLACK, linewidth=0.8)
    top.axhline(event.level, color="0.5", linewidth=0.6, linestyle=":")
    end = span[1] if event.end is None else min(event.end, span[1])
    top.axvspan(event.onset, end, color=PURPLE, alpha=0.35, linewidth=0)
    top.set_title(f"{_run_name(spike.run)}\n{_when(spike)}", fontsize=6.5)
    top.tick_params(labelbottom=False)
    bottom.set_xlim(span)
    bottom.set_xlabel("step")
    shifts = _shifts(one)
    if shifts is None:
        _say(bottom, "no moments of layer inputs were probed")
        bottom.set_yticks([])
    else:
        _draw_shifts(bottom, spike, shifts)


def _run_name(run: dict[str, Any]) -> str:
    return ", ".join(
        str(value) if dim == "norm" else f"{dim} {short(value)}" for dim, value in run.items()
    )


def _when(spike: Anatomy) -> str:
    event = spike.event
    end = "not recovered" if event.end is None else f"recovered {event.end}"
    lead = f", lead {spike.lead_steps:.0f} steps" if spike.movers else ""
    return f"onset {event.onset}, {end}{lead}"


def _shifts(one: Records) -> xr.DataArray | None:
    """Mean shift between probes of the sites that the run has ``(step, site)``."""
    if not has_moments(one.probe):
        return None
    mean = one.probe["mean"]
    exists = mean.notnull().any([dim for dim in mean.dims if dim != "site"])
    node = one.probe[["mean", "std"]].isel(site=exists.values)
    if not node.sizes["site"]:
        return None
    shifts = mean_shift(one, node, "previous")["mean_shift"]
    shifts = shifts.squeeze(list(run_dims(one)), drop=True).transpose("step", "site")
    return shifts.where(np.isfinite(shifts))


def _draw_shifts(axes: Axes, spike: Anatomy, shifts: xr.DataArray) -> None:
    """The first movers and the lead as a grey band; without movers, what came nearest to one."""
    onset = spike.event.onset
    shown = [(mover.site, mover.step, mover.site) for mover in spike.movers[:MAX_MOVERS]]
    styles = _MOVER_STYLES
    if shown:
        axes.axvspan(spike.movers[0].step, onset, color="0.85", linewidth=0, zorder=0)
    else:
        shown, styles = _nearest(onset, shifts), (("0.4", "o", "-"),)
    near = shifts.sel(step=slice(onset - _BEFORE_STEPS, onset + _AFTER_STEPS))
    steps, drawn = near["step"].values, np.zeros(0)
    for (site, step, label), (colour, marker, dashes) in zip(shown, styles, strict=False):
        line = near.sel(site=site).values
        line = np.where(line > 0, line, np.nan)
        drawn = np.append(drawn, line[np.isfinite(line)])
        axes.plot(
            steps,
            line,
            color=colour,
            marker=marker,
            linestyle=dashes,
            markersize=2.5,
            linewidth=0.8,
            label=label,
        )
        at = np.flatnonzero(steps == step)
        if spike.movers:
            axes.plot(
                steps[at], line[at], marker, markersize=7, markerfacecolor="none", color=colour
            )
    axes.axvline(onset, color=PURPLE, linewidth=0.8)
    if not drawn.size:
        _say(axes, "no probe to judge by")
        return
    low, high = float(drawn.min()), float(drawn.max())
    # Room above for the names.
    top = high * max(high / low, 3.0) ** (0.25 * len(shown)) * 1.2
    axes.set_yscale("log")
    plain_log(axes.yaxis, low, max(top, 20 * low))
    if top < 10 * low:
        # Within a decade, every digit would be named.
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylim(low / 1.3, top)
    # Opaque, as the onset runs through it.
    axes.legend(
        fontsize=5.5,
        loc="upper left",
        handlelength=3,
        borderaxespad=0.1,
        framealpha=1,
        edgecolor="none",
    )


def _nearest(onset: int, shifts: xr.DataArray) -> list[tuple[str, int, str]]:
    """The site that came nearest to leaving its range before the onset: name, step, label."""
    steps = shifts["step"].values
    deviation = excursions(shifts.values)
    deviation[(steps < onset - LOOKBACK_STEPS) | (steps > onset)] = np.nan
    if not np.isfinite(deviation).any():
        return []
    at, site = np.unravel_index(np.nanargmax(deviation), deviation.shape)
    name = str(shifts["site"].values[site])
    return [(name, int(steps[at]), f"none left its range; {name}: {deviation[at, site]:.1f} std")]


def _say(axes: Axes, text: str) -> None:
    axes.text(0.98, 0.93, text, ha="right", va="top", transform=axes.transAxes, fontsize=6)


def _draw_lead(axes: Axes, lead: Lead) -> None:
    shares = {"as recorded": lead.share, "at other times": lead.null_share}
    words = (f"{lead.n_led} of {lead.n_events}", f"mean of {lead.n_rotations} sets")
    for i, ((name, share), fill, text) in enumerate(
        zip(shares.items(), ("0.75", "white"), words, strict=True)
    ):
        axes.barh(i, 100 * share, 0.75, color=fill, edgecolor=BLACK, linewidth=0.7, label=name)
        inside = share > 0.6
        axes.annotate(
            f"{name}: {100 * share:.{0 if share > 0.1 else 1}f} % ({text})",
            (0 if inside else 100 * share, i),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
        )
    axes.set_yticks([])
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel(
        f"spikes led by a shift at most {lead.lookback_steps} steps before (%), "
        f"p = {lead.p_value:.2g}"
    )


def _caption(digest: Digest, n_shown: int) -> str:
    text = (
        f"{of_runs(digest)} The {n_shown} largest of {len(digest.spikes.spikes)} spikes "
        f"({digest.spikes.rule.describe()}), one of each run first. Top: training loss of single "
        "steps; dotted: its level; bar: from onset to recovery. Bottom: mean shift of layer inputs "
        "between probes of training batches, which differ: sampling noise is in it. Up to "
        f"{MAX_MOVERS} layers are drawn, those that moved first: rose {LEAD.k:g} standard "
        f"deviations (std) of the shift's logarithm above the {LEAD.window} probes before, within "
        f"{LOOKBACK_STEPS} steps of the onset; where none did, the one that came nearest. Open "
        "mark: where a layer left its range; grey band: the lead. "
    )
    if digest.spikes.lead is not None and digest.spikes.lead.n_events:
        text += (
            "Below: the null hypothesis is the same runs with their spikes moved circularly to "
            "other steps; p is one-sided. Shares have no interval: spikes of a run are not "
            "independent."
        )
    return text
