"""What must not matter does not: order of examples and features, and the scale of a site."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ici.measure import (
    DeadUnits,
    EffectiveRank,
    Extremes,
    HigherMoments,
    Moments,
    Percentiles,
    SplitMoments,
    shift,
    statistic,
    statistic_names,
)

POOLED = [Moments, Extremes, HigherMoments, Percentiles, DeadUnits, EffectiveRank]
SHAPE = (16, 3, 5)

seeds = st.integers(0, 10_000)


def values(seed):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=SHAPE) * rng.uniform(0.5, 2, 5) + rng.normal(size=5)).astype(np.float32)


def close(got, expected):
    for name, value in expected.items():
        # The same numbers summed in another order: a few roundings, times z⁴ for the kurtosis.
        np.testing.assert_allclose(got[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


# Statistics of blocks are taken of norms of gradients and weights, not of values at a site.
OF_SITES = [n for n in statistic_names() if getattr(statistic(n), "where", "input") != "block"]


@pytest.mark.parametrize("kind", POOLED, ids=lambda k: k.__name__)
@settings(max_examples=10)
@given(seed=seeds)
def test_permuting_examples_changes_nothing(kind, seed):
    x = values(seed)
    order = np.random.default_rng(seed).permutation(SHAPE[0])
    close(kind.of(x[order]).labelled(), kind.of(x).labelled())


@pytest.mark.parametrize("kind", [*POOLED, SplitMoments], ids=lambda k: k.__name__)
@settings(max_examples=10)
@given(seed=seeds)
def test_permuting_features_permutes_them(kind, seed):
    x = values(seed)
    order = np.random.default_rng(seed).permutation(SHAPE[-1])
    expected = {
        name: value[order] if value.ndim else value for name, value in kind.of(x).labelled().items()
    }
    close(kind.of(x[..., order]).labelled(), expected)


@settings(max_examples=20)
@given(seed=seeds, factor=st.sampled_from([0.01, 0.5, 2.0, 100.0]))
def test_scaling_a_site_scales_its_std_and_leaves_its_shifts_alone(seed, factor):
    a, b = values(seed), values(seed + 1)
    small, large = (
        [Moments.of(x * np.float32(f)) for x in (a, b)] for f in (1, np.float32(factor))
    )
    np.testing.assert_allclose(large[0].std, small[0].std * factor, rtol=1e-5)
    one, other = shift(*small), shift(*large)
    for name in ("mean_shift", "scale_shift", "w2_relative", "kl", "kl_symmetric"):
        np.testing.assert_allclose(
            getattr(other, name), getattr(one, name), rtol=1e-3, atol=1e-5, err_msg=name
        )
    np.testing.assert_allclose(other.w2, one.w2 * factor, rtol=1e-4, atol=1e-6 * factor)
    close(HigherMoments.of(a * np.float32(factor)).labelled(), HigherMoments.of(a).labelled())
    close(EffectiveRank.of(a * np.float32(factor)).labelled(), EffectiveRank.of(a).labelled())


@settings(max_examples=10)
@given(seed=seeds)
def test_moving_a_site_moves_its_mean_alone(seed):
    x = values(seed)
    moved = Moments.of(x + np.float32(8))
    np.testing.assert_allclose(moved.mean, Moments.of(x).mean + 8, rtol=1e-6)
    np.testing.assert_allclose(moved.std, Moments.of(x).std, rtol=1e-5)


@pytest.mark.parametrize("name", OF_SITES)
def test_every_statistic_runs_in_lanes_and_says_what_it_costs(name):
    kind = statistic(name)
    assert kind.name == name and kind.cost in ("step", "reference")
    assert kind.where in ("input", "attention", "output")
    assert kind.cost == kind.__doc__.split("Cost:")[1].split(":")[0].strip()
    rng = np.random.default_rng(0)
    lanes = jnp.asarray(rng.normal(size=(2, 8, 4, 3, 5)), jnp.float32)

    def labelled(x):
        reading = kind.of(x, x) if kind.where == "attention" else kind.of(x)
        return reading.labelled()

    mapped = jax.jit(lambda x: jax.lax.map(labelled, x))(lanes)
    together = jax.jit(jax.vmap(labelled))(lanes)
    for variable, value in mapped.items():
        assert value.shape in ((2,), (2, 5), (2, 3)) and value.dtype == jnp.float32
        np.testing.assert_allclose(value, together[variable], rtol=1e-4, atol=1e-5)
        assert np.isfinite(value).all()
    # Half of the values change nothing about the size of what leaves the program.
    halved = jax.eval_shape(labelled, lanes[0, :8, :2])
    whole = jax.eval_shape(labelled, lanes[0])
    if kind.where != "attention":
        assert jax.tree.map(jnp.shape, halved) == jax.tree.map(jnp.shape, whole)


@pytest.mark.parametrize("name", [n for n in OF_SITES if n != "attention"])
def test_low_precision_is_measured_in_float32_and_no_gradient_flows(name):
    kind = statistic(name)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 4)), jnp.bfloat16)
    whole = kind.of(x.astype(jnp.float32)).labelled()
    for variable, value in kind.of(x).labelled().items():
        np.testing.assert_array_equal(value, whole[variable])

    def total(x):
        return sum(jnp.nansum(value) for value in kind.of(x).labelled().values())

    assert (jax.grad(total)(x.astype(jnp.float32)) == 0).all()
