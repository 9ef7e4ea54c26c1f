"""Standard errors from groups of examples: definition, merging, degenerate batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import assert_same

from ici.errors import InputError
from ici.measure import Moments, SplitMoments


def by_hand(x, n_groups):
    """Standard errors of mean and ln std in float64, one group after another."""
    size = len(x) // n_groups
    x = x[: size * n_groups].astype(np.float64)
    groups = x.reshape(n_groups, -1, x.shape[-1])
    mean, variance = groups.mean((0, 1)), groups.var((0, 1))
    second = np.square(groups - mean).mean(1)
    return (
        groups.mean(1).std(0, ddof=1) / np.sqrt(n_groups),
        second.std(0, ddof=1) / np.sqrt(n_groups) / (2 * variance),
    )


@pytest.mark.parametrize("shape", [(16, 3), (19, 3), (24, 5, 3), (8, 2, 2, 3)])
@pytest.mark.parametrize("n_groups", [2, 8])
def test_batch_means(shape, n_groups):
    x = np.random.default_rng(0).normal(3, 2, size=shape).astype(np.float32)
    split = jax.jit(SplitMoments.into(n_groups).of)(x)
    labelled = split.labelled()
    expected = by_hand(x, n_groups)
    assert labelled["mean_standard_error"].shape == (3,)
    np.testing.assert_allclose(labelled["mean_standard_error"], expected[0], rtol=1e-4)
    np.testing.assert_allclose(labelled["log_std_standard_error"], expected[1], rtol=1e-4)
    used = x[: len(x) // n_groups * n_groups]
    assert_same(split.total, Moments.of(used), rtol=1e-5)


def test_halves_are_the_literal_split():
    x = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    half = np.abs(x[:20].mean(0) - x[20:].mean(0)) / 2
    np.testing.assert_allclose(SplitMoments.into(2).of(x).mean_standard_error, half, rtol=1e-4)


def test_positions_of_one_example_stay_together():
    """Positions that repeat one another say nothing new."""
    x = np.random.default_rng(2).normal(size=(32, 1, 3)).astype(np.float32)
    repeated = np.broadcast_to(x, (32, 10, 3))
    np.testing.assert_allclose(
        SplitMoments.of(repeated).mean_standard_error,
        SplitMoments.of(x).mean_standard_error,
        rtol=1e-5,
    )


def test_error_of_a_large_mean():
    x = (1e4 + np.random.default_rng(3).normal(size=(64, 3))).astype(np.float32)
    for got, expected in zip(SplitMoments.of(x).labelled().values(), by_hand(x, 8), strict=True):
        # Group means near 1e4 are rounded by 5e-4, beside a spread of 0.35.
        np.testing.assert_allclose(got, expected, rtol=5e-3)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.integers(0, 99))
def test_merging_joins_group_with_group(per_group, seed):
    """Parts of a batch merge to one pass over the batch with its groups brought together."""
    n_groups = 4
    x = np.random.default_rng(seed).normal(size=(n_groups * sum(per_group), 2, 3))
    parts = np.split(x.astype(np.float32), np.cumsum(per_group)[:-1] * n_groups)
    merged = SplitMoments.of(parts[0], n_groups=n_groups)
    for part in parts[1:]:
        merged = SplitMoments.of(part, n_groups=n_groups).merge(merged)
    together = np.concatenate([p.reshape(n_groups, -1, 2, 3) for p in parts], axis=1)
    whole = SplitMoments.of(together.reshape(-1, 2, 3), n_groups=n_groups)
    assert_same(merged, whole, rtol=1e-4, atol=1e-5)
    for name, value in merged.labelled().items():
        np.testing.assert_allclose(value, whole.labelled()[name], rtol=1e-3, atol=1e-5)


def test_scaling_scales_the_error_of_the_mean_alone():
    x = np.random.default_rng(4).normal(size=(32, 3)).astype(np.float32)
    one, four = SplitMoments.of(x), SplitMoments.of(4 * x)
    np.testing.assert_allclose(four.mean_standard_error, 4 * one.mean_standard_error, rtol=1e-5)
    np.testing.assert_allclose(four.log_std_standard_error, one.log_std_standard_error, rtol=1e-4)


def test_a_site_without_variance():
    split = SplitMoments.of(jnp.ones((16, 2)))
    assert split.mean_standard_error.tolist() == [0, 0]
    assert np.isnan(split.log_std_standard_error).all()


def test_under_lanes():
    x = jnp.asarray(np.random.default_rng(5).normal(size=(3, 16, 2)), jnp.float32)
    mapped = jax.lax.map(lambda x: SplitMoments.of(x).labelled(), x)
    assert_same(mapped, jax.vmap(SplitMoments.of)(x).labelled(), rtol=1e-4)


def test_bad_input():
    with pytest.raises(InputError, match="7 examples in 8 groups.*larger batch"):
        SplitMoments.of(jnp.ones((7, 100, 3)))
    with pytest.raises(InputError, match="1 examples in 8 groups"):
        SplitMoments.of(jnp.ones((1, 3)))
    with pytest.raises(InputError, match="into 1 groups: wanted at least 2"):
        SplitMoments.into(1)
    with pytest.raises(InputError, match="into 1 groups: wanted at least 2"):
        SplitMoments.of(jnp.ones((7, 3)), n_groups=1)
    with pytest.raises(InputError, match="merge of 8 groups with 2"):
        SplitMoments.of(jnp.ones((8, 3))).merge(SplitMoments.into(2).of(jnp.ones((8, 3))))
    assert SplitMoments.into(4) == SplitMoments.into(4) and SplitMoments.into(4).cost == "step"
