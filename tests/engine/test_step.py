"""A training step for people who own their loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import zoo

import ici
from ici.adapt import Variables, from_linen, from_nnx
from ici.probe import Probe

KEY = jax.random.key(0)
X = zoo.data()


def test_train_step_probes_on_its_cadence_with_two_programs():
    model = from_nnx(lambda rngs: zoo.Chain(dropout=0.1, rngs=rngs))
    optimizer = optax.adam(1e-2)
    step = ici.make_train_step(model, optimizer, probe=Probe(every=3))
    state = ici.init_train_state(model, optimizer, KEY, X)
    labels = jnp.asarray(np.arange(16) % 2)
    losses, probed = [], []
    for i in range(9):
        before = Variables(*jax.tree.map(jnp.copy, (state.params, state.state)))
        state, metrics = step(state, (X, labels))
        losses.append(float(metrics.loss))
        probed.append(metrics.taps is not None)
        if metrics.taps is not None:
            expected = model.apply(before, X, probe=Probe())[2]
            for site in expected:  # of the forward pass that trained: parameters before the update
                pairs = zip(
                    *map(jax.tree.leaves, (metrics.taps[site], expected[site])), strict=True
                )
                for got, wanted in pairs:
                    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
        assert np.isfinite(metrics.grad_norm)
        assert state.step == i + 1
    assert probed == [True, False, False] * 3
    assert losses[-1] < losses[0]


def test_train_step_takes_linen_and_reports_cotangents():
    model = from_linen(zoo.LinenChain(dropout=0.2))
    optimizer = optax.sgd(1e-2)
    step = ici.make_train_step(model, optimizer, probe=Probe(every=1, cotangents=True))
    state = ici.init_train_state(model, optimizer, KEY, X)
    _, metrics = step(state, (X, jnp.asarray(np.arange(16) % 2)))
    assert set(metrics.taps.cotangents) == set(metrics.taps)
    assert (metrics.taps.cotangents["head"].std > 0).all()
