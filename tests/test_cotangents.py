"""Cotangents: moments of the loss gradient at the sites."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from flax import nnx
from recurrent import LinenShared

from ici.adapt import from_linen, from_nnx
from ici.errors import InputError
from ici.measure import Moments
from ici.probe import Probe

KEY = jax.random.key(0)
X = zoo.data()


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


@pytest.mark.parametrize(
    "make",
    [
        lambda: nnx_model(zoo.Scanned),
        lambda: linen_model(LinenShared()),
        lambda: linen_model(zoo.LinenScanned()),
    ],
)
def test_cotangents_of_scanned_layers_are_refused_and_of_the_others_given(make):
    model, variables = make()

    def cotangents(probe):
        sinks = model.cotangent_sinks(variables, X, probe)
        return jax.grad(
            lambda s: jnp.sum(jnp.sin(model.apply(variables, X, probe=probe, sinks=s)[0]))
        )(sinks)

    with pytest.raises(InputError, match=r"cotangents at (blocks|cell)/.*inside a scan or remat"):
        cotangents(Probe(cotangents=True))
    head = cotangents(Probe(select="head", cotangents=True))
    assert list(head) == ["head"]
    assert head["head"].count == len(X) and (head["head"].std > 0).all()
