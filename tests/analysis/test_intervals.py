from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ici.analysis.statistics import (
    Interval,
    bootstrap_interval,
    interquartile_mean,
    mean_interval,
    proportion_interval,
    stratified_interval,
)
from ici.errors import InputError


def bounds(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_mean_interval_is_students(level: float):
    values = [1.0, 4.0, 2.0, 9.0]
    interval = mean_interval(values, level)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    assert interval.estimate == 4.0 and interval.n == 4 and interval.level == level
    assert bounds(interval) == pytest.approx((expected.low, expected.high))


def test_one_seed_has_no_interval_and_says_so():
    for interval in (mean_interval([3.0]), bootstrap_interval([3.0])):
        assert interval.estimate == 3.0
        assert np.isnan(bounds(interval)).all() and not interval.exists
        assert "seed" in interval.method and "seed" in str(interval)
        assert not interval.excludes_zero
    assert not stratified_interval([[1.0], [2.0]]).exists


def test_excludes_zero():
    assert mean_interval([1.0, 1.1, 0.9]).excludes_zero
    assert mean_interval([-1.0, -1.1, -0.9]).excludes_zero
    assert not mean_interval([-1.0, 1.0, 0.5]).excludes_zero


@pytest.mark.parametrize("bad", [[], [1.0, np.nan], [1.0, np.inf], [[1.0, 2.0]]])
def test_what_is_not_finite_is_refused(bad: list):
    for interval in (mean_interval, bootstrap_interval):
        with pytest.raises(InputError, match="leave diverged runs out"):
            interval(bad)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_an_impossible_level_is_refused(level: float):
    for made in (
        lambda: mean_interval([1.0, 2.0], level),
        lambda: bootstrap_interval(np.arange(9.0), level=level),
        lambda: stratified_interval(np.eye(3), level=level),
        lambda: proportion_interval(1, 3, level),
    ):
        with pytest.raises(InputError, match="level"):
            made()


@pytest.mark.parametrize(("level", "fewest"), [(0.5, 2), (0.9, 5), (0.95, 6), (0.99, 8)])
def test_a_bootstrap_needs_as_many_seeds_as_the_range_does(level: float, fewest: int):
    # The range of n values holds the median with probability 1 − 2^(1−n).
    assert 1 - 2.0 ** (1 - fewest) >= level > 1 - 2.0 ** (2 - fewest) or fewest == 2
    few, enough = np.arange(fewest - 1.0), np.arange(float(fewest))
    if len(few):
        assert not bootstrap_interval(few, level=level).exists
    assert bootstrap_interval(enough, level=level).exists


def test_bootstrap_expands_the_percentiles_to_students_width():
    # For the mean of many resamples the expanded percentiles are nearly the t interval.
    values = np.random.default_rng(0).normal(size=40)
    found, student = bootstrap_interval(values, np.mean, n_resamples=20_000), mean_interval(values)
    # 20,000 resamples place a 1.9 % percentile to 2 % of the half width.
    half = student.high - student.estimate
    assert bounds(found) == pytest.approx(bounds(student), abs=0.06 * half)
    plain = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.low < plain.low and found.high > plain.high


def test_bootstrap_is_reproducible_and_follows_scale():
    values = np.random.default_rng(1).lognormal(size=12)
    one, again = bootstrap_interval(values), bootstrap_interval(values)
    assert one == again
    means = [bounds(bootstrap_interval(values, np.mean, seed=seed)) for seed in (0, 1)]
    assert means[0] != means[1]
    scaled = bootstrap_interval(3 - 2 * values)
    assert bounds(scaled) == pytest.approx((3 - 2 * one.high, 3 - 2 * one.low), rel=0.2)
    assert values.min() <= one.low <= one.estimate <= one.high <= values.max()


def test_interquartile_mean_against_scipy_and_by_hand():
    values = np.random.default_rng(0).normal(size=(3, 16))
    np.testing.assert_allclose(interquartile_mean(values), stats.trim_mean(values, 0.25, axis=-1))
    # Of three, the middle one and a quarter of each neighbour: weights 1/6, 4/6, 1/6.
    assert interquartile_mean([9.0, 0.0, 3.0]) == pytest.approx((0 + 4 * 3 + 9) / 6)
    assert interquartile_mean([5.0]) == 5.0
    np.testing.assert_allclose(interquartile_mean(values, axis=0), interquartile_mean(values.T))


def test_stratified_resamples_within_settings_only():
    levels = np.array([[0.0], [100.0], [200.0], [300.0]])
    constant = stratified_interval(levels + np.zeros(3))
    assert bounds(constant) == (150.0, 150.0)
    noisy = stratified_interval(levels + np.random.default_rng(0).normal(size=(4, 5)))
    # The spread between settings is none of the seeds'.
    assert 0 < noisy.high - noisy.low < 4
    assert noisy.n == 5 and "4 settings" in noisy.method


def test_stratified_wants_settings():
    for bad in ([1.0, 2.0], [[1.0, 2.0]], [[1.0, np.nan], [1.0, 2.0]]):
        with pytest.raises(InputError, match="two or more settings"):
            stratified_interval(bad)


def test_proportion_interval_in_closed_form():
    # None of n: the upper end is 1 − (α/2)^(1/n), whatever the method of computation.
    none, every = proportion_interval(0, 3), proportion_interval(3, 3)
    assert bounds(none) == pytest.approx((0, 1 - 0.025 ** (1 / 3)))
    assert bounds(every) == pytest.approx((0.025 ** (1 / 3), 1))
    some = proportion_interval(2, 7)
    assert bounds(some) == pytest.approx((stats.beta.ppf(0.025, 2, 6), stats.beta.ppf(0.975, 3, 5)))
    assert some.estimate == 2 / 7


@pytest.mark.parametrize(("k", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_proportion_of_impossible_counts(k: int, n: int):
    with pytest.raises(InputError, match="wanted a count"):
        proportion_interval(k, n)
