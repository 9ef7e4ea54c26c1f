"""What `ici watch` shows fits the terminal, whatever its size and its letters."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console
from written import CHUNK, STEPS, Written

from ici.analysis.watched import Watched
from ici.cli.watch_view import duration, picture, sparkline


def rendered(state, width=80, height=None, ascii_only=False):
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False).print(
        picture(state, width, height, ascii_only)
    )
    return file.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("record")
    norms = ("none", "batch", "group:groups=2")
    record = Written(folder, norms)
    record.loss[3:] *= 1e6
    record.all()
    return Watched(folder).update()


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(whole, width):
    lines = rendered(whole, width).splitlines()
    assert max(len(line) for line in lines) <= width
    text = "".join(lines)
    assert "batch" in text and "0.01" in text and "…" not in text
    assert ("█" in text) == (width >= 80)


@pytest.mark.parametrize("height", [10, 16, 24, 60])
def test_the_picture_fits_the_terminal(whole, height):
    assert len(rendered(whole, 100, height).splitlines()) < max(height, 16)


def test_little_room_goes_to_the_group_at_work(tmp_path):
    record = Written(tmp_path)
    for norm in record.norms:
        record.begin(norm)
        for _ in range(STEPS // CHUNK if norm == "none" else 3):
            record.chunk(norm)
        if norm == "none":
            record.finish(norm)
    lines = rendered(Watched(tmp_path).update(), 100, 10).splitlines()
    rows = [line.split()[:2] for line in lines]
    assert ["batch", "0.01"] in rows and ["batch", "0.1"] in rows
    assert any("more rows" in line for line in lines)


def test_an_ascii_terminal_gets_ascii(whole):
    state = rendered(whole, 80, ascii_only=True)
    assert state.isascii() and "#" in state
    assert not rendered(whole, 80).isascii()


def test_sparklines_show_the_level_on_a_log_scale():
    losses = np.array([100.0, 10.0, 1.0, np.nan])
    assert sparkline(losses, 1.0, 100.0, 4, True) == "@+_ "
    assert sparkline(np.array([1.0, np.nan, np.nan, 100.0]), 1, 100, 4, True) == "___@"
    assert sparkline(np.full(8, np.nan), 1, 1, 4, False) == "    "
    assert len(sparkline(np.linspace(1, 9, 64), 1, 9, 10, False)) == 10


def test_durations_are_short():
    assert [duration(s) for s in (0.4, 90, 150, 4000, 100_000)] == [
        "0 s",
        "90 s",
        "2 min",
        "1.1 h",
        "1.2 d",
    ]
