from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ici.analysis.statistics import holm, paired_effect, seeds_needed, unpaired_effect
from ici.analysis.statistics.effects import noncentral_t_cdf
from ici.errors import InputError

A = [0.31, 0.28, 0.44, 0.30, 0.37]
B = [0.25, 0.27, 0.30, 0.29, 0.28]


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 30])
@pytest.mark.parametrize("centre", [-3.0, 0.0, 1.0, 8.0])
def test_noncentral_t_against_scipy(freedom: int, centre: float):
    for value in (-2.0, 0.0, 1.0, 4.0, 20.0):
        expected = stats.nct.cdf(value, freedom, centre)
        if math.isnan(expected):
            continue
        # 4096 quantiles of the spread leave about 1e-5.
        assert noncentral_t_cdf(value, freedom, centre) == pytest.approx(expected, abs=2e-5)


def test_paired_effect_is_students_test_of_the_differences():
    effect = paired_effect(A, B)
    expected = stats.ttest_rel(B, A)
    interval = expected.confidence_interval(0.95)
    assert effect.p_value == pytest.approx(expected.pvalue)
    assert effect.difference.estimate == pytest.approx(np.mean(B) - np.mean(A))
    assert (effect.difference.low, effect.difference.high) == pytest.approx(
        (interval.low, interval.high)
    )
    assert effect.paired and effect.n == 5


def test_swapping_the_sides_turns_the_sign():
    for compare in (paired_effect, unpaired_effect):
        there, back = compare(A, B), compare(B, A)
        assert there.p_value == pytest.approx(back.p_value)
        for one, other in (
            (there.difference, back.difference),
            (there.standardised, back.standardised),
        ):
            assert (one.estimate, one.low, one.high) == pytest.approx(
                (-other.estimate, -other.high, -other.low), abs=1e-5
            )


def test_pairing_takes_out_what_the_seed_does():
    seed_effect = 100 * np.arange(5)
    paired = paired_effect(np.add(A, seed_effect), np.add(B, seed_effect))
    assert paired.p_value == pytest.approx(paired_effect(A, B).p_value)
    assert unpaired_effect(np.add(A, seed_effect), np.add(B, seed_effect)).p_value > 0.9


