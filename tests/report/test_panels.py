"""Many norms, long names, several swept values: figures stay readable."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from fake_records import FakeRecords, blank, diverge
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from pictured import one_setting, words

from ici.report.figures import draw_all
from ici.report.layer_inputs import draw_layer_inputs
from ici.report.losses import draw_final_loss, draw_loss_curves
from ici.report.shift_map import draw_shift_map
from ici.report.style import MAX_COLUMNS, broken_path, norm_styles, panel_rows

NORMS = tuple(f"norm_{i}" for i in range(14))
PARTS = ("attention_norm", "attention/query", "attention/out", "feed_forward/up")
LONG = tuple(f"blocks/{i}/{part}" for i in range(16) for part in PARTS)


def many(n: int = 14) -> FakeRecords:
    return one_setting(blank(norms=NORMS[:n], lrs=(0.01, 0.1), seeds=(0, 1)))


def box(figure: Figure, axes: Axes) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = axes.get_position().extents
    width, height = figure.get_size_inches()
    return x0 * width, y0 * height, x1 * width, y1 * height


def panels_of(figure: Figure) -> list[Axes]:
    """Without the colour bar, the one that has a label in place of a subplot title."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


@pytest.mark.parametrize(
    ("n", "expected"), [(1, (1, 1)), (6, (1, 6)), (7, (2, 4)), (12, (2, 6)), (14, (3, 5))]
)
def test_rows_are_few_and_about_equally_filled(n: int, expected: tuple[int, int]):
    assert panel_rows(n) == expected


@pytest.mark.parametrize("n", [7, 14])
def test_many_norms_take_several_rows(n: int):
    rows, columns = panel_rows(n)
    figures = {
        "curves": draw_loss_curves(many(n)),
        "map": draw_shift_map(many(n), 0.1),
        "inputs": draw_layer_inputs(many(n), 0.1),
    }
    for name, figure in figures.items():
        figure.draw_without_rendering()
        panels = panels_of(figure)
        per_norm = 3 if name == "inputs" else 1  # sites
        assert len(panels) == n * per_norm, name
        assert len({round(box(figure, axes)[0], 2) for axes in panels}) == columns, name
        assert len({round(box(figure, axes)[1], 2) for axes in panels}) == rows * per_norm, name
        assert figure.get_size_inches()[0] < 3 * MAX_COLUMNS, name
        titles = [axes.get_title().split(" ")[0] for axes in panels if axes.get_title()]
        assert titles == list(NORMS[:n]), name
        # Every column of panels ends in a named axis, be the last row full or not.
        named = sum(axes.get_xlabel() == "step" for axes in panels)
        assert named == (n if name == "inputs" else columns), name


def test_rows_of_panels_share_their_scales():
    records = many(7)
    records.probe["mean"].loc[{"norm": "norm_6", "site": "head"}] = 5.0
    panels = draw_layer_inputs(records, 0.1).axes
    limits = {}
    for axes in panels:
        limits.setdefault(axes.get_subplotspec().rowspan.start % 3, set()).add(axes.get_ylim())
    assert [len(found) for found in limits.values()] == [1, 1, 1]
    assert limits[2].pop()[1] > 5 > limits[1].pop()[1]


def test_rows_within_one_keep_a_plain_axis():
    records = many(2)
    records.probe["mean"].loc[{"site": "head"}] = 50.0
    records.probe["std"].loc[{"site": "blocks/0/linear"}] = 0.02
    figure = draw_layer_inputs(records, 0.1)
    figure.draw_without_rendering()
    small, _, large = figure.axes[::2]
    assert [small.get_yscale(), large.get_yscale()] == ["linear", "symlog"]
    shown = [t for t in small.get_yticks() if small.get_ylim()[0] <= t <= small.get_ylim()[1]]
    assert len(shown) >= 3
    assert "linear within ±1, log beyond" in words(figure)


def test_crosses_leave_room_for_the_losses():
    records = many()
    for norm in NORMS:
        records.train["loss"].loc[{"norm": norm}] = 0.3 if norm == "norm_0" else 1.0
        diverge(records, 5, norm=norm, lr=0.1, seed=0)
    (axes,) = draw_final_loss(records).axes
    low, high = axes.get_ylim()
    assert low < 0.3 and np.log(1.0 / low) / np.log(high / low) > 0.35
    heights = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "x"]
    assert len(set(heights)) == 14
    losses_end = np.log(1.0 / low) / np.log(high / low)
    assert all(losses_end < height < 1 for height in heights)


