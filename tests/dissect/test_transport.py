"""Earth mover's distance of layer inputs between two settings of the parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

import ici
from ici.adapt import from_nnx

X = zoo.data(32)


@pytest.fixture(scope="module")
def chain():
    model = from_nnx(lambda rngs: zoo.Chain(depth=2, rngs=rngs))
    return model, model.init(jax.random.key(0), X)


def moved(variables, path, by):
    params = jax.tree.map(lambda a: a, variables.params)
    at = params
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = at[path[-1]] + by
    return variables._replace(params=params)


def test_an_unchanged_network_is_at_distance_zero(chain):
    model, variables = chain
    for site, distance in ici.wasserstein_shift(model, variables, variables, X).items():
        assert (np.asarray(distance) == 0).all(), site


def test_a_constant_added_moves_every_value_by_it(chain):
    model, before = chain
    by = np.asarray([0.5, -2.0, 0.0, 1.0], np.float32)
    after = moved(before, ("blocks", 0, "linear", "bias"), by)
    found = ici.wasserstein_shift(model, before, after, X)
    np.testing.assert_allclose(found["blocks/0/norm"], np.abs(by), rtol=1e-5, atol=1e-6)
    assert (np.asarray(found["blocks/0/linear"]) == 0).all()
    # The norm takes the constant out again, to the rounding of its mean.
    np.testing.assert_allclose(found["blocks/1/linear"], 0.0, atol=1e-5)


def test_against_sorted_values(chain):
    model, before = chain
    kernel = before.params["blocks"][0]["linear"]["kernel"]
    change = 0.3 * jax.random.normal(jax.random.key(1), kernel.shape)
    after = moved(before, ("blocks", 0, "linear", "kernel"), change)
    found = ici.wasserstein_shift(model, before, after, X)

    def inputs(variables):
        at = variables.params["blocks"][0]["linear"]
        values = [np.asarray(a, np.float64) for a in (X, at["kernel"], at["bias"])]
        return values[0] @ values[1] + values[2]

    expected = np.abs(np.sort(inputs(before), axis=0) - np.sort(inputs(after), axis=0)).mean(axis=0)
    np.testing.assert_allclose(found["blocks/0/norm"], expected, rtol=1e-4)
    paired = np.abs(inputs(before) - inputs(after)).mean(axis=0)
    assert (paired > expected + 1e-3).any()  # the pairing is by rank, not by example


def test_variables_of_another_model(chain):
    model, variables = chain
    other = from_nnx(lambda rngs: zoo.Chain(depth=1, rngs=rngs)).init(jax.random.key(0), X)
    with pytest.raises(ici.InputError, match="of different models"):
        ici.wasserstein_shift(model, variables, other, jnp.asarray(X))
