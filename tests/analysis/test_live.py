"""What is said while a record grows is what the analysis says once it is whole."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ici.analysis.live import (
    N_BINS,
    N_DIVERGENCES,
    Divergence,
    GroupSoFar,
    GroupState,
    SpikeCounter,
    latest,
    seconds_left,
)
from ici.analysis.records import Target
from ici.measure.spikes import events, spike_rule
from ici.store.following import GroupLabels

LABELS = GroupLabels({"lr": (0.01, 0.1), "weight_decay": (0.0,), "seed": (0, 1, 2)}, ("head",), {})


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 120), max_size=6),
    two_sided=st.booleans(),
    burn_in=st.sampled_from([3, 8]),
)
def test_spikes_counted_in_pieces_are_the_events_of_the_whole(seed, cuts, two_sided, burn_in):
    rng = np.random.default_rng(seed)
    series = rng.normal(5, 1, (4, 120))
    for _ in range(12):
        row, at = rng.integers(4), rng.integers(120)
        series[row, at : at + rng.integers(1, 12)] += rng.choice([-30, 30, 300])
    series[3, rng.integers(5, 120) :] = rng.choice([np.nan, np.inf])
    series[0, 40:70] = 5.0  # without any spread
    rule = spike_rule(None, window=8, k=4, two_sided=two_sided, burn_in=burn_in)
    counter = SpikeCounter(4, rule)
    for part in np.split(series, sorted(cuts), axis=1):
        counter.add(part)
    assert counter.counts.tolist() == [len(events(row, rule)) for row in series]
    assert counter.tail.shape[1] <= rule.window


def group(**settings):
    return GroupSoFar("batch", 3, 100, LABELS, **settings)


def test_losses_are_medians_of_the_runs_of_a_learning_rate():
    so_far = group()
    rng = np.random.default_rng(0)
    loss = rng.random((6, 100))
    so_far.add_divergences(np.array([np.nan] * 5 + [10.0]))
    for first in range(0, 100, 25):
        so_far.add_train(first, loss[:, first : first + 25])
        so_far.rows["train"] = first + 25
    low, high = so_far.state().settings
    known = loss.copy()
    known[5, 10:] = np.nan
    bins = np.arange(100) * N_BINS // 100
    for setting, lanes in ((low, known[:3]), (high, known[3:])):
        medians = np.nanmedian(lanes, axis=0)
        wanted = [medians[bins == i].mean() if (bins == i).any() else np.nan for i in range(N_BINS)]
        np.testing.assert_allclose(setting.losses, wanted)
        assert setting.loss == pytest.approx(medians[-1])


def test_divergences_are_told_once_and_by_step():
    so_far = group()
    nan = np.nan
    new = so_far.add_divergences(np.array([nan, 30, nan, nan, 7, nan]))
    assert [(d.step, d.run) for d in new] == [
        (7, "norm=batch depth=3 lr=0.1 seed=1"),
        (30, "norm=batch depth=3 lr=0.01 seed=1"),
    ]
    assert [d.step for d in so_far.add_divergences(np.array([nan, 30, 40, nan, 7, nan]))] == [40]
    state = so_far.state()
    assert state.n_diverged == 3 and [s.n_diverged for s in state.settings] == [2, 1]


def test_only_the_latest_divergences_are_kept():
    kept = deque()
    for step in range(100):
        kept = latest(kept, [Divergence(step, "run")])
    assert [d.step for d in kept] == list(range(100 - N_DIVERGENCES, 100))


@pytest.mark.parametrize(("stops", "running"), [(False, 6), (True, 4)])
def test_targets_met_stay_met(stops, running):
    so_far = group(target=Target("accuracy", 0.7), stops=stops)
    scores = np.full((6, 3), 0.5)
    scores[0, 1] = 0.7
    scores[3, 2] = 0.9
    scores[1, 1:] = np.nan
    for column in range(3):
        so_far.add_scores(scores[:, [column]], scores[:, [column]])
    so_far.rows["train"] = 50
    state = so_far.state()
    assert state.n_met == 2 and state.n_running == running
    # Of the last scores that there are.
    assert [s.score for s in state.settings] == [0.5, 0.5]


def test_shift_is_from_the_first_measurement_of_runs_still_going():
    so_far = group()
    mean, std = np.zeros((6, 1, 2)), np.full((6, 1, 2), 2.0)
    so_far.add_reference(0, mean, std)
    moved = mean + np.array([1, 2, 30, 4, 4, np.nan])[:, None, None]
    so_far.add_reference(3, moved, std)
    assert [s.shift for s in so_far.state().settings] == [1.0, 2.0]


def test_nothing_yet_is_nan_and_no_spike_count():
    (setting, _) = group().state().settings
    assert np.isnan([setting.loss, setting.score, setting.shift, *setting.losses]).all()
    assert setting.n_spikes is None


def a_group(depth, step, n_running, done=False, run_step_s=None):
    return GroupState("batch", depth, step, 100, 8, n_running, 0, 0, done, run_step_s=run_step_s)


def test_time_left_is_the_steps_left_by_what_a_step_took():
    assert seconds_left((a_group(2, 0, 8),)) is None
    assert seconds_left((a_group(2, 60, 8, run_step_s=0.5),)) == 40 * 8 * 0.5
    # Of groups to come: in proportion to the depth of those that were timed.
    groups = (a_group(2, 100, 0, True, 0.5), a_group(6, 0, 8))
    assert seconds_left(groups) == pytest.approx(100 * 8 * 1.5)
    assert seconds_left((a_group(2, 100, 0, True, 0.5),)) == 0
