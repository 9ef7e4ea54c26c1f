"""Traced learning rates give what optax gives with constant ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ici.errors import InputError
from ici.optimizers import (
    Optimizer,
    betas,
    matrices,
    optimizer_names,
    register_optimizer,
    register_schedule,
    schedule_factor,
)

LR, DECAY = 0.03, 0.1


def adam_by_hand(lr, beta1, beta2, steps, start, corrected):
    """Kingma & Ba 2015, Algorithm 1, in float64."""
    w, m, v = start.astype(np.float64), 0.0, 0.0
    for t in range(1, steps + 1):
        g = np.cos(w + t - 1)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        scale = (1 - beta1**t, 1 - beta2**t) if corrected else (1.0, 1.0)
        w = w - lr * (m / scale[0]) / (np.sqrt(v / scale[1]) + 1e-8)
    return w


def follow(optimizer, steps=5, lr=LR, decay=0.0, start=None, **betas):
    """Parameters after some steps of one compiled program with traced numbers."""

    @jax.jit
    def step(params, state, grads, lr, decay, betas):
        updates, state = optimizer.at(lr, decay, **betas).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    betas = {name: jnp.float32(value) for name, value in betas.items()}
    params = START if start is None else start
    state = optimizer.at(0.0, 0.0, **betas).init(params)
    for i in range(steps):
        grads = jax.tree.map(lambda p, i=i: jnp.cos(p + i), params)
        params, state = step(params, state, grads, jnp.float32(lr), jnp.float32(decay), betas)
    assert step._cache_size() == 1
    return params


def follow_optax(transformation, steps=5):
    params, state = START, transformation.init(START)
    for i in range(steps):
        grads = jax.tree.map(lambda p, i=i: jnp.cos(p + i), params)
        updates, state = transformation.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


START = {
    "layer": {"kernel": jnp.asarray([[1.0, -2.0, 0.3], [0.7, 0.2, -1.0]]), "bias": jnp.ones(3)},
    "head": {"kernel": jnp.asarray([[0.4], [-0.3], [2.0]])},
}
HIDDEN = {"layer": {"kernel": True, "bias": False}, "head": {"kernel": False}}


def muon_with_adam():
    labels = jax.tree.map(lambda hidden: "muon" if hidden else "adam", HIDDEN)
    matrix = optax.contrib.muon(LR, beta=0.95, consistent_rms=0.2, weight_decay=DECAY)
    rest = optax.adamw(LR, weight_decay=DECAY, nesterov=True)
    return optax.partition({"muon": matrix, "adam": rest}, labels)


@pytest.mark.parametrize(
    ("name", "expected", "decay"),
    [
        ("sgd", optax.sgd(LR), 0.0),
        ("momentum", optax.sgd(LR, momentum=0.9), 0.0),
        ("nesterov", optax.sgd(LR, momentum=0.9, nesterov=True), 0.0),
        ("adam", optax.adam(LR), 0.0),
        ("adamw", optax.adamw(LR, weight_decay=DECAY), DECAY),
        ("lion", optax.lion(LR, weight_decay=DECAY), DECAY),
        ("muon", muon_with_adam(), DECAY),
    ],
)
def test_equals_optax_over_several_steps(name, expected, decay):
    jax.tree.map(
        # Newton-Schulz iterations amplify the rounding of their input, Muon's others do not.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4 if name == "muon" else 1e-6),
        follow(Optimizer(name), decay=decay),
        follow_optax(expected),
    )


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.0, 0.95), (0.5, 0.9)])
def test_adam_with_any_betas_with_and_without_bias_correction(beta1, beta2, corrected):
    start = np.asarray([1.0, -2.0, 0.5])
    optimizer = Optimizer("adam", bias_correction=corrected)
    got = follow(optimizer, lr=0.1, start=jnp.asarray(start), beta1=beta1, beta2=beta2)
    expected = adam_by_hand(0.1, beta1, beta2, 5, start, corrected)
    # 1 - beta2 in float32 is off by 3e-5 of itself at 0.999, and its square root matters.
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_the_gradient_is_clipped_to_a_norm():
    grads = {"w": jnp.asarray([3.0, 4.0])}
    for limit, scale in ((1.0, 0.2), (5.0, 1.0), (10.0, 1.0)):
        optimizer = Optimizer("sgd", clip_norm=limit).at(1.0)
        updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
        np.testing.assert_allclose(updates["w"], -scale * grads["w"], rtol=1e-6)


def test_decay_of_matrices_leaves_biases_and_scales_alone():
    stacked = {"kernel": jnp.ones((4, 3, 2)), "scale": jnp.ones((4, 3))}  # of scanned layers
    params = START | {"norm": {"scale": jnp.ones(3)}, "words": {"embedding": jnp.ones((5, 2))}}
    params |= {"blocks": stacked}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for on in ("all", "matrices"):
        optimizer = Optimizer("adamw", decay_on=on).at(1.0, 0.5)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        moved = jax.tree.map(lambda u: bool((u != 0).all()), updates)
        assert moved == {
            "layer": {"kernel": True, "bias": on == "all"},
            "head": {"kernel": True},
            "norm": {"scale": on == "all"},
            "words": {"embedding": True},
            "blocks": {"kernel": True, "scale": on == "all"},
        }


def test_muon_sees_stacked_layers_and_convolutions_as_matrices():
    square = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), jnp.float32)
    stacked = {"blocks": {"kernel": jnp.stack([square, 2 * square, -square])}}
    alone = follow(Optimizer("muon"), steps=1, start={"blocks": {"kernel": square}})
    together = follow(Optimizer("muon"), steps=1, start=stacked)
    np.testing.assert_allclose(
        together["blocks"]["kernel"][0], alone["blocks"]["kernel"], rtol=1e-4, atol=1e-6
    )
    axes = matrices({"conv": {"kernel": jnp.ones((3, 3, 4, 8))}, "embed": {"embedding": square}})
    assert tuple(axes["conv"]["kernel"]) == ((0, 1, 2), (3,))
    assert axes["embed"]["embedding"] is None


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
    factor = jax.jit(lambda s, w: schedule_factor(name, s, w, steps))  # the warm-up is traced too
    return np.asarray(jax.vmap(factor, in_axes=(0, None))(at, jnp.int32(warmup_steps)))


def test_schedules():
    assert (factors("constant", 0, 10) == 1).all()
    np.testing.assert_allclose(factors("constant", 4, 8), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    cosine = factors("cosine", 10, 110)
    np.testing.assert_allclose(cosine[:10], np.arange(1, 11) / 10, rtol=1e-6)
    # half-way through the fall, and one step before its end
    np.testing.assert_allclose(cosine[60], 0.5, atol=1e-6)
    np.testing.assert_allclose(cosine[-1], 0.5 * (1 + np.cos(np.pi * 0.99)), atol=1e-6)
    np.testing.assert_allclose(factors("linear", 0, 4), [1, 0.75, 0.5, 0.25], rtol=1e-6)
    # stable until a fifth of the steps after the warm-up is left
    wsd = factors("wsd", 10, 110)
    np.testing.assert_allclose(wsd[9:91], 1.0)
    np.testing.assert_allclose(wsd[90:], np.linspace(1, 0.05, 20), rtol=1e-4)


def test_a_schedule_and_an_optimizer_of_ones_own(monkeypatch):
    monkeypatch.setattr("ici.optimizers.schedules._SCHEDULES", {})
    monkeypatch.setattr("ici.optimizers.directions._OPTIMIZERS", {})
    register_schedule("half")(lambda progress, decay_fraction: jnp.where(progress < 0.5, 1.0, 0.5))
    np.testing.assert_allclose(factors("half", 0, 4), [1, 1, 0.5, 0.5])

    @register_optimizer("sign", learning_rates=(0.1,), beta1=0.8)
    def sign(beta1):
        average = optax.ema(beta1, debias=False)
        return optax.chain(average, optax.scale_by_sign())

    assert optimizer_names() == ("sign",) and betas("sign") == {"beta1": 0.8}
    params = follow(Optimizer("sign"), steps=1, start=jnp.asarray([1.0, 2.0]))
    np.testing.assert_allclose(params, [1.0 - LR, 2.0 + LR], rtol=1e-6)
    with pytest.raises(InputError, match="'odd' takes momentum .*wanted a function of some of"):
        register_optimizer("odd", learning_rates=(0.1,))(lambda momentum: optax.identity())
    with pytest.raises(InputError, match="a default for each beta"):
        register_optimizer("odd", learning_rates=(0.1,))(lambda beta1: optax.identity())


def test_bad_settings():
    with pytest.raises(InputError, match="unknown optimizer 'adan'.*'adam'"):
        Optimizer("adan")
    with pytest.raises(InputError, match="bias_correction is False and optimizer is 'lion'"):
        Optimizer("lion", bias_correction=False)
    with pytest.raises(InputError, match="clip_norm is 0"):
        Optimizer("sgd", clip_norm=0)
    with pytest.raises(InputError, match="unknown decay_on 'kernels'"):
        Optimizer("sgd", decay_on="kernels")
    with pytest.raises(InputError, match="unknown schedule 'step'"):
        schedule_factor("step", jnp.int32(0), 0, 1)
