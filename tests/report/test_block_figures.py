"""Attribution, gradient shift, gradient norms, landscape: known values, and bad records."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from fake_records import FakeRecords, blank
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measured_digests import BLOCKS, MULTIPLES, SETTING, SITES, measured, with_gradient_norms
from pictured import (
    all_diverged,
    everything_dead,
    first_step_only,
    overflowing,
    still_going,
    uneven_sites,
    words,
)

from ici.analysis.digest import Digest, digest
from ici.report.attribution import draw_attribution
from ici.report.gradient_norms import draw_gradient_norms
from ici.report.gradient_shift import draw_gradient_shift
from ici.report.landscape import draw_landscape

DRAWN = {
    "attribution": draw_attribution,
    "gradient_shift": draw_gradient_shift,
    "gradient_norms": draw_gradient_norms,
    "landscape": draw_landscape,
}
CELL = {"norm": "none", "lr": 0.1}
WHY = "lr: the rule."


def nodes(found: Digest) -> list:
    return [*found.measured.values(), found.gradients]


def cells(axes: Axes) -> list[np.ma.MaskedArray]:
    """The colours of the matrix and of the two rows below."""
    return [c.get_array() for c in axes.collections if c.get_hatch() is None]


def hatched(axes: Axes) -> int:
    return sum(len(c.get_paths()) for c in axes.collections if c.get_hatch() is not None)


def line(axes: Axes, norm: str) -> tuple[list[int], np.ndarray]:
    (found,) = [each for each in axes.lines if str(each.get_label()).split("\n")[0] == norm]
    return [int(x) for x in found.get_xdata()], np.asarray(found.get_ydata())


def triangle(found: Digest) -> np.ndarray:
    """An attribution that is 0 below its diagonal, in place at the last step."""
    matrix = np.triu(np.arange(1.0, 21.0).reshape(len(BLOCKS), len(SITES)))
    found.measured["attribution"]["attribution"].loc[CELL | {"step": 15}] = matrix
    return matrix


def test_attribution_is_that_of_the_last_measured_step():
    found = measured(blank())
    matrix = triangle(found)
    found.measured["attribution"]["interaction"].loc[CELL | {"step": 15}] = [1, 2, 3, 4]
    figure = draw_attribution(found, SETTING, 0.1)
    colours, together, interaction = cells(figure.axes[0])[0], *cells(figure.axes[0])[1]
    np.testing.assert_array_equal(colours.filled(0), matrix)
    assert together.tolist() == [1] * 4 and interaction.tolist() == [1, 2, 3, 4]
    assert "step 15" in words(figure)


def test_attribution_tells_zero_from_small_and_from_missing():
    found = measured(blank())
    matrix = triangle(found)
    matrix[0, 3] = 1e-20  # far below the colour scale
    matrix[0, 0] = np.nan
    found.measured["attribution"]["attribution"].loc[CELL | {"step": 15}] = matrix
    axes = draw_attribution(found, SETTING, 0.1).axes[0]
    colours = cells(axes)[0]
    np.testing.assert_array_equal(np.ma.getmaskarray(colours), ~(matrix > 0))
    assert hatched(axes) == 1
    mesh = next(c for c in axes.collections if c.get_hatch() is None)
    mesh.update_scalarmappable()
    shades = mesh.get_facecolor().reshape(*matrix.shape, 4)
    assert shades[0, 3, 3] == 1 and shades[0, 3, :3].max() < 0.4  # small: opaque and dark
    assert shades[4, 0, 3] == 0  # zero: nothing drawn
    assert not hatched(draw_attribution(measured(blank()), SETTING, 0.1).axes[0])


def test_attribution_of_a_norm_without_a_seed_left():
    found = measured(blank())
    for name in found.measured["attribution"].data_vars:
        found.measured["attribution"][name].loc[{"norm": "none"}] = np.nan
    figure = draw_attribution(found, SETTING, 0.1)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["none (no seed left)", "batch"]
    assert hatched(figure.axes[0]) == len(SITES) * (len(BLOCKS) + 2)


def test_attribution_panels_share_one_scale():
    found = measured(blank())
    found.measured["attribution"]["attribution"].loc[{"norm": "batch"}] = 50.0
    figure = draw_attribution(found, SETTING, 0.1)
    limits = {c.get_clim() for a in figure.axes[:2] for c in a.collections}
    assert limits == {(1.0, 50.0)}


def test_gradient_shift_at_the_first_middle_and_last_step():
    found = measured(blank(), steps=(0, 4, 8, 12, 16))
    node = found.measured["gradient_shift"]
    for step in (0, 8, 16):
        node["gradient_shift"].loc[CELL | {"step": step}] = np.arange(5.0) * (step + 1)
        node["gradient_shift_cosine"].loc[CELL | {"step": step}] = [1, 0.5, 0.25, -0.5, -1]
    figure = draw_gradient_shift(found, SETTING, 0.1)
    assert len(figure.axes) == 9
    for row, step in enumerate((0, 8, 16)):
        shift, _, cosine = figure.axes[3 * row : 3 * row + 3]
        assert shift.get_ylabel() == f"step {step}"
        at, values = line(shift, "none")
        # The first block cannot move: its 0 and its cosine of 1 are no measurements.
        assert at == [1, 2, 3, 4]
        np.testing.assert_array_equal(values, np.arange(1, 5) * (step + 1))
        assert line(cosine, "none")[1].tolist() == [0.5, 0.25, -0.5, -1]
    assert [axes.get_yscale() for axes in figure.axes[:3]] == ["log", "log", "linear"]
    assert "of 5 measured steps" in words(figure)


def test_blocks_that_never_move_have_no_tick():
    found = measured(blank())
    found.measured["gradient_shift"]["gradient_shift"].loc[{"block": "words"}] = 0.0
    axes = draw_gradient_shift(found, SETTING, 0.1).axes[6]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(BLOCKS[1:])


def test_gradient_norms_carry_their_growth():
    records = with_gradient_norms(blank(), factor=2.0)
    figure = draw_gradient_norms(digest(records), SETTING, 0.1)
    assert [axes.get_title() for axes in figure.axes] == ["step 0", "step 10", "step 15"]
    at, values = line(figure.axes[0], "none")
    assert at == [0, 1, 2, 3, 4] and values.tolist() == [7, 4, 2, 1, 7]
    # Towards the input every layer has twice the norm, exactly on a line.
    assert "none × 2.00, 2.00, 2.00 R² 1.00, 1.00, 1.00" in words(figure)


def test_gradient_norms_without_repeated_blocks_have_no_fit():
    records = with_gradient_norms(blank(), factor=2.0)
    records.probe = records.probe.assign_coords(block=["a", "b", "c", "d", "e"])
    text = words(draw_gradient_norms(digest(records), SETTING, 0.1))
    assert "R²" not in text and "growth" not in text.lower()


def test_landscape_bands_are_ranges_over_step_sizes():
    found = measured(blank())
    found.measured["landscape"]["loss_along"].loc[CELL] = [2.0, 3.0, 10.0]
    found.measured["landscape"]["effective_smoothness"].loc[CELL] = 0.25
    figure = draw_landscape(found, SETTING, 0.1)
    assert len(figure.axes) == 4
    y = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (y.min(), y.max()) == (2, 10)
    assert set(line(figure.axes[0], "none")[1]) == {3.0}
    assert set(line(figure.axes[2], "none")[1]) == {0.25}
    assert [each.get_ydata()[0] for each in figure.axes[3].lines][-1] == 2
    assert f"3 step sizes of {MULTIPLES[0]:g} to {MULTIPLES[-1]:g} learning rates" in words(figure)


def test_landscape_bands_leave_out_steps_that_overflow():
    found = measured(blank())
    found.measured["landscape"]["loss_along"].loc[CELL] = [2.0, 3.0, np.inf]
    axes = draw_landscape(found, SETTING, 0.1).axes[0]
    y = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (y.min(), y.max()) == (2, 3)
    assert set(line(axes, "none")[1]) == {2.5}


def test_landscape_alone_and_sharpness_alone():
    whole = measured(blank())
    for kind, other, n in (("landscape", "λ max", 3), ("sharpness", "step sizes", 1)):
        figure = draw_landscape(replace(whole, measured={kind: whole.measured[kind]}), SETTING, 0.1)
        assert len(figure.axes) == n and other not in words(figure)


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_what_was_not_measured_is_not_drawn(draw: Callable[..., Figure | None]):
    assert draw(digest(blank()), SETTING, 0.1) is None


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_captions_tell_runs_seeds_and_the_rate(draw: Callable[..., Figure]):
    text = words(draw(measured(blank(norms=("none", "batch"))), SETTING, 0.1, WHY, ", depth 2"))
    assert "6 runs (2 norms, 3 seeds) of 20 steps, adam, batch 128, 0 diverged." in text
    assert "Medians over the running ones of 3 seeds." in text
    assert WHY in text and "lr 0.1" in text and ", depth 2" in text
    one = words(draw(measured(blank(seeds=(4,))), SETTING, 0.1, WHY))
    assert "One seed, no interval." in one and "Medians" not in one


@pytest.mark.parametrize(
    "bad", [np.nan, *(pytest.param(bad, marks=pytest.mark.slow) for bad in (np.inf, 0.0, -1.0))]
)
@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_measurements_without_a_value_to_show(draw: Callable[..., Figure | None], bad: float):
    everywhere, some = measured(blank(), value=bad), measured(blank(norms=("none", "batch")))
    for node in nodes(some):
        for values in node.data_vars.values():
            values.loc[CELL] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(everywhere, SETTING, 0.1)
        if figure is not None:
            figure.draw_without_rendering()
        draw(some, SETTING, 0.1).draw_without_rendering()


@pytest.mark.slow
@pytest.mark.parametrize(
    "record",
    [all_diverged, everything_dead, first_step_only, overflowing, still_going, uneven_sites],
)
@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_hard_records_are_drawn(draw: Callable[..., Figure], record: Callable[[], FakeRecords]):
    draw(measured(record()), SETTING, 0.1).draw_without_rendering()


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_a_single_step_shows(draw: Callable[..., Figure]):
    figure = draw(measured(blank(), steps=(0,)), SETTING, 0.1)
    for axes in figure.axes:
        for each in axes.lines:
            assert len(each.get_xdata()) > 1 or each.get_marker() not in ("", "None")


def test_many_norms_leave_room_for_their_fits():
    records = with_gradient_norms(blank(norms=tuple(f"norm_{i}" for i in range(14))), 2.0)
    figure = draw_gradient_norms(digest(records), SETTING, 0.1)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.y0 > 0 and box.y1 < figure.bbox.y1
