"""What users hand over: precisions, containers, donated arrays, and things that cannot be."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ici
from ici.dissect.blocks import find_blocks
from ici.engine.step import cross_entropy
from ici.measure.sharpness import hessian_sharpness

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import zoo

LABELS = jnp.arange(16) % 2
BATCH = zoo.data(), LABELS


class Net(nnx.Module):
    def __init__(self, rngs, dtype=jnp.float32):
        self.first = nnx.Linear(4, 8, param_dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(8, 2, param_dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.first(x)))


def half_and_full():
    """The same network with bfloat16 parameters and with those very values in float32."""
    half = ici.from_nnx(lambda rngs: Net(rngs, jnp.bfloat16))
    full = ici.from_nnx(lambda rngs: Net(rngs))
    low = half.init(jax.random.key(0))
    return half, low, full, low._replace(params=jax.tree.map(jnp.float32, low.params))


@pytest.mark.parametrize("learning_rate", [1e-1, 1e-4])
def test_the_landscape_of_half_precision_parameters(learning_rate):
    half, low, full, high = half_and_full()
    a = ici.landscape(half, cross_entropy, low, BATCH, learning_rate)
    b = ici.landscape(full, cross_entropy, high, BATCH, learning_rate)
    # The same computation.
    np.testing.assert_allclose(a.smoothness, b.smoothness, rtol=1e-4)
    np.testing.assert_allclose(a.gradient_distance, b.gradient_distance, rtol=1e-4)


def test_the_sharpness_of_half_precision_parameters():
    half, low, full, high = half_and_full()
    a = ici.sharpness(half, cross_entropy, low, BATCH)
    b = ici.sharpness(full, cross_entropy, high, BATCH)
    np.testing.assert_allclose(a.value, b.value, rtol=1e-4)
    assert a.converged


def test_gradient_shift_of_half_precision_is_summed_in_float32():
    half, low, _, _ = half_and_full()
    after = low._replace(params=jax.tree.map(lambda a: a * 1.01, low.params))
    seen = ici.gradient_shift(half, cross_entropy, low, after, BATCH)
    assert seen.l2.dtype == jnp.float32
    assert (jnp.abs(seen.cosine) <= 1 + 1e-6).all()


def test_sharpness_at_a_point_that_is_not_finite():
    seen = hessian_sharpness(lambda p: jnp.sum(p**4), jnp.full(3, jnp.nan), jax.random.key(0))
    assert not seen.converged and seen.iterations == 1


def test_a_broken_network_that_did_not_move_has_no_shift():
    model = ici.from_nnx(Net)
    before = model.init(jax.random.key(0))
    broken = before._replace(params=jax.tree.map(lambda a: a.at[0].set(jnp.nan), before.params))
    seen = ici.gradient_shift(model, cross_entropy, broken, broken, BATCH)
    assert (seen.l2 == 0).all() and (seen.nonfinite > 0).all()


def test_train_states_and_their_copies():
    model, optimizer = ici.from_nnx(Net), optax.sgd(0.1)
    step = ici.make_train_step(model, optimizer)
    state = ici.init_train_state(model, optimizer, jax.random.key(0), BATCH[0])
    donated, before = ici.Variables(state.params, state.state), state.variables
    state, _ = step(state, BATCH)
    seen = ici.gradient_shift(model, cross_entropy, before, state, BATCH)
    assert seen.l2[0] == 0 and seen.l2[1] > 0
    with pytest.raises(ici.InputError, match="before has params/first/bias, which was donated"):
        ici.gradient_shift(model, cross_entropy, donated, state, BATCH)


def test_the_models_own_loss():
    model = ici.from_nnx(Net, loss=cross_entropy)
    variables = model.init(jax.random.key(0))
    a = ici.sharpness(model, None, variables, BATCH)
    assert a.value == ici.sharpness(model, cross_entropy, variables, BATCH).value
    with pytest.raises(ici.InputError, match="loss is None and Net has none of its own"):
        ici.sharpness(ici.from_nnx(Net), None, variables, BATCH)


def test_things_that_cannot_be():
    model = ici.from_nnx(Net)
    good = model.init(jax.random.key(0))
    with pytest.raises(ici.InputError, match=r"before is a dict: wanted ici.Variables"):
        ici.gradient_shift(model, cross_entropy, good.params, good, BATCH)
    with pytest.raises(ici.InputError, match=r"variables is a dict"):
        ici.sharpness(model, cross_entropy, good.params, BATCH)
    with pytest.raises(ici.InputError, match=r"wanted a pair \(inputs, targets\)"):
        ici.landscape(model, cross_entropy, good, BATCH[0], 0.1)
    with pytest.raises(ici.InputError, match="learning_rate is"):
        ici.landscape(model, cross_entropy, good, BATCH, optax.constant_schedule(0.1))
    counted = good._replace(params={**good.params, "first": {"bias": jnp.zeros(8, jnp.int32)}})
    with pytest.raises(ici.InputError, match="parameter params/first/bias of dtype int32"):
        ici.sharpness(model, cross_entropy, counted, BATCH)


def test_a_norm_never_goes_with_a_bare_parameter():
    class Positions(nnx.Module):
        def __init__(self, rngs):
            self.offset = nnx.Param(jnp.zeros(4))
            self.norm = nnx.LayerNorm(4, rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.norm(x + self.offset[None]))

    model = ici.from_nnx(Positions)
    blocks = find_blocks(model, model.init(jax.random.key(0)), zoo.data())
    assert len(blocks) == 2 and blocks.names[1] == "head"
    assert blocks.owners == (1, 1, 1, 1, 0)  # head, norm, offset
