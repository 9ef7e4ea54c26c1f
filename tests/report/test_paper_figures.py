"""Phase diagram, sensitivity, time to the target: what is drawn is what the record holds."""

from __future__ import annotations

import numpy as np
import pytest
from fake_records import FakeRecords, blank, diverge
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pictured import all_diverged, still_going, words
from scipy import stats

from ici.analysis.digest import digest
from ici.report.phase import draw_phase
from ici.report.sensitivity import draw_sensitivity
from ici.report.survival import draw_survival

SETTING = {"depth": 2}


def colours(axes: Axes) -> np.ma.MaskedArray:
    return axes.collections[0].get_array()


def written(axes: Axes) -> np.ndarray:
    """The texts of the cells ``[setting, lr]``."""
    found = {t.get_position(): t.get_text() for t in axes.texts}
    shape = colours(axes).shape
    return np.array(
        [[found[column + 0.5, row + 0.5] for column in range(shape[1])] for row in range(shape[0])]
    )


def test_phase_shows_the_median_final_loss_of_every_cell():
    records = blank(depths=(2, 5), lrs=(0.1, 0.01), steps=40)
    for depth, norm, lr, losses in (
        (2, "none", 0.01, (0.1, 0.2, 0.9)),
        (5, "batch", 0.1, (0.3, 0.4, 0.5)),
    ):
        for seed, loss in enumerate(losses):
            run = {"depth": depth, "norm": norm, "lr": lr, "seed": seed}
            records.train["loss"].loc[run | {"step": slice(1, None)}] = loss
    none, batch = draw_phase(digest(records)).axes[:2]
    # Rows are depths, columns increasing rates; float32 records.
    np.testing.assert_allclose(colours(none), [[0.2, 1], [1, 1]], rtol=1e-6)
    np.testing.assert_allclose(colours(batch), [[1, 1], [1, 0.4]], rtol=1e-6)
    assert none.collections[0].get_clim() == batch.collections[0].get_clim()
    assert [label.get_text() for label in none.get_yticklabels()] == ["2", "5"]
    assert [label.get_text() for label in none.get_xticklabels()] == ["0.01", "0.1"]


def test_phase_marks_what_became_of_the_seeds():
    records = blank(norms=("none",), lrs=(0.001, 0.01, 0.1, 1.0, 10.0), steps=300)
    loss = records.train["loss"]
    loss[:] = np.linspace(1, 0.5, 300)
    loss.loc[{"lr": 0.01, "seed": 0, "step": 200}] = 50.0
    loss.loc[{"lr": 0.1, "seed": 2}] = np.linspace(1, 1.5, 300)
    records.evaluation["accuracy"].loc[{"lr": [0.001, 1.0], "step": slice(5, None)}] = 0.9
    diverge(records, 2, lr=1.0, seed=1)
    for seed in (0, 1, 2):
        diverge(records, 9, lr=10.0, seed=seed)
    (axes, _) = draw_phase(digest(records)).axes
    assert written(axes).tolist() == [["●", "▲", "▬", "✕1/3", "✕3/3"]]
    assert np.ma.getmaskarray(colours(axes)).tolist() == [[False] * 4 + [True]]


def test_phase_marks_without_a_colour_of_their_own():
    """Marks are black or white, whichever lies farther from the cell's grey."""
    records = blank(norms=("none",), lrs=(0.01, 0.1), steps=40)
    records.train["loss"].loc[{"lr": 0.01, "step": slice(1, None)}] = 0.01
    records.evaluation["accuracy"][:] = 0.9
    (axes, _) = draw_phase(digest(records)).axes
    dark, light = (text.get_color() for text in axes.texts)
    assert (dark, light) == ("white", "black")


def test_phase_of_runs_still_going():
    figure = draw_phase(digest(still_going()))
    assert set(written(figure.axes[0]).ravel()) == {"…▬"}
    assert "12 still going" in words(figure)


@pytest.mark.parametrize("n_norms", [1, 5, 14])
def test_phase_stays_narrow(n_norms: int):
    records = blank(
        norms=tuple(f"norm_{i}" for i in range(n_norms)),
        lrs=tuple(np.geomspace(1e-4, 1, 13).tolist()),
        seeds=(0,),
    )
    figure = draw_phase(digest(records))
    assert figure.get_size_inches()[0] <= 12
    assert len(figure.axes) == n_norms + 1


