from __future__ import annotations

import io
import math
import re

import pytest
from fake_records import blank, plausible
from rich.console import Console

from ici.analysis.compare import Comparison, compare
from ici.analysis.digest import digest
from ici.report.comparison import comparison_rows, comparison_sections, print_comparison


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
