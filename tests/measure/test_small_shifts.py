"""One step moves a site by thousandths of a standard deviation: that must not be noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ici.measure import Moments, shift


def exact(a, b):
    """Shifts of two snapshots' stored values, in float64."""
    n_a, n_b = (np.asarray(m.count, np.float64)[..., None] for m in (a, b))
    s_a, s_b = (np.sqrt(np.asarray(m.m2, np.float64) / n) for m, n in ((a, n_a), (b, n_b)))
    d = np.asarray(b.mean, np.float64) - np.asarray(a.mean, np.float64)
    forward = np.log(s_b / s_a) + (s_a**2 + d**2) / (2 * s_b**2) - 0.5
    backward = np.log(s_a / s_b) + (s_b**2 + d**2) / (2 * s_a**2) - 0.5
    return {"kl": forward, "kl_symmetric": forward + backward, "scale_shift": np.log(s_b / s_a)}


def snapshots(size, n=500, features=200):
    rng = np.random.default_rng(0)
    a = rng.normal(1, 2, size=(n, features)).astype(np.float32)
    scale, offset = 1 + size * rng.normal(size=features), size * rng.normal(size=features)
    b = (a * scale + offset).astype(np.float32)
    return Moments.of(jnp.asarray(a)), Moments.of(jnp.asarray(b))


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2, 0.1, 1.0])
def test_divergence_agrees_with_float64_from_the_smallest_shifts_up(size):
    a, b = snapshots(size)
    got = shift(a, b)
    for name, expected in exact(a, b).items():
        # Standard deviations are rounded roots, so r = ln(σ_b/σ_a) is known to about 2e-7, and a
        # divergence, about r², to 2r times that; features shift by up to 3.5 · size.
        slack = 4e-7 if name == "scale_shift" else 1.5e-6 * size
        np.testing.assert_allclose(getattr(got, name), expected, rtol=3e-5, atol=slack)


def test_divergence_is_never_negative_and_zero_only_without_a_shift():
    for size in (0.0, 1e-6, 1e-5, 1e-4, 1e-3):
        s = shift(*snapshots(size))
        assert (s.kl >= 0).all() and (s.kl_symmetric >= s.kl).all()
        assert ((s.kl == 0) <= (size <= 1e-6)).all()


def test_divergence_of_large_shifts():
    one = jnp.ones(1)
    a = Moments(jnp.float32(1), jnp.zeros(1), one)
    for ratio in (1e-3, 0.05, 0.9, 1.1, 20.0, 1e3):
        b = Moments(jnp.float32(1), jnp.full(1, 5.0), one * ratio**2)
        got, expected = shift(a, b), exact(a, b)
        for name in expected:
            np.testing.assert_allclose(getattr(got, name), expected[name], rtol=1e-5)


def test_symmetric_divergence_is_symmetric():
    a, b = snapshots(0.3)
    forth, back = shift(a, b), shift(b, a)
    np.testing.assert_allclose(forth.kl_symmetric, back.kl_symmetric, rtol=1e-5)
    np.testing.assert_allclose(forth.kl_symmetric, forth.kl + back.kl, rtol=1e-5)
    assert (jnp.abs(forth.kl - back.kl) > 0).any()


def test_a_feature_that_is_not_finite_shows_in_every_summary():
    a, b = snapshots(0.1, features=50)
    broken = Moments(b.count, b.mean.at[7].set(jnp.nan), b.m2)
    summary = shift(a, broken).aggregate()
    assert summary["dead_features"] == 0
    for name, value in summary.items():
        assert np.isnan(value) == name.startswith(("mean_shift", "w2", "kl")), name


def test_summaries_of_a_series_are_those_of_its_steps():
    steps = [snapshots(size)[1] for size in (1e-3, 1e-2, 0.1)]
    first = snapshots(0.0)[0]
    series = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)
    together = shift(jax.tree.map(lambda a: a[None], first), series).aggregate()
    for i, step in enumerate(steps):
        s = shift(first, step)
        for name, value in s.aggregate().items():
            np.testing.assert_allclose(together[name][i], value, rtol=1e-5, err_msg=name)
        for name in ("mean_shift", "scale_shift", "w2", "w2_relative", "kl", "kl_symmetric"):
            values = np.asarray(getattr(s, name), np.float64)
            mean = np.sqrt((values**2).mean()) if name.endswith("shift") else values.mean()
            np.testing.assert_allclose(together[name][i], mean, rtol=1e-4)
            for p in (50, 95):
                expected = np.percentile(np.abs(values), p)
                np.testing.assert_allclose(together[f"{name}_p{p}"][i], expected, rtol=1e-4)
