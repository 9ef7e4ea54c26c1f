from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from ici.errors import InputError
from ici.measure.spikes import (
    PRESETS,
    SpikeRule,
    find_spikes,
    spike_mask,
    spike_rule,
    spike_score,
)

CALM = [1.0, 3.0, 1.0, 3.0]  # mean 2, standard deviation 1
RULE = {"preset": None, "window": 4, "k": 3.0}


def by_hand(series: list[float], rule: SpikeRule) -> list[bool]:
    """The definition, one value at a time, with the standard library."""
    flags = []
    for i, value in enumerate(series):
        before = series[max(0, i - rule.window) : i]
        if len(before) < rule.burn_in:
            flags.append(False)
            continue
        mean, std = statistics.fmean(before), statistics.pstdev(before)
        deviation = abs(value - mean) if rule.two_sided else value - mean
        flags.append(deviation >= rule.k * std and deviation > 0 and std >= rule.min_std)
    return flags


def test_no_spike():
    assert find_spikes(CALM * 3, **RULE) == []
    assert float(spike_score(CALM * 3, **RULE)) == 0.0


def test_one_spike():
    series = [*CALM, 10.0, 2.0, 1.0, 3.0]
    (event,) = find_spikes(series, **RULE)
    assert (event.onset, event.peak, event.end) == (4, 4, 5)
    assert (event.level, event.height, event.recovery_steps) == (2.0, 8.0, 1.0)
    assert float(spike_score(series, **RULE)) == 1 / 8


def test_height_and_end_are_those_of_the_whole_event():
    # Band before the onset: 2 ± 3. The series peaks at 20 and is first back inside at 4.9.
    (event,) = find_spikes([*CALM, 6.0, 20.0, 9.0, 4.9, 2.0], **RULE)
    assert (event.onset, event.peak, event.end) == (4, 5, 7)
    assert (event.height, event.recovery_steps) == (18.0, 3.0)


def test_two_spikes():
    series = [*CALM, 10.0, *CALM, 10.0, *CALM]
    assert [event.onset for event in find_spikes(series, **RULE)] == [4, 9]
    assert float(spike_score(series, **RULE)) == 2 / 14


def test_overlapping_spikes_are_one_event():
    # The second rise is a spike of its own by the trailing window, but the first has not ended.
    series = [*CALM, 8.0, 8.0, 8.0, 8.0, 8.1, 100.0, 2.0]
    mask = spike_mask(series, spike_rule(**RULE))
    assert mask[9]
    (event,) = find_spikes(series, **RULE)
    assert (event.onset, event.peak, event.end) == (4, 9, 10)


def test_a_spike_in_the_window_hides_the_next():
    hidden, seen = [*CALM, 10.0, 2.0, 10.0, 2.0], [*CALM, 2.0, 2.0, 10.0, 2.0]
    assert [e.onset for e in find_spikes(hidden, **RULE)] == [4]
    assert [e.onset for e in find_spikes(seen, **RULE)] == [6]


def test_a_new_level_is_one_event_without_end():
    (event,) = find_spikes([*CALM, *[30.0] * 6, 60.0, 30.0], **RULE)
    assert event.end is None
    assert math.isinf(event.recovery_steps)


def test_exactly_k_standard_deviations_is_a_spike():
    assert find_spikes([*CALM, 5.0], **RULE)
    assert not find_spikes([*CALM, np.nextafter(5.0, 0)], **RULE)


def test_dips_count_only_two_sided():
    series = [*CALM, -8.0, 2.0]
    assert find_spikes(series, **RULE) == []
    (event,) = find_spikes(series, **RULE, two_sided=True)
    assert (event.height, event.end) == (-10.0, 5)


def test_the_window_has_exactly_w_values_and_not_the_current_one():
    # Were the 9 five places back in the window, its std would hide the 6; were the 6, likewise.
    series = [9.0, 1.0, 3.0, 1.0, 3.0, 6.0]
    assert spike_mask(series, spike_rule(**RULE)).tolist() == [False] * 5 + [True]
    assert not spike_mask(series, spike_rule(None, window=5, k=3.0)).any()


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("burn_in", [3, 7])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_agrees_with_the_definition(two_sided: bool, burn_in: int, offset: float):
    rng = np.random.default_rng(0)
    series = offset + rng.standard_t(2, size=(3, 400))
    rule = SpikeRule("t", window=7, k=3.0, two_sided=two_sided, burn_in=burn_in)
    expected = [by_hand(row.tolist(), rule) for row in series]
    assert sum(map(sum, expected)) > 10
    np.testing.assert_array_equal(spike_mask(series, rule), expected)


