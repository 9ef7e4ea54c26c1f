"""Comparisons as tables: in the terminal, and as rows for a page or a file."""

from __future__ import annotations

import math
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ici.analysis.compare import POWER, Compared, Comparison
from ici.report.table import WIDTH

SHARES = ("validation_accuracy", "diverged")
COLUMNS = ("quantity", "baseline", "value", "difference", "p, Holm", "verdict")
_ASCII = str.maketrans({"∞": "inf", "–": "-", "σ": "std", "×": "x", "→": "->"})


def comparison_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A dict per row of a comparison: numbers as numbers, NaN where there is none."""
    found = []
    for row in comparison.rows:
        difference = None if row.effect is None else row.effect.difference
        standardised = None if row.effect is None else row.effect.standardised
        found.append(
            {
                "compared": comparison.dim,
                "setting": row.setting,
                "at": row.where,
                "quantity": row.quantity.label,
                "baseline": row.baseline,
                "value": row.value,
                "of_baseline": row.of_baseline,
                "of_value": row.of_value,
                "is_ratio": row.quantity.log,
                "difference": math.nan if difference is None else difference.estimate,
                "difference_low": math.nan if difference is None else difference.low,
                "difference_high": math.nan if difference is None else difference.high,
                "standardised": math.nan if standardised is None else standardised.estimate,
                "standardised_low": math.nan if standardised is None else standardised.low,
                "standardised_high": math.nan if standardised is None else standardised.high,
                "p": row.p_value,
                "p_holm": row.p_adjusted,
                "verdict": row.verdict,
                "seeds_needed": row.seeds_needed,
                "n_seeds": row.n,
                "n_left_out": row.n_left_out,
                "left_out": row.left_out,
            }
        )
    return found


def comparison_sections(comparison: Comparison) -> list[tuple[str, list[list[str]]]]:
    """The table as texts: pairs of what is compared, and rows with `COLUMNS`."""
    sections: list[tuple[str, list[list[str]]]] = []
    for row in comparison.rows:
        title = f"{row.baseline} against {row.value}"
        place = ", ".join(part for part in (row.setting, row.where) if part)
        title += f" ({place})" if place else ""
        if not sections or sections[-1][0] != title:
            sections.append((title, []))
        sections[-1][1].append(_cells(row))
    return sections


def _cells(row: Compared) -> list[str]:
    form = _share if row.quantity.name in SHARES else _number
    return [
        row.quantity.label,
        form(row.of_baseline),
        form(row.of_value),
        _difference(row),
        "–" if math.isnan(row.p_adjusted) else f"{row.p_adjusted:.2g}",
        _verdict(row),
    ]


def _difference(row: Compared) -> str:
    if row.effect is None:
        return "–"
    interval = row.effect.difference
    shares, mark = row.quantity.name in SHARES, "× " if row.quantity.log else ""

    def text(value: float) -> str:
        if not math.isfinite(value):
            return "–"
        if row.quantity.log:
            return _number(math.exp(min(value, 700)))
        return _points(value) if shares else ("+" if value > 0 else "") + _number(value)

    # What two percentages differ by is no percentage of either.
    estimate = mark + text(interval.estimate) + (" points" if shares else "")
    if not interval.exists:
        return estimate
    return f"{estimate} [{text(interval.low)} to {text(interval.high)}]"


def _points(share: float) -> str:
    """Percentage points with their sign: as many digits as show that it is not 0."""
    if abs(share) < 1e-9:  # what is left of a difference of equal numbers
        return "0"
    digits = max(1, math.ceil(-math.log10(100 * abs(share))))
    return f"{100 * share:+.{digits}f}"


def _verdict(row: Compared) -> str:
    text = row.verdict
    if row.quantity.name != "diverged" and row.n >= 2:
        text += f" at {row.n} seeds"
    if row.n_left_out:
        text += f", {row.n_left_out} runs left out ({row.left_out})"
    if text.startswith("not distinguishable") and not math.isnan(row.seeds_needed):
        needed = "over 10,000" if math.isinf(row.seeds_needed) else f"about {row.seeds_needed:.0f}"
        text += f"; {needed} would tell" if row.seeds_needed > row.n else ""
    return text


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def comparison_title(comparison: Comparison) -> str:
    """What is compared with what."""
    how = "each at its own best learning rate" if comparison.at == "best" else "at equal settings"
    return f"Comparison by {comparison.dim}, {how}"


def comparison_caption(comparison: Comparison) -> str:
    """What the columns are, with every constant behind them."""
    level = f"{100 * comparison.level:.3g} %"
    pairing = (
        "paired by seed, which sets weights and data order alike"
        if comparison.paired
        else "unpaired (Welch), as the seeds differ"
    )
    best = (
        " The best rate is chosen on the same seeds (median best evaluation): the values "
        "themselves are optimistic."
        if comparison.at == "best"
        else ""
    )
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in comparison.notes)
    return (
        f"Means over seeds; difference {pairing}, with its {level} Student t interval; ratio of "
        "geometric means for shift, which has no good side. Steps to a target that was missed "
        "count as the whole run. Runs without a value are left out: they diverged, are still "
        "going, or are too short to judge. The share that diverged is tested by Fisher's exact "
        "test over all learning rates. p, Holm: corrected for the "
        f"{comparison.n_tests} tests of this table; a verdict needs p <= "
        f"{1 - comparison.level:.3g}. Seeds that would tell: for {POWER:.0%} power, this "
        f"difference alone, if it is as large as it seems.{best}{notes}"
    )


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints the table with its caption; readable without colour, 120 columns where piped."""
    console = Console() if console is None else console
    ascii_only = console.options.ascii_only

    def plain(text: str) -> str:
        return text.translate(_ASCII) if ascii_only else text

    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        title=comparison_title(comparison),
        title_justify="left",
    )
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for title, rows in comparison_sections(comparison):
        table.add_section()
        table.add_row(Text(plain(title), style="bold"))
        for texts in rows:
            table.add_row(*(Text(plain(text)) for text in texts))
    width = console.width
    try:
        if not console.is_terminal:
            console.width = max(width, WIDTH)
        console.print(table)
        console.print(Text(plain(comparison_caption(comparison)) + "\n", style="dim"), width=WIDTH)
    finally:
        console.width = width
