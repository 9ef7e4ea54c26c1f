"""The summary of an experiment as a table in the terminal, or in a file that it is piped to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import xarray as xr
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ici.analysis.records import Records, describe_setting, select, settings, short
from ici.analysis.summary import summarise
from ici.measure.spikes import PRESETS, SpikeRule

WIDTH = 120

_ASCII = str.maketrans({"∞": "inf", "–": "-", "—": "-", "σ": "std", "…": "...", "†": "!", "×": "x"})


def print_summary(
    results: Records,
    console: Console | None = None,
    rule: SpikeRule = PRESETS["olmo_core"],
    summary: xr.Dataset | None = None,
) -> None:
    """Prints one table per setting (depth and whatever else was swept besides norm, lr, seed).

    Readable without colour. Files get lines of up to `WIDTH` columns; a terminal too narrow for
    that gets the intervals below their medians. A `summary` that is there already is not computed
    again.

    Raises:
      InputError: see `summarise`.
    """
    console = Console() if console is None else console
    summary = summarise(results, rule) if summary is None else summary
    ascii_only = console.options.ascii_only
    width = console.width
    try:
        for setting in settings(results):
            part, title = summary.sel(setting), describe_setting(setting)
            table = build_table(part, title, ascii_only=ascii_only)
            wanted = Measurement.get(console, console.options.update(width=1000), table).maximum
            if not console.is_terminal:
                # Rich takes a file for a terminal of 80 columns, and files have room.
                console.width = max(width, WIDTH, wanted)
            if wanted > console.width:
                table = build_table(part, title, stacked=True, ascii_only=ascii_only)
            console.print(table)
            text = caption(part, select(results, **setting))
            text = text.translate(_ASCII) if ascii_only else text
            console.print(Text(text, style="dim"), width=WIDTH)
    finally:
        console.width = width


def build_table(
    summary: xr.Dataset, title: str = "", stacked: bool = False, ascii_only: bool = False
) -> Table:
    """The rich table of one setting; `summary` has the dimensions norm, lr and over_seeds.

    `stacked` puts intervals on a second line below their medians.
    """
    attrs = summary.attrs
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 0 if stacked else 1, 0, 0),
        show_edge=False,
        title=title or None,
        title_justify="left",
    )
    cells: list[Callable[[xr.Dataset], str]] = []

    def column(name: str, cell: Callable[[xr.Dataset], str], right: bool = False) -> None:
        name = name.translate(_ASCII) if ascii_only else name
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
        cells.append(cell)

    def interval(row: xr.Dataset, name: str, form: Form, mark: str = "") -> str:
        mark += _few(row, name, attrs["n_seeds"])
        return _interval(row[name], form, mark, "\n" if stacked else " ")

    column("norm", lambda row: str(row["norm"].item()))
    column("lr", lambda row: short(row["lr"].item()), right=True)
    if "steps_to_target" in summary:
        column(
            f"steps to\n{attrs['target']}",
            lambda row: interval(row, "steps_to_target", _steps),
        )
    column(
        "final\ntrain loss",
        lambda row: interval(row, "final_loss", _digits, _mark(row, "n_no_progress", "†")),
    )
    if "validation_accuracy" in summary:
        column("validation\nacc., %", lambda row: interval(row, "validation_accuracy", _percentage))
    else:
        column("validation\nloss", lambda row: interval(row, "validation_loss", _digits))
    column("spikes", lambda row: _whole(row["spikes"].item()), right=True)
    column("div.", lambda row: f"{row['n_diverged'].item()}/{attrs['n_seeds']}", right=True)
    if "shift" in summary:
        column(
            f"shift at\n{attrs['deepest_site']}, σ",
            lambda row: interval(row, "shift", _digits, _mark(row, "n_dead", "*")),
        )
        column("dead\n%", lambda row: _dead(row, attrs), right=True)
    for i, norm in enumerate(summary["norm"].values):
        if i:
            table.add_section()
        for lr in sorted(summary["lr"].values.tolist()):
            row = summary.sel(norm=norm, lr=lr)
            texts = [cell(row) for cell in cells]
            table.add_row(*(t.translate(_ASCII) if ascii_only else t for t in texts))
    return table


def caption(summary: xr.Dataset, results: Records) -> str:
    """What the numbers of the table are, with every constant behind them."""
    attrs, n = summary.attrs, summary.attrs["n_seeds"]
    site, target = attrs["deepest_site"], attrs["target"]
    ratio = results.experiment.get("divergence_ratio")
    high = "" if ratio is None else f"loss above {ratio:g} × the first, or "
    lines = []
    if attrs.get("incomplete"):
        lines.append(attrs["incomplete"])
    if going := int(summary["n_going"].sum()):
        lines.append(f"{going} runs are still going: this is what they have recorded so far.")
    lines.append(
        (
            "One seed, so no intervals. "
            if n == 1
            else f"Median [min–max] of {n} seeds; one number where all print alike. "
        )
        + f"Diverged seeds (div.: {high}loss or gradient not finite) are in none of the medians"
        + (" but that of steps, as ∞ where they missed the target." if target is not None else ".")
    )
    if _rests_on_few(summary, n):
        lines.append(
            f"(k): resting on only k of the {n} seeds, as the others diverged or, for shift, have "
            "every unit dead; after (1) there is no interval because one seed is left."
        )
    if target is not None:
        lines.append(
            f"steps to {target}: first evaluation on the validation split, one "
            f"every {results.experiment.get('eval_every', '?')} steps, that meets it; ∞ if none."
        )
    lines.append(f"final train loss: mean of a run's last {attrs['final_window_steps']} steps.")
    lines.append(
        "spikes: how often the training loss left its recent range, until back counted once, all "
        f"seeds together; {attrs['spike_rule']}."
    )
    if site is None:
        lines.append("No shift, no dead units: mean and std of layer inputs were not recorded.")
    else:
        lines.append(
            f"shift at {site}: by how much the mean of a unit of this layer's inputs on the "
            "reference batch moved from step 0 to the last measurement, in standard deviations (σ) "
            "of that unit at step 0; RMS over units. dead: units left out of it, constant over the "
            "batch at either time; median seed."
        )
    if summary["n_no_progress"].any():
        lines.append("† a seed that did not diverge ended no lower than its first loss.")
    if site is not None and summary["n_dead"].any():
        lines.append("* shift without the seeds all of whose units are dead there.")
    return "\n".join(lines) + "\n"


Form = Callable[[float, float], str]


def _interval(values: xr.DataArray, form: Form, mark: str, separator: str) -> str:
    """``median [min–max]``; the median alone when the three are printed alike."""
    median, low, high = (float(v) for v in values.sel(over_seeds=["median", "min", "max"]))
    shown = [form(v, median) for v in (median, low, high)]
    if shown[0] == shown[1] == shown[2]:
        return shown[0] + mark
    return f"{shown[0]}{mark}{separator}[{shown[1]}–{shown[2]}]"


def _steps(value: float, _: float) -> str:
    if math.isnan(value):
        return "…"
    return "∞" if math.isinf(value) else f"{value:.0f}"


def _digits(value: float, scale: float) -> str:
    """Three significant digits of `scale`, but at most three decimals."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return "<.001"
    if abs(value) >= 1e4:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    size = abs(scale) if math.isfinite(scale) and scale else 1.0
    return f"{value:.{min(3, max(0, 2 - math.floor(math.log10(size))))}f}"


def _percentage(value: float, _: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _whole(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0f}"


def _mark(row: xr.Dataset, count: str, mark: str) -> str:
    return mark if row[count].item() else ""


def _few(row: xr.Dataset, name: str, n_seeds: int) -> str:
    """`` (2)`` where fewer than all seeds have a value, and any has."""
    resting_on = row.get(f"n_seeds_{name}")
    k = n_seeds if resting_on is None else int(resting_on)
    return f" ({k})" if 0 < k < n_seeds else ""


def _rests_on_few(summary: xr.Dataset, n_seeds: int) -> bool:
    counts = [summary[name] for name in summary.data_vars if str(name).startswith("n_seeds_")]
    return any(bool(((count > 0) & (count < n_seeds)).any()) for count in counts)


def _dead(row: xr.Dataset, attrs: dict[str, Any]) -> str:
    share = row["dead_features"].sel(over_seeds="median").item() / attrs["n_features"]
    return _whole(100 * share) + _few(row, "dead_features", attrs["n_seeds"])
