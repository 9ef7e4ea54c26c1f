"""A batch that goes through in parts: the same loss, gradient and statistics as in one pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from flax import nnx

import ici
from ici.adapt import from_nnx
from ici.engine.gradients import gradients
from ici.engine.task import counted, cross_entropy
from ici.probe import Probe

KEY = jax.random.key(0)
X = zoo.data(24)
LABELS = jnp.asarray(np.arange(24) % 2)
PROBE = Probe(stats=("moments", "extremes"), cotangents=True)


class Plain(nnx.Module):
    def __init__(self, *, rngs):
        self.first = nnx.Linear(4, 5, rngs=rngs)
        self.norm = nnx.LayerNorm(5, rngs=rngs)
        self.head = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.first(x))))


@pytest.fixture(scope="module")
def model():
    return from_nnx(lambda rngs: Plain(rngs=rngs))


def close(a, b, rtol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


@pytest.mark.parametrize("parts", [2, 8])
@pytest.mark.slow
def test_parts_equal_the_whole(model, parts):
    variables = model.init(KEY, X)
    whole = gradients(model, cross_entropy, variables, (X, LABELS), PROBE)
    in_parts = jax.jit(
        lambda v: gradients(model, cross_entropy, v, (X, LABELS), PROBE, parts=parts)
    )(variables)
    assert in_parts.taps.sites == whole.taps.sites
    # Sums in another order: a few units in the last place of the largest term.
    close(in_parts, whole, 1e-4)
    assert float(in_parts.taps["first"].count) == 24
    assert set(in_parts.taps.cotangents) == set(whole.taps.sites)


def test_parts_weigh_by_what_counts_in_them(model):
    variables = model.init(KEY, X)
    # 24 examples in 2 parts: the even ones and the odd ones; most of the odd do not count.
    few = jnp.where((jnp.arange(24) % 2 == 1) & (jnp.arange(24) > 4), -1, LABELS)
    whole = gradients(model, cross_entropy, variables, (X, few))
    weighted = gradients(model, cross_entropy, variables, (X, few), parts=2, count=counted)
    close(weighted[:2], whole[:2], 1e-5)
    unweighted = gradients(model, cross_entropy, variables, (X, few), parts=2)
    assert abs(float(unweighted.loss - whole.loss)) > 1e-3


def test_running_averages_and_keys_go_from_part_to_part():
    model = from_nnx(lambda rngs: zoo.Chain(dropout=0.3, rngs=rngs))
    variables = model.init(KEY, X)
    in_parts = gradients(model, cross_entropy, variables, (X, LABELS), parts=2)
    by_hand = variables
    for part in (0, 1):
        batch = (X[part::2], LABELS[part::2])
        by_hand = by_hand._replace(state=gradients(model, cross_entropy, by_hand, batch).state)
    numbers = [
        leaf
        for leaf in jax.tree.leaves((in_parts.state, by_hand.state))
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    ]
    half = len(numbers) // 2
    close(numbers[:half], numbers[half:], 1e-5)


def test_a_users_loop_may_ask_for_parts(model):
    losses = []
    for parts in (1, 3):
        optimizer = optax.sgd(0.1)
        step = ici.make_train_step(model, optimizer, probe=Probe(every=1), accumulation_steps=parts)
        state = ici.init_train_state(model, optimizer, KEY, X)
        for _ in range(3):
            state, metrics = step(state, (X, LABELS))
        losses.append(float(metrics.loss))
        assert float(metrics.taps["first"].count) == 24
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_batch_that_does_not_divide(model):
    optimizer = optax.sgd(0.1)
    step = ici.make_train_step(model, optimizer, accumulation_steps=5)
    state = ici.init_train_state(model, optimizer, KEY, X)
    with pytest.raises(ici.InputError, match="accumulation_steps is 5 and the batch has 24"):
        step(state, (X, LABELS))