def test_only_norms_that_diverged_have_a_row_of_crosses():
    records = many()
    diverge(records, 5, norm="norm_13", lr=0.1, seed=0)
    one = draw_final_loss(records).axes[0]
    (height,) = [line.get_ydata()[0] for line in one.lines if line.get_marker() == "x"]
    assert 0.9 < height < 1


def test_norms_side_by_side_stay_at_their_learning_rate():
    (axes,) = draw_final_loss(many()).axes
    for container in axes.containers:
        at = np.asarray(container.lines[0].get_xdata())
        # The middle between the two rates, which are a factor of 10 apart.
        assert at[0] < 0.01 * np.sqrt(10) < at[1]
    records = one_setting(blank(norms=NORMS, lrs=(0.01, 0.02), seeds=(0,)))
    places = [c.lines[0].get_xdata() for c in draw_final_loss(records).axes[0].containers]
    assert max(at[0] for at in places) < 0.01 * np.sqrt(2) < min(at[1] for at in places)


def test_norms_differ_without_their_dashes():
    styles = norm_styles(NORMS).values()
    assert len({(style.colour, style.marker) for style in styles}) == len(NORMS)


def test_long_names_are_broken_behind_slashes():
    assert broken_path("head", 20) == "head"
    assert broken_path("blocks/2/attention_norm", 20) == "blocks/2/\nattention_norm"
    assert broken_path("a/b/c/d", 4) == "a/b/\nc/d"
    assert broken_path("a_name_longer_than_that/x", 4) == "a_name_longer_than_that/\nx"


def extent(text: Text) -> tuple[float, float]:
    found = text.get_window_extent()
    return found.y0, found.y1


def overlapping(spans: list[tuple[float, float]]) -> bool:
    ordered = sorted(spans)
    return any(one[1] > other[0] for one, other in itertools.pairwise(ordered))


def test_names_of_a_language_models_sites_do_not_touch():
    records = one_setting(blank(sites=LONG, lrs=(0.1,), seeds=(0,)))
    records.task = "language_model"
    inputs, shifts = draw_layer_inputs(records, 0.1), draw_shift_map(records, 0.1)
    for figure in (inputs, shifts):
        figure.draw_without_rendering()
    names = [axes.yaxis.label for axes in inputs.axes if axes.get_ylabel()]
    assert len(names) == 4 and not overlapping([extent(name) for name in names])
    ticks = [label for label in shifts.axes[0].get_yticklabels() if label.get_text()]
    assert 12 <= len(ticks) <= 24 and ticks[0].get_text() == LONG[0]
    assert not overlapping([extent(tick) for tick in ticks])


def test_losses_that_are_cut_off_are_plain_numbers():
    records = one_setting(blank(steps=300))
    records.train["loss"].loc[{"norm": "none", "step": 200}] = 1e5
    records.train["loss"][..., :3] = 5.5
    text = words(draw_loss_curves(records))
    assert "Losses above 190 are cut off" in text


def test_pixels_are_no_examples():
    records = one_setting(blank(lrs=(0.1,)))
    records.experiment["reference_size"] = 512
    # Pixels of 128 images, until a layer has lost them.
    records.reference["count"].loc[{"site": ["blocks/0/linear", "blocks/1/linear"]}] = 128 * 64.0
    assert "batch of 128 training examples" in words(draw_shift_map(records, 0.1))


def test_every_swept_value_has_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names: list[str] = []

    def saved(figure: Figure, folder: Path, name: str) -> list[Path]:
        names.append(name)
        return [folder / name]

    monkeypatch.setattr("ici.report.figures.save", saved)
    swept = {"warmup_steps": (0, 100), "beta1": (0.9, 0.95), "beta2": (0.9995, 0.9999)}
    draw_all(blank(extra=swept, norms=("none",), lrs=(0.1,), seeds=(0,)), tmp_path)
    assert len(set(names)) == len(names) == 5 * 8 + 1
    assert "loss_curves_depth=2_warmup_steps=100_beta1=0.95_beta2=0.9999" in names