def test_welch():
    a, b = [1.0, 2.0, 3.0, 2.5], [4.0, 9.0, 1.0, 7.0, 6.0, 2.0]
    effect, expected = unpaired_effect(a, b), stats.ttest_ind(b, a, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert effect.p_value == pytest.approx(expected.pvalue)
    assert (effect.difference.low, effect.difference.high) == pytest.approx(
        (interval.low, interval.high)
    )
    assert not effect.paired and effect.n == 4


def test_standardised_interval_inverts_the_noncentral_t():
    effect = paired_effect(A, B).standardised
    differences = np.subtract(B, A)
    t = differences.mean() / differences.std(ddof=1) * math.sqrt(5)
    # Hedges: Γ(ν/2) / (√(ν/2) Γ((ν−1)/2)) at ν = 4.
    factor = math.gamma(2) / (math.sqrt(2) * math.gamma(1.5))
    assert effect.estimate == pytest.approx(factor * t / math.sqrt(5))
    for bound, share in ((effect.low, 0.975), (effect.high, 0.025)):
        assert stats.nct.cdf(t, 4, bound * math.sqrt(5)) == pytest.approx(share, abs=2e-5)


def test_hedges_takes_the_bias_out():
    rng = np.random.default_rng(0)
    found = [
        paired_effect(np.zeros(5), rng.normal(1.0, 1.0, 5)).standardised.estimate
        for _ in range(400)
    ]
    # The plain ratio has mean 1.25 here; the standard error of this one is 0.04.
    assert np.mean(found) == pytest.approx(1.0, abs=0.12)


def test_one_seed():
    for effect in (paired_effect([1.0], [2.0]), unpaired_effect([1.0], [2.0, 3.0])):
        assert effect.n == 1 and math.isnan(effect.p_value)
        assert not effect.difference.exists and not effect.standardised.exists
        assert effect.difference.estimate > 0


def test_two_seeds_have_an_interval_but_no_standardised_effect():
    effect = paired_effect([1.0, 2.0], [2.0, 3.5])
    assert effect.difference.exists and not effect.standardised.exists


@pytest.mark.parametrize("n", [2, 3, 5])
def test_equal_differences_are_no_certainty(n: int):
    # Steps to a target looked for at every fiftieth step: all seeds gain exactly one evaluation.
    a = np.full(n, 300.0) + 50 * np.arange(n)
    effect = paired_effect(a, a - 50)
    assert effect.p_value == 2.0 ** (1 - n) == stats.binomtest(n, n).pvalue
    assert effect.difference.estimate == -50 and not effect.difference.exists
    assert "no spread" in effect.difference.method


def test_rounding_is_no_spread():
    # Accuracies of 1,066 examples in float32: ten more are right for every seed.
    right = np.array([690, 700, 713], np.float32)
    effect = paired_effect(right / np.float32(1066), (right + 10) / np.float32(1066))
    assert effect.p_value == 0.25
    effect = unpaired_effect([0.1 + 0.2] * 3, [0.4, 0.4, 0.3 + 0.1])
    assert effect.p_value == 2 / math.comb(6, 3) and not effect.difference.exists


def test_equal_runs_have_nothing_to_test():
    for compare in (paired_effect, unpaired_effect):
        assert math.isnan(compare([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]).p_value)
    assert math.isnan(paired_effect(A, A).p_value)


def test_a_spread_on_one_side_only_is_enough():
    effect = unpaired_effect([600.0] * 3, [300.0, 350.0, 320.0])
    expected = stats.ttest_1samp([300.0, 350.0, 320.0], 600.0)
    assert effect.p_value == pytest.approx(expected.pvalue)


def test_refusals():
    with pytest.raises(InputError, match="same seeds"):
        paired_effect([1.0, 2.0], [1.0])
    for compare in (paired_effect, unpaired_effect):
        with pytest.raises(InputError, match="not finite"):
            compare([1.0, np.nan], [1.0, 2.0])
        with pytest.raises(InputError, match="level"):
            compare(A, B, level=2.0)


def test_holm_by_hand():
    # 4 × .01, then at least that: 3 × .02, 2 × .03, 1 × .5.
    np.testing.assert_allclose(holm([0.03, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])
    np.testing.assert_allclose(holm([]), [])


def test_holm_does_not_count_what_was_not_tested():
    np.testing.assert_allclose(holm([np.nan, 0.02, np.nan, 0.01]), [np.nan, 0.02, np.nan, 0.02])


@pytest.mark.parametrize("shared_noise", [0.0, 1.0])
@pytest.mark.parametrize("n_true", [0, 3])
def test_holm_keeps_the_chance_of_any_error(shared_noise: float, n_true: int):
    rng = np.random.default_rng(0)
    sims, tests, n = 2000, 8, 5
    values = rng.normal(size=(sims, tests, n)) + shared_noise * rng.normal(size=(sims, 1, n))
    values[:, :n_true] += 3.0
    p_values = stats.ttest_1samp(values, 0.0, axis=-1).pvalue
    errors = np.mean([(holm(p)[n_true:] <= 0.05).any() for p in p_values])
    # Three standard errors above the 5 % allowed; without a correction it is 34 %.
    assert errors <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / sims)
    if not shared_noise:
        assert np.mean((p_values[:, n_true:] <= 0.05).any(axis=1)) > 0.15


@pytest.mark.parametrize("effect", [0.8, 1.5, 3.0])
@pytest.mark.parametrize("paired", [True, False])
def test_seeds_needed_by_simulation(effect: float, paired: bool):
    n = int(seeds_needed(effect, paired=paired))
    rng, sims = np.random.default_rng(0), 20_000

    def power(n: int) -> float:
        if paired:
            p = stats.ttest_1samp(rng.normal(effect, 1.0, (sims, n)), 0.0, axis=-1).pvalue
        else:
            a, b = rng.normal(0.0, 1.0, (sims, n)), rng.normal(effect, 1.0, (sims, n))
            p = stats.ttest_ind(a, b, axis=-1).pvalue
        return float(np.mean(p <= 0.05))

    # Four standard errors of a share near 0.8.
    error = 4 * math.sqrt(0.8 * 0.2 / sims)
    assert power(n) >= 0.8 - error
    if n > 2:
        assert power(n - 1) < 0.8 + error


def test_seeds_needed_at_the_ends():
    # Cohen's tables: d = 0.5, two-sided 5 %, power 80 %: 64 in each of two groups, 34 pairs.
    assert seeds_needed(0.5, paired=False) == 64
    assert seeds_needed(0.5) == seeds_needed(-0.5) == 34
    assert seeds_needed(0.5, level=0.99) > seeds_needed(0.5)
    assert seeds_needed(0.5, power=0.9) > seeds_needed(0.5)
    assert seeds_needed(0.0) == seeds_needed(1e-4) == math.inf
    assert math.isnan(seeds_needed(math.nan))
