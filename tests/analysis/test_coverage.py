"""Intervals hold the truth as often as they say; docs/statistics.md has the full table."""

from __future__ import annotations

import math
from functools import partial

import coverage
import numpy as np
import pytest

from ici.analysis.statistics import interquartile_mean

pytestmark = pytest.mark.slow

SIMS = 600
# Three standard errors of a share of 0.95, and of 0.025 on one side.
ERROR = 3 * math.sqrt(0.95 * 0.05 / SIMS)
TAIL_ERROR = 3 * math.sqrt(0.025 * 0.975 / SIMS)


@pytest.mark.parametrize("n", coverage.SIZES)
@pytest.mark.parametrize(
    "kind",
    [
        partial(coverage.of_mean, coverage.normal),
        partial(coverage.of_paired, coverage.normal),
        coverage.of_standardised,
    ],
    ids=["mean", "paired", "standardised"],
)
def test_exact_intervals_miss_equally_on_both_sides(kind, n: int):
    found = kind(n, SIMS)
    assert found.held == pytest.approx(0.95, abs=ERROR)
    assert found.below == pytest.approx(0.025, abs=TAIL_ERROR)
    assert found.above == pytest.approx(0.025, abs=TAIL_ERROR)


@pytest.mark.parametrize("n", coverage.SIZES)
@pytest.mark.parametrize("draw", coverage.DRAWS.values(), ids=coverage.DRAWS)
def test_paired_differences_hold_whatever_the_values(draw, n: int):
    assert coverage.of_paired(draw, n, SIMS).held >= 0.95 - ERROR


@pytest.mark.parametrize("n", coverage.SIZES)
def test_welch_holds_with_unequal_spreads(n: int):
    for draw in (coverage.normal, coverage.discrete):
        # Welch's degrees of freedom are approximate: one point is allowed them.
        assert coverage.of_welch(draw, n, SIMS).held >= 0.94 - ERROR


@pytest.mark.parametrize("draw", coverage.DRAWS.values(), ids=coverage.DRAWS)
@pytest.mark.parametrize("statistic", [np.median, interquartile_mean])
def test_bootstrap_holds_or_says_that_it_cannot(draw, statistic):
    for n in coverage.SIZES:
        found = coverage.of_bootstrap(statistic, draw, n, 300)
        if n < 6:
            assert found.none == 1
        else:
            assert found.held >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 300)


@pytest.mark.parametrize("draw", [coverage.normal, coverage.discrete])
def test_stratified_holds_from_three_seeds_on(draw):
    for n in coverage.SIZES:
        assert coverage.of_stratified(draw, n, 300).held >= 0.95 - 3 * math.sqrt(0.0475 / 300)


def test_proportions_never_hold_less_than_they_say():
    for n in coverage.SIZES:
        for p in np.linspace(0.01, 0.99, 25):
            assert coverage.proportion_coverage(float(p), n) >= 0.95


@pytest.mark.parametrize("n", [10, 20])
def test_kaplan_meier(n: int):
    # Asymptotic: a point of the level is allowed them at ten runs.
    assert coverage.of_kaplan_meier(n, SIMS).held >= 0.94 - ERROR


def test_the_simulation_sees_an_interval_that_is_too_narrow():
    # Skewed values with few seeds: the known weakness, and it lies on one side.
    found = coverage.of_mean(coverage.lognormal, 5, SIMS)
    assert found.held < 0.9 and found.below > 5 * found.above


@pytest.mark.parametrize(
    ("kind", "measured"),
    [
        (coverage.of_mean, (0.838, 0.835, 0.851, 0.865)),
        (coverage.of_welch, (0.891, 0.878, 0.891, 0.902)),
        (coverage.of_stratified, (0.908, 0.950, 0.950, 0.948)),
    ],
)
def test_very_skewed_values_are_held_as_seldom_as_the_docs_say(kind, measured):
    # The docs' 2,000 simulations have another seed; three standard errors of both together.
    sims = 300
    for n, share in zip(coverage.SIZES, measured, strict=True):
        error = 3 * math.sqrt(share * (1 - share) * (1 / sims + 1 / 2000))
        assert kind(coverage.lognormal, n, sims, seed=7).held == pytest.approx(share, abs=error)


def test_logrank_rejects_too_often_with_few_runs_only():
    small, large = (coverage.size_of_logrank(n, SIMS) for n in (3, 20))
    assert large < 0.05 + 3 * math.sqrt(0.0475 / SIMS) + 0.01
    assert small < 0.13
