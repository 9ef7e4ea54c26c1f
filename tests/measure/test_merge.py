"""Parts of a sample, wherever they were measured, combine to the whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from ici.measure import Extremes, Moments, shift


def sample(n, seed=0, mean=0.0):
    return (mean + np.random.default_rng(seed).normal(size=(n, 3))).astype(np.float32)


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_eight_devices_merge_to_one_pass(mean):
    x = sample(8 * 40, mean=mean)
    x[:40] *= 3  # no shard is like another
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    shards = jax.jit(
        jax.shard_map(
            lambda part: jax.tree.map(lambda a: a[None], Moments.of(part)),
            mesh=mesh,
            in_specs=PartitionSpec("data"),
            out_specs=PartitionSpec("data"),
        )
    )(x)
    assert shards.count.shape == (8,) and shards.count.tolist() == [40] * 8
    merged = jax.tree.map(lambda a: a[0], shards)
    for i in range(1, 8):
        merged = merged.merge(jax.tree.map(lambda a, i=i: a[i], shards))
    x = x.astype(np.float64)
    # Means carry one float32 rounding each (6e-8 of the mean), and so do their differences.
    np.testing.assert_allclose(merged.mean, x.mean(0), rtol=2e-7, atol=1e-6)
    np.testing.assert_allclose(merged.std, x.std(0), rtol=1e-5)
    assert merged.count == 320


def test_a_sharded_batch_has_the_moments_of_the_whole():
    x = sample(8 * 40, mean=100)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(x, jax.NamedSharding(mesh, PartitionSpec("data")))
    moments = jax.jit(Moments.of)(spread)
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(0), rtol=2e-7)
    np.testing.assert_allclose(moments.std, x.astype(np.float64).std(0), rtol=1e-5)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 99), st.randoms())
def test_any_tree_of_extremes_is_exactly_one_pass(sizes, seed, random):
    x = sample(sum(sizes), seed)
    x[np.random.default_rng(seed).random(x.shape) < 0.2] = random.choice([np.nan, np.inf, -np.inf])
    leaves = [Extremes.of(jnp.asarray(p)) for p in np.split(x, np.cumsum(sizes)[:-1])]
    while len(leaves) > 1:
        a = leaves.pop(random.randrange(len(leaves)))
        b = leaves.pop(random.randrange(len(leaves)))
        leaves.append(a.merge(b))
    jax.tree.map(np.testing.assert_array_equal, leaves[0], Extremes.of(jnp.asarray(x)))
    finite = np.where(np.isfinite(x), x, np.nan)
    for feature in range(3):
        column = finite[:, feature][~np.isnan(finite[:, feature])]
        assert leaves[0].minimum[feature] == column.min(initial=np.inf)
        assert leaves[0].maximum[feature] == column.max(initial=-np.inf)
        assert leaves[0].nonfinite[feature] == len(x) - len(column)


def test_one_snapshot_against_a_series_of_them():
    series = jax.vmap(Moments.of)(jnp.asarray(sample(5 * 60).reshape(5, 60, 3)))
    first = jax.tree.map(lambda a: a[0], series)
    together = shift(first, series)
    for i in range(5):
        alone = shift(first, jax.tree.map(lambda a, i=i: a[i], series))
        for name in ("mean_shift", "scale_shift", "w2", "kl", "kl_symmetric"):
            np.testing.assert_allclose(
                getattr(together, name)[i], getattr(alone, name), rtol=1e-5, atol=1e-7
            )
    assert together.aggregate()["w2_p95"].shape == (5,)
    assert (together.mean_shift[0] == 0).all()
    merged = first.merge(series)
    np.testing.assert_allclose(merged.std[0], first.std, rtol=1e-6)
    assert merged.count.tolist() == [120] * 5


def test_unused_precision_is_not_asked_for():
    x = np.random.default_rng(0).normal(size=(100, 2))  # float64 on the host
    moments = Moments.of(x)
    assert moments.mean.dtype == moments.m2.dtype == moments.count.dtype == jnp.float32
    np.testing.assert_allclose(moments.std, x.std(0), rtol=1e-5)
    assert Extremes.of(jnp.asarray(x, jnp.bfloat16)).minimum.dtype == jnp.float32


@pytest.mark.parametrize("integers", [np.arange(12), np.arange(12) % 2 == 0])
def test_counts_and_flags_are_numbers(integers):
    x = integers.reshape(6, 2)
    np.testing.assert_allclose(Moments.of(jnp.asarray(x)).mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(Moments.of(jnp.asarray(x)).std, x.std(0), rtol=1e-6)