def test_long_series_are_cut_into_blocks_without_seams(monkeypatch: pytest.MonkeyPatch):
    series = np.random.default_rng(1).standard_t(2, size=(2, 300))
    rule = spike_rule(None, window=16, k=3.0)
    whole = spike_mask(series, rule)
    monkeypatch.setattr("ici.measure.spikes._BLOCK_VALUES", 100)
    np.testing.assert_array_equal(spike_mask(series, rule), whole)


def test_nothing_before_the_window_fills():
    spikes_early = [1.0, 2.0, 1.0, 500.0, *[1.0, 2.0] * 200]
    score = spike_score(spikes_early, "olmo_core")
    assert (score.n_spikes, score.n_judged, score.n_values) == (0, 404 - 128, 404)
    assert spike_score([1.0, 2.0] * 70, "olmo_core").n_judged == 140 - 128


def test_a_series_too_short_to_judge_has_no_score():
    score = spike_score([1.0, 2.0, 900.0], "olmo2")
    assert math.isnan(float(score)) and score.n_judged == 0


def test_constant_windows():
    flat, step = [0.1] * 200, [*[0.1] * 150, 5.0, *[0.1] * 49]
    for preset in ("olmo_core", "olmo2"):
        assert float(spike_score(flat, preset, window=128)) == 0.0
    # Without any spread OLMo-core judges nothing a spike; the OLMo 2 rule does.
    assert spike_score(step, "olmo_core").n_spikes == 0
    assert spike_score([0.0] * 150 + [5.0], "olmo2", window=128).n_spikes == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_no_spike_and_ends_the_series(bad: float):
    series = [*CALM, bad, *CALM, 100.0]
    assert not spike_mask(series, spike_rule(**RULE)).any()
    assert spike_score(series, **RULE).n_values == 4
    (event,) = find_spikes([*CALM, 50.0, bad, 2.0], **RULE)
    assert event.end is None


def test_smooth_divergence_has_no_spike():
    assert spike_score(np.linspace(1, 1e6, 2000), "olmo_core").n_spikes == 0


def test_presets_are_those_of_the_papers():
    olmo2, core = PRESETS["olmo2"], PRESETS["olmo_core"]
    assert (olmo2.k, olmo2.window, olmo2.two_sided) == (7, 1000, True)
    assert (core.k, core.window, core.two_sided, core.burn_in) == (6, 128, False, 128)
    assert core.min_std == 1e-10


def test_the_constants_travel_with_the_result():
    score = spike_score(CALM, "olmo_core", window=4, k=2.5)
    assert score.rule.name == "olmo_core, changed"
    for constant in ("2.5", "4 values", "first 4", "above"):
        assert constant in str(score)
    (event,) = find_spikes([*CALM, 10.0], **RULE)
    assert event.rule == spike_rule(**RULE)
    assert "\n" not in PRESETS["olmo2"].describe()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"preset": "olmo3"}, ["olmo3", "olmo2", "olmo_core"]),
        ({"preset": None, "window": 10}, ["window and k"]),
        ({"preset": None, "window": 1, "k": 3.0}, ["1", ">= 2"]),
        ({"preset": "olmo2", "k": -1.0}, ["-1.0", "> 0"]),
        ({"preset": None, "window": 4, "k": 3.0, "burn_in": 9}, ["9", "4"]),
    ],
)
def test_bad_rules(arguments: dict, words: list[str]):
    with pytest.raises(InputError) as caught:
        spike_score(CALM, **arguments)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_bad_series():
    with pytest.raises(InputError, match=r"\(2, 4\).*one run"):
        find_spikes([CALM, CALM], **RULE)
    with pytest.raises(InputError, match="single number"):
        spike_score(3.0, **RULE)
