"""Moments against closed forms and float64, in every order and grouping."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ici.errors import InputError
from ici.measure import Extremes, Moments, register_statistic, statistic
from ici.probe import Probe


def reference(x):
    x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    return x.mean(axis=0), x.std(axis=0)


@pytest.mark.parametrize("mean", [0.0, 1.0, -30.0, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("n", [1, 7, 8, 128, 5000])
def test_agrees_with_float64_however_large_the_mean(mean, n):
    x = (mean + np.random.default_rng(0).normal(size=(n, 5))).astype(np.float32)
    moments = Moments.of(jnp.asarray(x))
    expected_mean, expected_std = reference(x)
    # One rounding of the mean itself, and std to 1e-5: sums of n shifted values of order 1.
    np.testing.assert_allclose(moments.mean, expected_mean, rtol=2e-7, atol=1e-6)
    np.testing.assert_allclose(moments.std, expected_std, rtol=1e-5, atol=1e-6)
    assert moments.count == n


def test_mean_1e4_std_1_would_cancel_in_the_naive_formula():
    x = (1e4 + np.random.default_rng(1).normal(size=(4096, 1))).astype(np.float32)
    naive = float(jnp.mean(jnp.square(x)) - jnp.square(jnp.mean(x)))
    assert abs(naive - x.astype(np.float64).var()) > 0.1
    np.testing.assert_allclose(Moments.of(jnp.asarray(x)).std, reference(x)[1], rtol=1e-5)


@pytest.mark.parametrize("case", ["sorted", "outlier in the pilot", "outlier outside it"])
def test_order_of_the_rows_does_not_matter(case):
    x = np.random.default_rng(2).normal(size=(4096, 3)).astype(np.float32)
    if case == "sorted":
        x = np.sort(x, axis=0)
    else:
        x[0 if case == "outlier in the pilot" else -1] = 1e6
    # The pilot mean lies within sqrt(8) std of the mean: nine times the rounding of a sum.
    np.testing.assert_allclose(Moments.of(jnp.asarray(x)).std, reference(x)[1], rtol=2e-5)


def test_constant_features():
    x = jnp.stack([jnp.zeros(100), jnp.full(100, 0.1), jnp.full(100, -1e4)], axis=1)
    moments = Moments.of(x)
    assert moments.std[0] == 0 and moments.mean[0] == 0
    assert (moments.std <= 1e-6 * jnp.abs(moments.mean)).all()


def test_all_axes_but_the_last_are_pooled():
    x = np.random.default_rng(3).normal(size=(4, 5, 6, 7)).astype(np.float32)
    pooled, flat = Moments.of(jnp.asarray(x)), Moments.of(jnp.asarray(x.reshape(-1, 7)))
    jax.tree.map(np.testing.assert_array_equal, pooled, flat)
    assert pooled.count == 120


def test_vector_is_one_feature():
    x = jnp.arange(4.0)
    moments = Moments.of(x)
    assert moments.mean.shape == (1,) and moments.mean[0] == 1.5
    np.testing.assert_allclose(moments.variance, 1.25)


def test_low_precision_input_is_measured_in_float32():
    x = jnp.asarray(np.random.default_rng(4).normal(size=(1000, 2)), jnp.bfloat16)
    moments = Moments.of(x)
    assert moments.mean.dtype == moments.m2.dtype == jnp.float32
    np.testing.assert_allclose(moments.std, reference(np.asarray(x, np.float32))[1], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_its_feature_alone(bad):
    x = np.ones((10, 2), np.float32)
    x[3, 0] = bad
    moments = Moments.of(jnp.asarray(x))
    assert not np.isfinite(moments.std[0]) and moments.std[1] == 0


@pytest.mark.parametrize("size", [1e15, 1e18, 1e20, 1e37])
def test_deviations_too_large_to_square_are_infinite_rather_than_no_number(size):
    x = (size * np.random.default_rng(7).uniform(-1, 1, size=(64, 2))).astype(np.float32)
    x[:, 1] /= size
    for moments in (Moments.of(x), Moments.of(x[:20]).merge(Moments.of(x[20:]))):
        # 64 squares of up to size² stay below float32's 3.4e38 for sizes up to 1e18.
        if size <= 1e18:
            np.testing.assert_allclose(moments.std, reference(x)[1], rtol=1e-5)
        else:
            assert np.isposinf(moments.std[0])
        np.testing.assert_allclose(moments.std[1], reference(x)[1][1], rtol=1e-5)
        np.testing.assert_allclose(moments.mean, reference(x)[0], rtol=1e-4)


def test_large_values_that_lie_close_together_are_no_trouble():
    x = np.float32(1e25) * (1 + 1e-4 * np.random.default_rng(8).normal(size=(64, 2)))
    # Only deviations are squared: 1e21 here, too large; 1e15 below, not.
    assert np.isposinf(Moments.of(x.astype(np.float32)).std).all()
    x = (x / 1e6).astype(np.float32)
    np.testing.assert_allclose(Moments.of(x).std, reference(x)[1], rtol=1e-4)


def test_no_gradient_flows():
    grad = jax.grad(lambda x: Moments.of(x).std.sum() + Moments.of(x).mean.sum())(jnp.ones((3, 2)))
    assert (grad == 0).all()


parts = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(parts, st.sampled_from([0.0, 1e2, 1e4]), st.integers(0, 1000), st.randoms())
def test_any_merge_tree_equals_one_pass(sizes, mean, seed, random):
    x = (mean + np.random.default_rng(seed).normal(size=(sum(sizes), 3))).astype(np.float32)
    leaves = [Moments.of(jnp.asarray(p)) for p in np.split(x, np.cumsum(sizes)[:-1])]
    while len(leaves) > 1:
        a = leaves.pop(random.randrange(len(leaves)))
        b = leaves.pop(random.randrange(len(leaves)))
        leaves.insert(random.randrange(len(leaves) + 1), a.merge(b))
    expected_mean, expected_std = reference(x)
    # A merge rounds the means once; their differences carry that error: mean · 6e-8 per level.
    np.testing.assert_allclose(leaves[0].mean, expected_mean, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(
        leaves[0].std, expected_std, rtol=1e-4, atol=1e-2 * (mean > 1e3) + 1e-5
    )
    assert leaves[0].count == sum(sizes)


def test_merging_with_nothing_changes_nothing():
    a = Moments.of(jnp.asarray(np.random.default_rng(5).normal(size=(9, 4)), jnp.float32))
    for merged in (a.merge(Moments.empty(4)), Moments.empty(4).merge(a)):
        jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-6), merged, a)
    both = Moments.empty(4).merge(Moments.empty(4))
    assert both.count == 0 and np.isnan(both.mean).all() and np.isnan(both.std).all()


def test_leading_axes_merge_elementwise():
    x = np.random.default_rng(6).normal(size=(3, 20, 2)).astype(np.float32)
    lanes = jax.vmap(Moments.of)(jnp.asarray(x))
    merged = lanes.merge(lanes)
    assert merged.count.shape == (3,) and merged.std.shape == (3, 2)
    np.testing.assert_allclose(merged.std, lanes.std, rtol=1e-6)


def test_extremes():
    x = np.array([[1.0, np.nan], [-5.0, 2.0], [3.0, np.inf]], np.float32)
    extremes = Extremes.of(jnp.asarray(x))
    assert extremes.minimum.tolist() == [-5, 2] and extremes.maximum.tolist() == [3, 2]
    assert extremes.max_abs.tolist() == [5, 2]
    np.testing.assert_allclose(extremes.nonfinite_fraction, [0, 2 / 3])
    nothing_finite = Extremes.of(jnp.full((3, 1), jnp.nan)).labelled()
    assert np.isnan(nothing_finite["minimum"]) and nothing_finite["nonfinite_fraction"] == 1
    halves = Extremes.of(jnp.asarray(x[:1])).merge(Extremes.of(jnp.asarray(x[1:])))
    jax.tree.map(np.testing.assert_array_equal, halves, extremes)


def test_a_users_statistic_in_a_dozen_lines():
    from dataclasses import dataclass

    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Positive:
        n: jax.Array

        @classmethod
        def of(cls, x):
            return cls(jnp.sum(x > 0, axis=tuple(range(x.ndim - 1)), dtype=jnp.float32))

        def merge(self, other):
            return Positive(self.n + other.n)

        def labelled(self):
            return {"positive": self.n}

    register_statistic("positive", Positive)
    assert Probe(stats=("moments", "positive")).stats == ("moments", "positive")
    reading = statistic("positive").of(jnp.asarray([[1.0, -1.0], [2.0, 0.0]]))
    assert reading.labelled()["positive"].tolist() == [2, 0]
    with pytest.raises(InputError, match="unknown statistic 'momnts'.*'moments'"):
        statistic("momnts")
    with pytest.raises(InputError, match="statistic 'three' is 3: wanted a class with of"):
        register_statistic("three", 3)