def constant_losses(seeds: tuple[int, ...] = (0, 1, 2)) -> FakeRecords:
    """First loss 1, final losses known: sensitivity of norm none 0.1, 0.2, 0.3 by seed."""
    records = blank(lrs=(0.01, 0.1), seeds=seeds, steps=40)
    after = {"step": slice(1, None)}
    for seed in seeds:
        records.train["loss"].loc[{"seed": seed, "lr": 0.01} | after] = 0.5
        records.train["loss"].loc[{"seed": seed, "lr": 0.1} | after] = 0.7 + 0.2 * seed
    return records


def test_sensitivity_is_the_mean_over_seeds_with_its_interval():
    records = constant_losses()
    left, right = draw_sensitivity(digest(records), SETTING).axes
    # Mean over two rates of what lies above the better one: (0.7 − 0.5) / 2 and so on, but the
    # last seed's 1.1 counts as its first loss, 1.
    seeds = np.array([0.1, 0.2, 0.25])
    low, high = stats.t.interval(0.95, 2, seeds.mean(), stats.sem(seeds))
    ticks, interval, mean = left.lines[:3]
    np.testing.assert_allclose(ticks.get_xdata(), seeds, rtol=1e-5)
    np.testing.assert_allclose(interval.get_xdata(), [low, high], rtol=1e-5)
    np.testing.assert_allclose(mean.get_xdata(), [seeds.mean()], rtol=1e-5)
    assert left.texts[0].get_text() == f"{seeds.mean():.3g} [{low:.3g}, {high:.3g}]"
    assert [line.get_xdata()[0] for line in right.lines] == [0.1, 0.1]


def test_the_largest_stable_rate():
    records = constant_losses()
    diverge(records, 5, norm="batch", lr=0.1, seed=2)
    for lr in (0.01, 0.1):
        diverge(records, 5, norm="none", lr=lr, seed=0)
    (right,) = draw_sensitivity(digest(records), SETTING).axes[1:]
    assert [text.get_text() for text in right.texts] == ["none is stable", "0.01"]
    (line,) = right.lines
    assert list(line.get_xdata()) == [0.01]


def test_sensitivity_of_one_seed_has_no_interval():
    figure = draw_sensitivity(digest(constant_losses(seeds=(0,))), SETTING)
    left = figure.axes[0]
    assert [len(line.get_xdata()) for line in left.lines] == [1, 1]  # the means alone
    assert [text.get_text() for text in left.texts] == ["0.1", "0.1"]
    assert "one seed, no interval" in words(figure) and "Student" not in words(figure)


def test_sensitivity_needs_two_rates():
    assert draw_sensitivity(digest(blank(lrs=(0.1,))), SETTING) is None


def test_sensitivity_where_all_diverged():
    figure = draw_sensitivity(digest(all_diverged()), SETTING)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["no run has both losses"] * 2
    assert words(figure).count("none is stable") == 2


def test_sensitivity_where_nothing_is_learned():
    records = constant_losses()
    # Losses of 1 from the first step on: no rate is better than none at all.
    records.train["loss"].loc[{"norm": "batch"}] = 1.0
    left = draw_sensitivity(digest(records), SETTING).axes[0]
    assert [text.get_text() for text in left.texts][1] == "no rate ends below the first loss"


def test_sensitivity_says_where_rates_are_unevenly_spaced():
    even = draw_sensitivity(digest(blank(lrs=(0.01, 0.03, 0.1))), SETTING)
    odd = draw_sensitivity(digest(blank(lrs=(0.1, 0.2, 10.0))), SETTING)
    assert "3 rates (unevenly spaced) from" in words(odd) and "unevenly" not in words(even)


def reached(seeds: tuple[int, ...] = (0, 1, 2), **at: list[float]) -> FakeRecords:
    """Seeds of norm none at lr 0.01 meet the target at these steps; no other run does."""
    records = blank(seeds=seeds)
    accuracy = records.evaluation["accuracy"]
    for seed, step in zip(seeds, at["none"], strict=True):
        accuracy.loc[{"norm": "none", "lr": 0.01, "seed": seed, "step": slice(step, None)}] = 0.9
    return records


