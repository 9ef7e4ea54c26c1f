"""Traced learning rates give what optax gives with constant ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ici.errors import InputError
from ici.optimizers import Optimizer, schedule_factor

LR, DECAY = 0.03, 0.1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", optax.sgd(LR)),
        ("momentum", optax.sgd(LR, momentum=0.9)),
        ("adam", optax.adam(LR)),
        ("adamw", optax.adamw(LR, weight_decay=DECAY)),
    ],
)
def test_equals_optax_over_several_steps(name, expected):
    decay = DECAY if name == "adamw" else 0.0

    @jax.jit
    def ours(params, state, grads, lr, decay):
        updates, state = Optimizer(name).at(lr, decay).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = {"w": jnp.asarray([1.0, -2.0]), "b": jnp.asarray(0.5, jnp.float32)}
    ours_params, ours_state = params, Optimizer(name).at(0.0, 0.0).init(params)
    their_params, their_state = params, expected.init(params)
    for step in range(5):
        grads = jax.tree.map(lambda p, s=step: jnp.cos(p + s), params)
        ours_params, ours_state = ours(
            ours_params, ours_state, grads, jnp.float32(LR), jnp.float32(decay)
        )
        updates, their_state = expected.update(grads, their_state, their_params)
        their_params = optax.apply_updates(their_params, updates)
    assert ours._cache_size() == 1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours_params, their_params
    )


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw"])
def test_rate_may_change_from_step_to_step(name):
    rates = jnp.asarray([0.1, 0.003, 0.2, 0.0])
    known = {
        "sgd": optax.sgd,
        "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
        "adam": optax.adam,
        "adamw": lambda lr: optax.adamw(lr, weight_decay=DECAY),
    }
    expected = known[name](lambda count: rates[count])
    decay = jnp.float32(DECAY if name == "adamw" else 0.0)

    @jax.jit
    def ours(params, state, lr):
        updates, state = Optimizer(name).at(lr, decay).update(jnp.cos(params), state, params)
        return optax.apply_updates(params, updates), state

    params = theirs = jnp.asarray([1.0, -2.0, 0.5])
    state, their_state = Optimizer(name).at(0.0, 0.0).init(params), expected.init(theirs)
    for lr in rates:
        before = params
        params, state = ours(params, state, lr)
        updates, their_state = expected.update(jnp.cos(theirs), their_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        np.testing.assert_allclose(params, theirs, rtol=1e-6)
    np.testing.assert_array_equal(params, before)  # at a rate of 0


def test_decay_of_the_others_is_an_l2_penalty():
    params, grads = jnp.asarray([2.0]), jnp.asarray([0.5])
    optimizer = Optimizer("sgd").at(jnp.float32(LR), jnp.float32(DECAY))
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates, -LR * (0.5 + DECAY * 2), rtol=1e-6)


def factors(name, warmup_steps, steps):
    at = jnp.arange(steps, dtype=jnp.int32)
    return np.asarray(jax.vmap(lambda s: schedule_factor(name, s, warmup_steps, steps))(at))


def test_schedules():
    assert (factors("constant", 0, 10) == 1).all()
    np.testing.assert_allclose(factors("constant", 4, 8), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    cosine = factors("cosine", 10, 110)
    np.testing.assert_allclose(cosine[:10], np.arange(1, 11) / 10, rtol=1e-6)
    # half-way through the fall, and one step before its end
    np.testing.assert_allclose(cosine[60], 0.5, atol=1e-6)
    np.testing.assert_allclose(cosine[-1], 0.5 * (1 + np.cos(np.pi * 0.99)), atol=1e-6)


def test_unknown_names():
    with pytest.raises(InputError, match="unknown optimizer 'adan'.*'adam'"):
        Optimizer("adan").at(jnp.float32(0), jnp.float32(0))
    with pytest.raises(InputError, match="unknown schedule 'step'"):
        schedule_factor("step", jnp.int32(0), 0, 1)
