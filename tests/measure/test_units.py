"""Dead units and effective rank: closed forms, merging, degenerate sites."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import assert_same, cut, merged_in_any_order

from ici.measure import DeadUnits, EffectiveRank, effective_rank_shift, statistic


def in_float64(x):
    x = np.asarray(x, np.float64).reshape(-1, np.shape(x)[-1])
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    p = s[s > 0] / s.sum()
    return np.exp(-(p * np.log(p)).sum())


def test_dead_units_are_counted_over_the_batch_not_over_its_entries():
    x = jnp.asarray([[0.0, 1.0, -2.0, 0.0], [0.0, 0.0, -1.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    units = DeadUnits.of(x)
    assert units.dead.tolist() == [True, False, True, False]
    assert units.dead_fraction == 0.5  # not the 8/12 of entries that are not positive
    halves = DeadUnits.of(x[:1]).merge(DeadUnits.of(x[1:]))
    assert_same(halves, units)
    assert DeadUnits.of(x[:1]).dead_fraction == 0.75


def test_a_unit_that_is_not_a_number_is_not_dead():
    assert DeadUnits.of(jnp.asarray([[jnp.nan, 0.0]])).dead.tolist() == [False, True]


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99), st.randoms())
def test_any_tree_of_dead_units_is_exactly_one_pass(sizes, seed, random):
    x = np.random.default_rng(seed).normal(-2, 1, size=(sum(sizes), 8)).astype(np.float32)
    whole, _ = merged_in_any_order([DeadUnits.of(p) for p in cut(x, sizes)], random)
    assert_same(whole, DeadUnits.of(x))
    assert whole.dead_fraction == (x.max(0) <= 0).mean()


def orthogonal(n, d, seed=0):
    """Columns orthonormal and of mean zero."""
    x = np.random.default_rng(seed).normal(size=(n, d))
    return np.linalg.qr(x - x.mean(0))[0]


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_effective_rank_of_known_singular_values(mean):
    q = orthogonal(64, 6)
    equal = EffectiveRank.of(jnp.asarray(mean + 8 * q, jnp.float32))
    # Values of order 1 rounded at the size of the mean: 4e-6 of each singular value.
    np.testing.assert_allclose(equal.effective_rank, 6, rtol=1e-5)
    s = np.array([8.0, 4, 2, 1, 1, 0])
    p = s / s.sum()  # 1/2, 1/4, 1/8, 1/16, 1/16: entropy 15/8 ln 2
    assert np.isclose(-(p[:5] * np.log(p[:5])).sum(), 15 / 8 * np.log(2))
    unequal = EffectiveRank.of(jnp.asarray(mean + q * s, jnp.float32))
    np.testing.assert_allclose(unequal.effective_rank, 2 ** (15 / 8), rtol=1e-4)
    np.testing.assert_allclose(unequal.singular_values, s, atol=1e-4)
    difference = effective_rank_shift(equal, unequal)
    np.testing.assert_allclose(difference, 2 ** (15 / 8) - 6, rtol=1e-4)
    assert effective_rank_shift(equal, equal) == 0


def test_one_direction_has_rank_one():
    direction = np.random.default_rng(1).normal(size=(1, 5))
    x = np.random.default_rng(2).normal(size=(40, 1)) * direction
    # Products of float32 roundings (6e-8) are not quite on one line.
    rank = EffectiveRank.of(jnp.asarray(x, jnp.float32)).effective_rank
    np.testing.assert_allclose(rank, 1, atol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(200, 16), (16, 16), (5, 16), (300, 1)])
@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_agrees_with_float64(n, d, mean):
    scale = np.geomspace(1, 0.05, d)
    x = (mean + np.random.default_rng(3).normal(size=(n, d)) * scale).astype(np.float32)
    got = jax.jit(EffectiveRank.of)(x)
    assert got.factor.shape == (d, d)
    np.testing.assert_allclose(got.effective_rank, in_float64(x), rtol=2e-5)


@pytest.mark.slow
@settings(max_examples=20)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=5),
    st.sampled_from([0.0, 30.0]),
    st.integers(0, 999),
    st.randoms(),
)
def test_any_merge_tree_equals_one_pass(sizes, mean, seed, random):
    x = np.random.default_rng(seed).normal(size=(sum(sizes), 4)) * [3, 1, 1, 0.3]
    x = (mean + x + np.repeat(np.arange(len(sizes)), sizes)[:, None]).astype(np.float32)
    whole, _ = merged_in_any_order([EffectiveRank.of(p) for p in cut(x, sizes)], random)
    if len(x) > 4:
        # Means of 30 are rounded by 2e-6 per level, a singular value of 0.3·√N by as much of it.
        np.testing.assert_allclose(whole.effective_rank, in_float64(x), rtol=2e-4)
    assert whole.count == len(x)


def test_permuted_features_and_examples_have_the_same_rank():
    rng = np.random.default_rng(4)
    x = (rng.normal(size=(50, 6)) * [5, 3, 2, 1, 1, 0.1]).astype(np.float32)
    rank = EffectiveRank.of(x).effective_rank
    for other in (x[rng.permutation(50)], x[:, rng.permutation(6)], -7 * x):
        np.testing.assert_allclose(EffectiveRank.of(other).effective_rank, rank, rtol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e4])
def test_a_site_without_variance_has_rank_zero(constant):
    x = jnp.full((100, 4), constant)
    assert EffectiveRank.of(x).effective_rank == 0
    assert EffectiveRank.of(x[:30]).merge(EffectiveRank.of(x[30:])).effective_rank == 0
    assert EffectiveRank.of(x[:1]).effective_rank == 0  # a batch of one


def test_values_that_are_not_finite_have_no_rank():
    x = np.ones((10, 3), np.float32)
    for bad in (np.nan, np.inf):
        x[2, 1] = bad
        assert np.isnan(EffectiveRank.of(x).effective_rank)


def test_under_lanes_and_leading_axes():
    x = jnp.asarray(np.random.default_rng(5).normal(size=(3, 30, 4)), jnp.float32)
    mapped = jax.lax.map(EffectiveRank.of, x)
    lanes = jax.jit(jax.vmap(EffectiveRank.of))(x)
    assert lanes.effective_rank.shape == (3,)
    np.testing.assert_allclose(mapped.effective_rank, lanes.effective_rank, rtol=1e-6)
    first = jax.tree.map(lambda leaf: leaf[0], lanes)
    merged = lanes.merge(first)
    np.testing.assert_allclose(merged.effective_rank[0], first.effective_rank, rtol=1e-5)
    both = in_float64(np.concatenate([x[2], x[0]]))
    np.testing.assert_allclose(merged.effective_rank[2], both, rtol=1e-5)


def test_cost_classes():
    assert statistic("dead_units").cost == "step"
    assert statistic("effective_rank").cost == "reference"
