"""Exact earth mover's distance of samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ici.errors import InputError
from ici.measure import wasserstein1


def samples(n=200, d=4):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(n, d))
    return a.astype(np.float32), rng.gamma(2, size=(n, d)).astype(np.float32)


def test_a_moved_sample_moves_by_the_distance_and_a_scaled_one_by_its_spread():
    a, _ = samples()
    np.testing.assert_allclose(wasserstein1(a, a + 2), 2, rtol=1e-5)
    np.testing.assert_allclose(wasserstein1(a, 3 * a), 2 * np.abs(a).mean(0), rtol=1e-5)
    assert (wasserstein1(a, a) == 0).all()
    hand = wasserstein1(jnp.asarray([[0.0], [1.0], [3.0]]), jnp.asarray([[5.0], [6.0], [8.0]]))
    assert hand.tolist() == [5]


def test_agrees_with_scipy_in_float64():
    a, b = samples()
    expected = [stats.wasserstein_distance(p, q) for p, q in zip(a.T, b.T, strict=True)]
    np.testing.assert_allclose(jax.jit(wasserstein1)(a, b), expected, rtol=1e-5)
    shaped = wasserstein1(a.reshape(10, 20, 4), b.reshape(20, 10, 4))
    np.testing.assert_allclose(shaped, expected, rtol=1e-5)


def test_it_sees_what_two_moments_do_not():
    a = np.random.default_rng(1).normal(size=(2000, 1))
    b = np.sign(a) * a.std()
    b = (b - b.mean()) / b.std() * a.std() + a.mean()
    assert wasserstein1(a, b)[0] > 0.3


def test_order_symmetry_and_triangle():
    a, b = samples()
    rng = np.random.default_rng(2)
    turned = wasserstein1(a[rng.permutation(200)], b[rng.permutation(200)])
    np.testing.assert_array_equal(turned, wasserstein1(a, b))
    np.testing.assert_array_equal(wasserstein1(b, a), wasserstein1(a, b))
    np.testing.assert_array_equal(wasserstein1(a[:, ::-1], b[:, ::-1]), turned[::-1])
    c = a**3
    assert (wasserstein1(a, c) <= wasserstein1(a, b) + wasserstein1(b, c) + 1e-6).all()


def test_bad_input():
    a, b = samples()
    for wrong in (b[:-1], b[:, :2]):
        with pytest.raises(InputError, match="wanted as many of both"):
            wasserstein1(a, wrong)
    with pytest.raises(InputError, match="mask of shape"):
        wasserstein1(a, b, jnp.ones(3, bool))
