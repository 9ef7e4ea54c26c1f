"""Gradient norms and update ratios of blocks, in the fleet's record and in a user's own loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_run import arrays, experiment  # pyright: ignore[reportMissingImports]

import ici
from ici.engine.step import cross_entropy, gradients
from ici.measure import Moments, Updates
from ici.models import InputSpec

PROBE = ici.Probe(stats=("moments", "updates", "dead_units", "effective_rank"), every=5)


@pytest.mark.slow
def test_the_record_has_blocks_and_costs_apart(tmp_path):
    wanted = experiment(norm=("batch",), seed=(0,), steps=20, probe=PROBE)
    results = ici.run(wanted, tmp_path / "out")
    probe, reference = results.probe, results.reference
    assert probe.block.values.tolist() == ["blocks/0/linear", "blocks/1/linear", "head"]
    assert probe.update_ratio.dims[-1] == "block" and probe.update_ratio.shape[-2:] == (4, 3)
    assert (probe.update_ratio > 0).all() and (probe.block_gradient_norm > 0).all()
    # The blocks' squares sum to the square of the whole gradient; float32.
    whole = results.train.grad_norm.sel(step=probe.step)
    summed = np.sqrt(np.square(probe.block_gradient_norm).sum("block"))
    np.testing.assert_allclose(summed.transpose(*whole.dims), whole, rtol=1e-5)
    # What is too heavy for every step is on the reference batch alone.
    assert "effective_rank" in reference and "effective_rank" not in probe
    assert "dead_fraction" in reference and "dead_fraction" in probe
    assert reference.effective_rank.dims[-1] == "site"
    assert ((reference.effective_rank >= 1) & (reference.effective_rank <= 16.001)).all()
    assert "update_ratio" not in reference


def test_the_step_of_a_users_loop():
    data = arrays().load().train
    batch = jnp.asarray(data.inputs[:16]), jnp.asarray(data.labels[:16])
    model = ici.from_nnx(ici.MLPConfig(width=8).build("none", 2, InputSpec((6,), None, 2)))
    optimizer = optax.sgd(0.1)
    step = ici.make_train_step(model, optimizer, probe=PROBE)
    state = ici.init_train_state(model, optimizer, jax.random.key(0), batch[0])
    variables = ici.Variables(*jax.tree.map(jnp.copy, (state.params, state.state)))
    grads = gradients(model, cross_entropy, variables, batch).grads
    state, metrics = step(state, batch)
    seen = metrics.blocks["updates"]
    head = [grads["head"], variables.params["head"]]
    norms = [np.sqrt(sum(np.sum(np.square(a)) for a in jax.tree.leaves(t))) for t in head]
    np.testing.assert_allclose(seen.gradient_norm[-1], norms[0], rtol=1e-5)
    np.testing.assert_allclose(seen.update_ratio[-1], 0.1 * norms[0] / norms[1], rtol=1e-4)
    assert isinstance(metrics.taps["head"], Moments)
    _, metrics = step(state, batch)
    assert metrics.taps is None and metrics.blocks == {}


def test_merging_gives_the_root_mean_square():
    rng = np.random.default_rng(0)
    squares = rng.uniform(0.1, 2.0, (3, 5, 4)).astype("f")  # quantity, step, block
    merged = Updates.of(*squares[:, 0])
    for i in range(1, 5):
        merged = merged.merge(Updates.of(*squares[:, i]))
    np.testing.assert_allclose(merged.gradient_norm, np.sqrt(squares[0].mean(0)), rtol=1e-5)
    ratios = np.sqrt((squares[1] / squares[2]).mean(0))
    np.testing.assert_allclose(merged.update_ratio, ratios, rtol=1e-5)
    total = np.sqrt((squares[1].sum(-1) / squares[2].sum(-1)).mean())
    np.testing.assert_allclose(merged.labelled()["total_update_ratio"], total, rtol=1e-5)
    assert merged.count == 5
