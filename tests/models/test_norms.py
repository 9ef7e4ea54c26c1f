"""Norms against float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ici.adapt import from_nnx
from ici.errors import InputError
from ici.models.norms import make_norm, makes_bias_redundant, names, register

EPS = 1e-5


def reference(name, x):
    x = x.astype(np.float64)
    if name == "none":
        return x
    if name == "batch":
        return (x - x.mean(0)) / np.sqrt(x.var(0) + EPS)
    if name == "layer":
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPS)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)


def apply(name, x):
    model = from_nnx(lambda rngs: make_norm(name, x.shape[-1], rngs=rngs))
    out, state, _ = model.apply(model.init(jax.random.key(0)), jnp.asarray(x))
    return np.asarray(out), state


@pytest.mark.parametrize("name", ["none", "batch", "layer", "rms"])
@pytest.mark.parametrize(("mean", "std"), [(0, 1), (5, 0.1), (1e3, 1), (0, 1e-3)])
def test_forward(name, mean, std):
    x = (mean + std * np.random.default_rng(0).normal(size=(64, 16))).astype(np.float32)
    # x itself carries a rounding of mean · 6e-8, which division by std enlarges.
    atol = 1e-5 + 3e-7 * mean / std if name != "none" else 0
    np.testing.assert_allclose(apply(name, x)[0], reference(name, x), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", ["batch", "layer", "rms"])
def test_backward(name):
    x = np.random.default_rng(1).normal(1, 2, size=(6, 5))
    weights = np.random.default_rng(2).normal(size=x.shape)
    model = from_nnx(lambda rngs: make_norm(name, 5, rngs=rngs))
    variables = model.init(jax.random.key(0))

    def loss(x):
        return jnp.sum(model.apply(variables, x)[0] * jnp.asarray(weights, jnp.float32))

    grad = jax.grad(loss)(jnp.asarray(x, jnp.float32))
    h = 1e-5
    for index in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[index] = h
        up, down = ((reference(name, x + s) * weights).sum() for s in (step, -step))
        np.testing.assert_allclose(grad[index], (up - down) / (2 * h), atol=1e-5)


def test_normalised_values_have_the_stated_moments():
    x = np.random.default_rng(3).normal(2, 0.01, size=(256, 8)).astype(np.float32)
    out, state = apply("batch", x)
    variance = x.astype(np.float64).var(0)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(out.var(0), variance / (variance + EPS), rtol=1e-3)
    # running averages: 0.9 · initial + 0.1 · batch
    np.testing.assert_allclose(state["mean"], 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state["var"], 0.9 + 0.1 * variance, rtol=1e-5)
    out, _ = apply("layer", x.T)
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-4)


def test_large_mean_does_not_cancel():
    x = (1e4 + np.random.default_rng(4).normal(size=(512, 4))).astype(np.float32)
    out, _ = apply("batch", x)
    # In the E[x²]−E[x]² form the variance here is off by 10 and the values come out as 0.
    np.testing.assert_allclose(out.std(0), 1, rtol=2e-3)


def test_a_users_norm():
    @register("halve")
    def halve(features, *, rngs):
        class Halve(nnx.Module):
            def __call__(self, x):
                return x / 2

        return Halve()

    assert "halve" in names()
    np.testing.assert_array_equal(apply("halve", np.ones((2, 3), np.float32))[0], 0.5)
    assert not makes_bias_redundant("halve") and makes_bias_redundant("batch")


def test_unknown_norm():
    with pytest.raises(InputError, match="unknown norm 'bach'.*Did you mean 'batch'"):
        make_norm("bach", 3, rngs=nnx.Rngs(0))
