from __future__ import annotations

import math

import numpy as np
import pytest

from ici.analysis.statistics import kaplan_meier, logrank, restricted_mean
from ici.errors import InputError

INF = np.inf


def by_hand(steps: list[float], at: float) -> float:
    """The product-limit estimate, straight from its definition."""
    share = 1.0
    for time in sorted({s for s in steps if s <= at and s < INF}):
        n_at_risk = sum(s >= time for s in steps)
        share *= 1 - sum(s == time for s in steps) / n_at_risk
    return share


def test_without_censoring_it_is_the_share_that_is_left():
    curve = kaplan_meier([100, 200, 200, 400], 500)
    np.testing.assert_array_equal(curve.steps, [0, 100, 200, 400, 500])
    np.testing.assert_allclose(curve.survival, [1, 0.75, 0.25, 0, 0], atol=1e-12)
    np.testing.assert_array_equal(curve.at_risk, [4, 4, 3, 1, 0])


def test_misses_are_censored_at_the_horizon():
    steps = [100.0, 300.0, INF, 200.0, INF, 500.0]
    curve = kaplan_meier(steps, 600)
    np.testing.assert_allclose(curve.survival[:-1], [by_hand(steps, at) for at in curve.steps[:-1]])
    assert curve.survival[-1] == pytest.approx(2 / 6)
    assert np.nanmin(curve.low) > 0 and np.nanmax(curve.high) < 1


def test_log_log_interval_by_greenwood():
    curve = kaplan_meier([100.0, 200.0, 300.0, INF, INF], 400)
    at = 2  # at step 200, 3 of 5 left
    share, variance = 3 / 5, 1 / (5 * 4) + 1 / (4 * 3)
    reach = 1.959963984540054 * math.sqrt(variance) / abs(math.log(share))
    assert curve.low[at] == pytest.approx(share ** math.exp(reach))
    assert curve.high[at] == pytest.approx(share ** math.exp(-reach))


def test_no_interval_where_the_share_is_certain():
    curve = kaplan_meier([100.0, 100.0], 200)
    assert np.isnan(curve.low).all() and np.isnan(curve.high).all()
    never = kaplan_meier([INF, INF, INF], 200)
    np.testing.assert_array_equal(never.survival, [1, 1])
    np.testing.assert_array_equal(never.at_risk, [3, 3])
    assert np.isnan(never.low).all()


def test_restricted_mean_is_the_area_below_the_curve():
    steps = [100.0, 350.0, INF, 200.0, INF]
    curve = kaplan_meier(steps, 600)
    area = float(np.sum(np.diff(curve.steps) * curve.survival[:-1]))
    assert restricted_mean(steps, 600) == pytest.approx(area)
    assert restricted_mean([INF, INF], 600) == 600


def test_logrank_by_hand():
    a, b = [100.0, 200.0, INF], [300.0, 400.0, INF]
    expected = variance = 0.0
    n_a, n_b = 3, 3
    for event_in_a in (True, True, False, False):
        n = n_a + n_b
        expected += n_a / n
        variance += n_a * n_b / n**2
        n_a, n_b = (n_a - 1, n_b) if event_in_a else (n_a, n_b - 1)
    from scipy.stats import chi2

    assert logrank(a, b, 500) == pytest.approx(chi2.sf((2 - expected) ** 2 / variance, 1))
    assert logrank(a, b, 500) == pytest.approx(logrank(b, a, 500))
    assert logrank(a, a, 500) == pytest.approx(1.0)


def test_logrank_without_any_event_tests_nothing():
    assert math.isnan(logrank([INF, INF], [INF], 500))
    assert math.isnan(logrank([], [100.0], 500))


@pytest.mark.parametrize("steps", [[], [100.0, np.nan], [-1.0]])
def test_what_is_no_time_is_refused(steps: list[float]):
    for of in (kaplan_meier, restricted_mean):
        with pytest.raises(InputError, match="still going"):
            of(steps, 500)


@pytest.mark.parametrize("horizon", [0.0, INF, 50.0, np.nan])
def test_an_impossible_horizon_is_refused(horizon: float):
    with pytest.raises(InputError, match="horizon"):
        kaplan_meier([100.0], horizon)
