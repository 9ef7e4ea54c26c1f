"""Percentiles: exact in one pass, within the stated rank error after merging."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import cut, merged_in_any_order

from ici.errors import InputError
from ici.measure import Percentiles


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_one_pass_is_numpys_percentile(n):
    x = np.random.default_rng(0).normal(5, 2, size=(n, 4)).astype(np.float32)
    labelled = jax.jit(Percentiles.of)(x).labelled()
    assert list(labelled) == ["percentile_15", "percentile_50", "percentile_85"]
    for level in (15, 50, 85):
        expected = np.percentile(x.astype(np.float64), level, axis=0)
        # The position is a float32: part of the way between neighbours to n · 6e-8.
        np.testing.assert_allclose(labelled[f"percentile_{level}"], expected, rtol=1e-6)


def test_closed_form_of_equally_spaced_values():
    x = jnp.asarray(np.random.default_rng(1).permutation(201)[:, None] - 100.0)
    labelled = Percentiles.levels(0, 2.5, 50, 100).of(x).labelled()
    assert {name: float(value[0]) for name, value in labelled.items()} == {
        "percentile_0": -100,
        "percentile_2.5": -95,
        "percentile_50": 0,
        "percentile_100": 100,
    }


@pytest.mark.slow
def test_chosen_units_leave_the_others_blank():
    x = np.random.default_rng(2).normal(size=(50, 6)).astype(np.float32)
    kind = Percentiles.levels(units=(4, 1))
    whole = Percentiles.of(x).labelled()
    parts = kind.of(x[:25]).merge(kind.of(x[25:]))
    assert parts.grid.shape[-1] == 2
    for name, value in kind.of(x).labelled().items():
        assert np.isnan(value[jnp.asarray([0, 2, 3, 5])]).all() and value.shape == (6,)
        np.testing.assert_array_equal(value[jnp.asarray([1, 4])], whole[name][jnp.asarray([1, 4])])
        assert np.isnan(parts.labelled()[name]).sum() == 4


def rank_error(value, x, level):
    """How far `value` is from being a `level` per cent quantile of `x`, in parts of its size."""
    below, up_to = np.mean(x < value), np.mean(x <= value)
    return max(below - level / 100, level / 100 - up_to, 0.0)


@pytest.mark.slow
@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.sampled_from(["normal", "ties", "integers", "apart"]),
    st.integers(0, 1000),
    st.randoms(),
)
def test_any_merge_tree_keeps_the_stated_rank_error(sizes, case, seed, random):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(sum(sizes), 2)).astype(np.float32)
    if case == "ties":  # as after a ReLU
        x = np.maximum(x, 0)
    elif case == "integers":
        x = np.round(x)
    elif case == "apart":
        x += 10 * np.repeat(np.arange(len(sizes)), sizes)[:, None].astype(np.float32)
    whole, depth = merged_in_any_order([Percentiles.of(p) for p in cut(x, sizes)], random)
    assert whole.count == len(x)
    for level in whole.at:
        for value, column in zip(whole.labelled()[f"percentile_{level:g}"], x.T, strict=True):
            assert column.min() <= value <= column.max()
            bound = 0.01 * depth + len(sizes) / len(x) * (depth > 0)
            # The exact percentile lies between two ranks, and a computed one a rounding beside.
            between = 1 / len(x) + 1e-5
            slack = 1e-5 * np.abs(column).max()
            assert (
                min(rank_error(v, column, level) for v in (value - slack, value, value + slack))
                <= bound + between
            )


def test_merging_equal_samples_changes_nothing():
    p = Percentiles.of(np.random.default_rng(3).normal(size=(500, 3)).astype(np.float32))
    # Both ends of every grid interval are kept, so the mixture has the same grid.
    np.testing.assert_allclose(p.merge(p).grid, p.grid, rtol=1e-4, atol=1e-5)


def test_large_samples_merge_closely():
    x = np.random.default_rng(4).normal(size=(20_000, 2)).astype(np.float32)
    merged = Percentiles.of(x[:5000]).merge(Percentiles.of(x[5000:])).labelled()
    for name, value in Percentiles.of(x).labelled().items():
        # A hundredth in rank is 0.043 σ at the 15th percentile of a normal feature.
        np.testing.assert_allclose(merged[name], value, atol=0.01)


@pytest.mark.slow
def test_leading_axes_merge_elementwise():
    x = np.random.default_rng(5).normal(size=(3, 40, 2)).astype(np.float32)
    lanes = jax.vmap(Percentiles.of)(jnp.asarray(x))
    first = jax.tree.map(lambda leaf: leaf[0], lanes)
    merged = lanes.merge(first)
    assert merged.labelled()["percentile_50"].shape == (3, 2)
    alone = jax.tree.map(lambda leaf: leaf[1], lanes).merge(first)
    np.testing.assert_allclose(merged.grid[1], alone.grid, rtol=1e-6)


def test_a_unit_that_is_not_finite_has_no_percentile():
    x = np.random.default_rng(6).normal(size=(30, 2)).astype(np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        x[3, 0] = bad
        for p in (Percentiles.of(x), Percentiles.of(x[:9]).merge(Percentiles.of(x[9:]))):
            assert np.isnan(p.labelled()["percentile_50"]).tolist() == [True, False]


def test_bad_input():
    with pytest.raises(InputError, match=r"levels \(-1.0,\): wanted different numbers from 0"):
        Percentiles.levels(-1)
    with pytest.raises(InputError, match=r"levels \(50.0, 50.0\)"):
        Percentiles.levels(50, 50)
    for units in ((), (-1,), (2, 2)):
        with pytest.raises(InputError, match="units"):
            Percentiles.levels(units=units)
    x = jnp.ones((5, 3))
    with pytest.raises(InputError, match="unit 3 at a site of 3 features"):
        Percentiles.levels(units=(0, 3)).of(x)
    with pytest.raises(InputError, match="wanted the same levels"):
        Percentiles.of(x).merge(Percentiles.levels(10).of(x))
    assert hash(Percentiles.levels(10)) == hash(Percentiles.levels(10))
