from __future__ import annotations

import io
import math
import re
from dataclasses import replace

import pytest
from fake_records import blank, plausible
from rich.console import Console

from ici.analysis.compare import Comparison, compare
from ici.analysis.digest import digest
from ici.report.comparison import (
    COLUMNS,
    comparison_rows,
    comparison_sections,
    print_comparison,
)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(digest(plausible(width=8, n_layers=3, steps=300)), "norm")


def printed(comparison: Comparison, **console) -> str:
    file = io.StringIO()
    print_comparison(comparison, Console(file=file, **console))
    return file.getvalue()


def words(text: str) -> str:
    return re.sub(r"[\s─]+", " ", text)


def test_reads_without_colour_in_120_columns(comparison: Comparison):
    text = printed(comparison)
    assert "\x1b" not in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 120
    for row in comparison.rows:
        assert row.quantity.label in text


def test_a_narrow_terminal_loses_nothing(comparison: Comparison):
    narrow = printed(comparison, width=80, force_terminal=True, color_system=None)
    assert max(map(len, narrow.splitlines())) <= 80 and "…" not in narrow
    letters = re.sub(r"\s", "", narrow)
    # Cells are folded, so that their lines stand beside those of others.
    for _, rows in comparison_sections(comparison):
        for cells in rows:
            for text in cells[1:3]:
                assert text.replace(" ", "") in letters


def test_plain_ascii_where_the_file_wants_it(comparison: Comparison):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_comparison(comparison, Console(file=file, width=120))
    file.flush()
    assert "verdict" in file.buffer.getvalue().decode("ascii")


def test_the_caption_holds_the_constants(comparison: Comparison):
    text = words(printed(comparison))
    for constant in (
        "95 % Student t interval",
        "paired by seed",
        f"the {comparison.n_tests} tests of this table",
        "p <= 0.05",
        "80% power",
        "optimistic",
    ):
        assert constant in text


def test_verdicts_carry_their_seeds(comparison: Comparison):
    for _, rows in comparison_sections(comparison):
        for cells in rows:
            assert cells[0] == "diverged runs" or "3 seeds" in cells[-1]
    one = compare(digest(blank(seeds=(0,))), "norm")
    assert "one seed: no verdict" in words(printed(one)) and "at 1 seeds" not in printed(one)


def test_rows_are_numbers(comparison: Comparison):
    found = comparison_rows(comparison)
    assert len(found) == len(comparison.rows)
    for plain, row in zip(found, comparison.rows, strict=True):
        assert (plain["value"], plain["n_seeds"], plain["verdict"]) == (
            row.value,
            row.n,
            row.verdict,
        )
        assert row.effect is not None
        assert plain["difference"] == row.effect.difference.estimate
        low = row.effect.difference.low
        assert plain["difference_low"] == low or math.isnan(low)
        assert {type(value) for value in plain.values()} <= {str, float, int, bool}


def with_difference(comparison: Comparison, name: str, *interval: float) -> str:
    """What is printed of a quantity whose difference and interval are these."""
    row = next(each for each in comparison.rows if each.quantity.name == name)
    assert row.effect is not None
    estimate, low, high = interval
    difference = replace(row.effect.difference, estimate=estimate, low=low, high=high)
    row = replace(row, effect=replace(row.effect, difference=difference))
    ((_, rows),) = comparison_sections(replace(comparison, rows=(row,)))
    return rows[0][COLUMNS.index("difference")]


def test_accuracies_differ_by_points(comparison: Comparison):
    name = "validation_accuracy"
    said = with_difference(comparison, name, 0.0512, -0.0234, 0.1)
    assert said == "+5.1 points [-2.3 to +10.0]"
    assert with_difference(comparison, "diverged", 0.25, math.nan, math.nan) == "+25.0 points"
    assert "%" not in with_difference(comparison, name, 0.1, 0.05, 0.2)


def test_an_end_near_zero_keeps_the_sign_that_it_has(comparison: Comparison):
    name = "validation_accuracy"
    said = with_difference(comparison, name, 0.03, 0.00004, 0.06)
    assert said == "+3.0 points [+0.004 to +6.0]"
    said = with_difference(comparison, name, 0.03, -0.0004, 0.06)
    assert said == "+3.0 points [-0.04 to +6.0]"
    assert with_difference(comparison, name, 0.0, 0.0, 0.0) == "0 points [0 to 0]"


def test_ratios_have_their_mark_once(comparison: Comparison):
    said = with_difference(comparison, "shift", math.log(2.0), math.log(0.5), math.log(8.0))
    assert said == "× 2 [0.5 to 8]"