def curve(figure: Figure, panel: int, norm: str) -> tuple[np.ndarray, np.ndarray, str]:
    lines = [line for line in figure.axes[panel].lines if str(line.get_label()).startswith(norm)]
    (line,) = lines
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), str(line.get_label())


def test_survival_steps_down_where_runs_meet_the_target():
    figure = draw_survival(digest(reached(none=[5, 10, np.inf])), SETTING)
    steps, share, label = curve(figure, 0, "none")
    assert steps.tolist() == [0, 5, 10, 20] and label == "none, lr 0.01: 2/3"
    np.testing.assert_allclose(share, [1, 2 / 3, 1 / 3, 1 / 3])
    steps, share, label = curve(figure, 1, "none")
    np.testing.assert_allclose(share, [1, 5 / 6, 4 / 6, 4 / 6])
    assert label == "none: 2/6"
    assert curve(figure, 1, "batch")[1].tolist() == [1, 1]
    assert {line.get_drawstyle() for line in figure.axes[0].lines} == {"steps-post"}


def test_survival_band_is_the_log_log_interval():
    figure = draw_survival(digest(reached(none=[5, 10, np.inf])), SETTING)
    (band,) = figure.axes[0].collections
    y = band.get_paths()[0].vertices[:, 1]
    # Greenwood at the first step: S = 2/3, sd of log(−log S) = sqrt(1/(3·2)) / |log S|.
    s, z = 2 / 3, stats.norm.ppf(0.975)
    spread = z * np.sqrt(1 / 6) / abs(np.log(s))
    assert np.isclose(y, s ** np.exp(-spread)).any() and np.isclose(y, s ** np.exp(spread)).any()


def test_survival_of_one_seed_has_no_band():
    figure = draw_survival(digest(reached(seeds=(0,), none=[10])), SETTING)
    assert not figure.axes[0].collections
    assert "Left: one seed, no interval" in words(figure)


def test_survival_leaves_out_runs_still_going():
    records = still_going()
    assert draw_survival(digest(records), SETTING) is None
    ended = reached(none=[5, 5, 5])
    # Its last step was not recorded: it is going on.
    ended.train["loss"].loc[{"norm": "batch", "step": slice(15, None)}] = np.nan
    # Whether one has met the target by now says nothing of those that have not yet.
    ended.evaluation["accuracy"].loc[{"norm": "batch", "lr": 0.1, "step": slice(5, None)}] = 0.9
    figure = draw_survival(digest(ended), SETTING)
    assert "6 runs still going are left out" in words(figure)
    assert not [line for line in figure.axes[1].lines if "batch" in str(line.get_label())]


def test_survival_needs_a_target():
    records = blank(target=None)
    records.evaluation["accuracy"][:] = np.nan
    assert draw_survival(digest(records), SETTING) is None


def test_survival_where_every_rate_has_a_divergence():
    figure = draw_survival(digest(all_diverged()), SETTING)
    assert "no norm has a rate without divergence" in words(figure)
    assert "none: 0/4" in words(figure)


def test_captions_hold_the_constants():
    records = blank(depths=(2, 5), steps=200)
    diverge(records, 5, norm="none", lr=0.1, depth=2)
    found = digest(records)
    texts = {
        "phase": words(draw_phase(found)),
        "sensitivity": words(draw_sensitivity(found, SETTING)),
        "survival": words(draw_survival(found, SETTING)),
    }
    one = "12 runs (2 norms, 2 learning rates, 3 seeds) of 200 steps, adam, batch 128, 3 diverged."
    assert one in texts["sensitivity"] and one in texts["survival"]
    assert (
        "24 runs (2 norms, 2 depths, 2 learning rates, 3 seeds) of 200 steps, adam, batch 128, "
        "3 diverged." in texts["phase"]
    )
    for figure, parts in {
        "phase": (found.spikes.rule.describe(), "last 10 steps", "median over 3 seeds", "80% acc."),
        "sensitivity": ("2 rates from 0.01 to 0.1", "95 % Student t interval of 3 seeds"),
        "survival": ("80% acc.", "set by the experiment", "every 5 steps", "95 % log-log"),
    }.items():
        assert all(part in texts[figure] for part in parts), (figure, texts[figure])
