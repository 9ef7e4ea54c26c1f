"""Pictures of losses: curves and what they came to."""

import itertools

import numpy as np
from fake_records import blank, diverge
from matplotlib.figure import Figure
from pictured import (
    RUN,
    first_step_only,
    one_setting,
    words,
)

from ici.report.losses import draw_final_loss, draw_loss_curves
from ici.report.style import ordered_styles

KINDS = ("layer_inputs", "shift_map", "loss_curves", "final_loss")


def test_loss_curves_mark_divergences():
    records = one_setting(blank(steps=300))
    records.train["loss"].loc[RUN] = 0.5
    figure = draw_loss_curves(records)
    assert "diverged" not in [t.get_text() for t in figure.legends[0].get_texts()]
    diverge(records, 120, 1e5, **RUN, seed=1)
    figure = draw_loss_curves(records)
    assert "diverged" in [t.get_text() for t in figure.legends[0].get_texts()]
    crosses = [
        [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "x"]
        for axes in figure.axes
    ]
    assert crosses == [[120], []]
    # The survivors go on, and the diverging loss is on no line.
    curves = [line for line in figure.axes[0].lines if line.get_xdata()[-1] > 290]
    assert len(curves) == 4 and max(np.nanmax(line.get_ydata()) for line in curves) <= 1
    assert "Means over bins of 3 steps" in words(figure)


def notes(figure: Figure) -> list[list[str]]:
    return [[note.get_text() for note in axes.texts] for axes in figure.axes]


def test_loss_curves_count_divergences_that_coincide():
    records = one_setting(blank(steps=300))
    for seed in (0, 1, 2):
        diverge(records, 4, 1e5, **RUN, seed=seed)
    diverge(records, 4, 1e5, norm="none", lr=0.01, seed=1)
    diverge(records, 280, 1e5, norm="batch", lr=0.1, seed=1)
    figure = draw_loss_curves(records)
    assert notes(figure) == [
        ["lr 0.01: 1/3 diverged", "lr 0.1: 3/3 diverged"],
        ["lr 0.1: 1/3 diverged"],
    ]
    axes = figure.axes[0]
    heights = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "x"]
    assert len(set(heights)) == 2 and axes.get_ylim()[0] < min(heights)
    assert max(heights) < axes.get_ylim()[1]


def test_loss_curves_do_not_hide_spikes():
    records = one_setting(blank(steps=300, lrs=(0.1,)))
    assert max(np.nanmax(line.get_ydata()) for line in draw_loss_curves(records).axes[0].lines) == 1
    records.train["loss"].loc[{"norm": "none", "seed": 2, "step": 200}] = 13.0
    figure = draw_loss_curves(records)
    peak, curve = figure.axes[0].lines
    assert np.nanmax(peak.get_ydata()) == 13 and np.nanmax(curve.get_ydata()) == 1
    assert abs(peak.get_xdata()[np.nanargmax(peak.get_ydata())] - 200) <= 3  # bins of 3 steps
    assert figure.axes[0].get_ylim()[1] > 13
    assert "Thin line: the largest loss of a single step in each bin" in words(figure)


def test_neighbouring_learning_rates_differ_without_hue():
    styles = ordered_styles(8)
    for one, other in itertools.pairwise(styles):
        assert one.marker != other.marker and one.dashes != other.dashes
    assert len({style.marker for style in styles}) == 8
    records = one_setting(blank(steps=300, lrs=(0.01, 0.1, 1.0)))
    figure = draw_loss_curves(records)
    handles = figure.legends[0].legend_handles
    drawn = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
    assert [h.get_marker() for h in handles] == [line.get_marker() for line in drawn]
    places = [tuple(line.get_markevery()) for line in drawn]
    assert all(places) and len(set(places)) == 3


def test_a_curve_of_a_single_point_shows():
    (curve,) = [
        line
        for line in draw_loss_curves(one_setting(first_step_only())).axes[0].lines
        if line.get_marker() == ordered_styles(1)[0].marker
    ]
    assert curve.get_markevery() == [0]


def test_final_loss_shows_medians_and_counts_divergences():
    records = one_setting(blank(steps=100))
    for seed, loss in ((0, 0.2), (1, 0.3), (2, 0.9)):
        records.train["loss"].loc[RUN | {"seed": seed}] = loss
    diverge(records, 50, **RUN, seed=2)
    figure = draw_final_loss(records)
    (axes,) = figure.axes
    points = axes.containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(points, [1.0, 0.25], rtol=1e-6)  # float32 losses
    assert [note.get_text() for note in axes.texts] == ["1/3"]
    assert "last 5 steps" in words(figure)


def test_learning_rates_in_any_order_are_drawn_in_theirs():
    records = one_setting(blank(lrs=(0.1, 0.001, 0.01)))
    (axes,) = draw_final_loss(records).axes
    drawn = axes.containers[0].lines[0].get_xdata().tolist()
    np.testing.assert_allclose(drawn, [0.001, 0.01, 0.1], rtol=0.1)  # norms stand side by side
    (legend,) = draw_loss_curves(records).legends
    texts = [text.get_text() for text in legend.get_texts()]
    rates = [float(text.split()[-1]) for text in texts if text[-1].isdigit()]
    assert rates == [0.001, 0.01, 0.1], texts
