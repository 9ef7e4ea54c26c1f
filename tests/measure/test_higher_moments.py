"""Skewness and kurtosis against closed forms and float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from trees import cut, merged_in_any_order

from ici.measure import HigherMoments, statistic


def both(x):
    x = np.asarray(x, np.float64)
    return stats.skew(x, axis=0), stats.kurtosis(x, axis=0)


def test_two_values_with_odds():
    """P(x=1) = p: skewness (1−2p)/√(pq), excess kurtosis (1−6pq)/(pq)."""
    x = jnp.asarray(np.arange(100)[:, None] < np.array([10, 50, 80])[None], jnp.float32)
    p = np.array([0.1, 0.5, 0.8])
    moments = HigherMoments.of(x)
    q = p * (1 - p)
    np.testing.assert_allclose(moments.skewness, (1 - 2 * p) / np.sqrt(q), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.excess_kurtosis, (1 - 6 * q) / q, rtol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e4])
@pytest.mark.parametrize("n", [3, 64, 5000])
def test_agrees_with_float64_however_large_the_mean(mean, n):
    x = (mean + np.random.default_rng(0).gamma(2, size=(n, 5))).astype(np.float32)
    moments = jax.jit(HigherMoments.of)(x)
    for got, expected in zip((moments.skewness, moments.excess_kurtosis), both(x), strict=True):
        # Sums of n terms of order z⁴ ≲ 1e3, each with its rounding.
        np.testing.assert_allclose(got, expected, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_fourth_powers_never_leave_the_range(scale):
    x = np.random.default_rng(1).gamma(2, size=(200, 3))
    a, b = (HigherMoments.of(jnp.asarray(p * scale, jnp.float32)) for p in (x[:50], x[50:]))
    for moments in (HigherMoments.of(jnp.asarray(x * scale, jnp.float32)), a.merge(b)):
        np.testing.assert_allclose(moments.skewness, both(x)[0], rtol=1e-4)
        np.testing.assert_allclose(moments.excess_kurtosis, both(x)[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.sampled_from([0.0, 30.0]),
    st.integers(0, 1000),
    st.randoms(),
)
def test_any_merge_tree_equals_one_pass(sizes, mean, seed, random):
    x = (mean + np.random.default_rng(seed).gamma(2, size=(sum(sizes), 3))).astype(np.float32)
    x[: sizes[0]] += 5  # no part is like another
    whole, _ = merged_in_any_order([HigherMoments.of(p) for p in cut(x, sizes)], random)
    assert whole.count == len(x)
    np.testing.assert_allclose(whole.mean, x.astype(np.float64).mean(0), rtol=1e-6, atol=1e-6)
    if len(x) > 1:
        # Differences of means carry the rounding of the means (30 · 6e-8) at every level.
        np.testing.assert_allclose(whole.std, x.astype(np.float64).std(0), rtol=1e-4, atol=1e-5)
        for got, expected in zip((whole.skewness, whole.excess_kurtosis), both(x), strict=True):
            varies = x.std(0) > 0.05
            np.testing.assert_allclose(
                np.asarray(got)[varies], expected[varies], rtol=2e-3, atol=2e-3
            )


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e4])
def test_a_feature_that_does_not_vary_has_no_shape(constant):
    x = np.random.default_rng(2).normal(size=(100, 2)).astype(np.float32)
    x[:, 0] = constant
    for moments in (HigherMoments.of(x), HigherMoments.of(x[:9]).merge(HigherMoments.of(x[9:]))):
        for value in moments.labelled().values():
            assert np.isnan(value[0]) and np.isfinite(value[1])


def test_batch_of_one_and_values_that_are_not_finite():
    one = HigherMoments.of(jnp.ones((1, 2)))
    assert one.count == 1 and np.isnan(one.skewness).all()
    x = np.random.default_rng(3).normal(size=(50, 2)).astype(np.float32)
    x[7, 0] = np.inf
    broken = HigherMoments.of(x)
    assert np.isnan(broken.skewness[0]) and np.isfinite(broken.skewness[1])


def test_registered_by_name():
    kind = statistic("higher_moments")
    assert kind is HigherMoments and kind.cost == "step" and kind.where == "input"
