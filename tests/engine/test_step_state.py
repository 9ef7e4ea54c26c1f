"""The state of a training step: compiled how often, donated, handed in from elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from flax import nnx

import ici
from ici.adapt import from_linen, from_nnx
from ici.engine.step import cross_entropy
from ici.probe import Probe

X = zoo.data()
LABELS = jnp.asarray(np.arange(16) % 2)
MODELS = {
    "nnx": from_nnx(lambda rngs: zoo.Chain(dropout=0.1, rngs=rngs)),
    "linen": from_linen(zoo.LinenChain(dropout=0.1)),
}


class Traces:
    """The loss, counting how often it is traced: once per compiled program."""

    def __init__(self):
        self.count = 0

    def __call__(self, outputs, targets):
        self.count += 1
        return cross_entropy(outputs, targets)


def start(model, **settings):
    optimizer = optax.adam(3e-2)
    loss = Traces()
    step = ici.make_train_step(model, optimizer, loss, **settings)
    return step, ici.init_train_state(model, optimizer, jax.random.key(0), X), loss


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("probe", "programs"),
    [(None, 1), (Probe(every=1), 1), (Probe(every=4), 2), (Probe(every=4, cotangents=True), 2)],
)
def test_as_many_programs_as_kinds_of_step(kind, probe, programs):
    step, state, loss = start(MODELS[kind], probe=probe)
    for _ in range(10):
        state, metrics = step(state, (X, LABELS))
        if metrics.taps is not None:
            assert bool(metrics.taps.cotangents) == probe.cotangents
    assert loss.count == programs


@pytest.mark.parametrize("kind", MODELS)
def test_loss_falls_whether_or_not_anyone_watches(kind):
    # Without dropout the loss of 16 examples can only fall; with it the masks are shared.
    watched, plain = (start(MODELS[kind], probe=p) for p in (Probe(every=3), None))
    losses = []
    for step, state, _ in (watched, plain):
        losses.append([])
        for _ in range(60):
            state, metrics = step(state, (X, LABELS))
            losses[-1].append(float(metrics.loss))
    assert losses[0] == losses[1]
    assert np.mean(losses[0][-5:]) < 0.5 * losses[0][0]


def test_the_old_state_is_given_up():
    step, state, _ = start(MODELS["nnx"], probe=Probe(every=2))
    after, _ = step(state, (X, LABELS))
    donated = jax.tree.leaves((state.params, state.state, state.opt_state))
    assert all(leaf.is_deleted() for leaf in donated)
    assert not X.is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after.params))


def test_the_key_stays_the_callers():
    class KeepsRngs(nnx.Module):
        def __init__(self, *, rngs):
            self.rngs = rngs
            self.linear = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.linear(x) + 0.1 * jax.random.normal(self.rngs.noise(), (1, 2))

    model = from_nnx(lambda rngs: KeepsRngs(rngs=rngs))
    optimizer, key = optax.sgd(0.1), jax.random.key(0)
    state = ici.init_train_state(model, optimizer, key, X)
    ici.make_train_step(model, optimizer)(state, (X, LABELS))
    assert not key.is_deleted()


def on_devices(state):
    return jax.device_put(state)


def through_the_host(state):
    def there_and_back(leaf):
        if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
            return leaf
        return np.asarray(leaf)

    return jax.tree.map(there_and_back, state)


@pytest.mark.parametrize("moved", [on_devices, through_the_host])
def test_a_state_that_was_moved_goes_on_in_step(moved):
    step, state, _ = start(MODELS["nnx"], probe=Probe(every=3))
    straight = jax.tree.map(jnp.copy, state)
    expected = []
    for _ in range(5):
        straight, metrics = step(straight, (X, LABELS))
        expected.append((float(metrics.loss), metrics.taps is not None))
    got = []
    for _ in range(5):
        state, metrics = step(moved(state), (X, LABELS))
        got.append((float(metrics.loss), metrics.taps is not None))
    assert got == expected
    assert [probed for _, probed in got] == [True, False, False, True, False]
    assert int(state.step) == 5


def test_gradient_norm_is_that_of_the_gradient():
    model = MODELS["nnx"]
    step, state, _ = start(model)
    variables = ici.Variables(*jax.tree.map(jnp.copy, (state.params, state.state)))

    def loss(params):
        out = model.apply(ici.Variables(params, variables.state), X)[0]
        return cross_entropy(out, LABELS)

    grads = jax.tree.leaves(jax.grad(loss)(variables.params))
    _, metrics = step(state, (X, LABELS))
    norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in grads))
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("probe", [None, Probe(every=2)])
def test_running_averages_and_random_streams_go_on(kind, probe):
    model = MODELS[kind]
    step, state, _ = start(model, probe=probe)
    for _ in range(3):
        variables = ici.Variables(*jax.tree.map(jnp.copy, (state.params, state.state)))
        expected = jax.jit(lambda v: model.apply(v, X)[1])(variables)
        state, _ = step(state, (X, LABELS))
        moved = []
        for got, want, old in zip(
            *map(jax.tree.leaves, (state.state, expected, variables.state)), strict=True
        ):
            if not jnp.issubdtype(got.dtype, jax.dtypes.prng_key):
                # The same forward pass, fused with another program.
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
                moved.append(bool((np.asarray(got) != np.asarray(old)).any()))
        assert sum(moved) >= 7  # mean and variance of three norms, and the dropout's count


class Normed(nnx.Module):
    """A batch norm, whose running averages one bad batch would poison for good."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x_BD: jax.Array) -> jax.Array:
        return self.head(self.norm(x_BD))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_without_numbers_keeps_nothing(bad):
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32))
    model, optimizer = from_nnx(lambda rngs: Normed(rngs)), optax.adam(1e-2)
    step = ici.make_train_step(model, optimizer)
    with_bad = without = ici.init_train_state(model, optimizer, jax.random.key(0), inputs)
    without = jax.tree.map(jnp.copy, without)
    for batch in (inputs, inputs.at[3, 2].set(bad), inputs):
        with_bad, metrics = step(with_bad, (batch, LABELS))
        assert bool(jnp.isfinite(metrics.loss)) == bool(jnp.isfinite(batch).all())
        if jnp.isfinite(batch).all():
            without, _ = step(without, (batch, LABELS))
    kept, wanted = ((s.params, s.state, s.opt_state) for s in (with_bad, without))
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
