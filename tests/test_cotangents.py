"""Cotangents: moments of the loss gradient at the sites."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from flax import linen as nn
from flax import nnx
from recurrent import LinenShared

from ici.adapt import Variables, from_linen, from_nnx
from ici.errors import InputError
from ici.measure import Moments
from ici.probe import Probe

KEY = jax.random.key(0)
X = zoo.data()
EVERY = Probe(cotangents=True)


def equal(a, b, **tolerance):
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, **tolerance), a, b)


def nnx_model(module):
    model = from_nnx(lambda rngs: module(rngs=rngs))
    return model, model.init(KEY)


def linen_model(module):
    model = from_linen(module)
    return model, model.init(KEY, X)


class Nudged(nnx.Module):
    """Adds a value to every layer's input: the gradient with respect to it is the cotangent."""

    def __init__(self, *, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])

    def __call__(self, inputs):
        x, nudges = inputs
        for layer, nudge in zip(self.layers, nudges, strict=True):
            x = jnp.tanh(layer(x + nudge))
        return x


def test_cotangents_at_every_site_are_gradients_with_respect_to_its_values():
    model, variables = nnx_model(Nudged)
    probe = Probe(cotangents=True)
    nudges = (jnp.zeros_like(X),) * 3
    sinks = model.cotangent_sinks(variables, (X, nudges), probe)

    def loss(nudges, sinks):
        out = model.apply(variables, (X, nudges), probe=probe, sinks=sinks)[0]
        return jnp.sum(jnp.sin(out))

    by_hand, moments = jax.jit(jax.grad(loss, argnums=(0, 1)))(nudges, sinks)
    plain = jax.jit(jax.grad(lambda n: jnp.sum(jnp.sin(model.apply(variables, (X, n))[0]))))(nudges)
    assert list(moments) == [f"layers/{i}" for i in range(3)]
    for gradient, unwatched, seen in zip(by_hand, plain, moments.values(), strict=True):
        np.testing.assert_array_equal(gradient, unwatched)
        equal(seen, Moments.of(gradient), rtol=1e-5, atol=1e-7)


def cotangents(model, variables, probe=EVERY):
    sinks = model.cotangent_sinks(variables, X, probe)
    return jax.grad(lambda s: jnp.sum(jnp.sin(model.apply(variables, X, probe=probe, sinks=s)[0])))(
        sinks
    )


def test_cotangents_of_scanned_layers_are_those_of_the_unrolled_ones():
    unrolled, variables = nnx_model(zoo.Chain)
    scanned, _ = nnx_model(zoo.Scanned)
    state = Variables(variables.params, {"blocks": variables.state["blocks"]})
    stacked = Variables(
        *(
            part | {"blocks": jax.tree.map(lambda *b: jnp.stack(b), *part["blocks"].values())}
            for part in state
        )
    )
    expected, got = cotangents(unrolled, variables), cotangents(scanned, stacked)
    assert list(got) == list(expected)
    # Three steps of BatchNorm's backward pass: some hundred roundings of 6e-8.
    equal(got, expected, rtol=1e-3, atol=1e-5)
    some = cotangents(scanned, stacked, Probe(select="blocks/1/*", cotangents=True))
    assert list(some) == ["blocks/1/linear", "blocks/1/norm"]
    equal(some["blocks/1/norm"], got["blocks/1/norm"], rtol=1e-6)


def test_cotangents_of_shared_layers_are_one_per_iteration():
    model, variables = linen_model(LinenShared())
    p = variables.params

    def by_hand(nudge):
        cell = p["cell"]

        def run(x):
            hidden = jax.nn.relu(x @ cell["a"]["kernel"] + cell["a"]["bias"][None])
            return hidden @ cell["b"]["kernel"] + cell["b"]["bias"][None]

        out = run(run(X) + nudge) @ p["head"]["kernel"] + p["head"]["bias"][None]
        return jnp.sum(jnp.sin(out))

    gradient = jax.grad(by_hand)(jnp.zeros_like(X))
    got = cotangents(model, variables)
    assert set(got) == {"cell/a#0", "cell/b#0", "cell/a#1", "cell/b#1", "head"}
    equal(got["cell/a#1"], Moments.of(gradient), rtol=1e-4, atol=1e-6)


class Branches(nn.Module):
    @nn.compact
    def __call__(self, x):
        a, b = nn.Dense(4, name="a"), nn.Dense(2, name="b")
        x = nn.cond(jnp.sum(x) > 0, lambda m, x: a(x), lambda m, x: x, self, a(x))
        return b(x)


def test_cotangents_of_sites_that_are_not_watched_are_refused():
    model, variables = linen_model(Branches())
    given = cotangents(model, variables)
    assert list(given) == ["a#0", "b"]
    with pytest.raises(InputError, match="cotangents at a#1: wanted sites that this probe watches"):
        model.apply(variables, X, probe=EVERY, sinks={"a#1": Moments.empty(4)})
