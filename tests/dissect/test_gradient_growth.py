"""Gradient norms by depth at initialisation, where theory says what they are."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ici
from ici.dissect.blocks import find_blocks
from ici.engine.step import cross_entropy, gradients
from ici.models import InputSpec, MLPConfig

WIDTH, DEPTH = 256, 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "n_examples", "wanted", "tolerance"),
    # Yang et al., "A Mean Field Theory of Batch Normalization" (2019), theorem 8: the square
    # grows by π/(π − 1) per layer going down in the limit of width and batch; He et al. 2015: 1,
    # for one example (in a sum over many, what their activations have in common counts too).
    # Width 256 leaves a few per cent: each layer's gain varies by √(5/4/256) = 7 %.
    [("batch", 512, math.sqrt(math.pi / (math.pi - 1)), 0.03), ("none", 1, 1.0, 0.03)],
)
def test_growth_per_layer(norm, n_examples, wanted, tolerance):
    model = ici.from_nnx(MLPConfig(width=WIDTH).build(norm, DEPTH, InputSpec((WIDTH,), None, 2)))

    @jax.jit
    def block_norms(key):
        inputs = jax.random.normal(key, (n_examples, WIDTH))
        variables = model.init(key, inputs)
        result = gradients(model, cross_entropy, variables, (inputs, jnp.arange(n_examples) % 2))
        return find_blocks(model, variables, inputs).norm(result.grads)

    slopes = []
    for seed in range(12):
        norms = block_norms(jax.random.key(seed))
        # The ends of the network are not in the regime: the data has its own distribution.
        inner = np.log(np.asarray(norms)[2:-2])
        slopes.append(-np.polyfit(np.arange(len(inner)), inner, 1)[0])
    assert np.exp(np.mean(slopes)) == pytest.approx(wanted, rel=tolerance)
