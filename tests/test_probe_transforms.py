"""Layers inside scan, remat, jit and vmap of either module system."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from flax import nnx
from recurrent import LinenShared

from ici.adapt import Variables, from_linen, from_nnx
from ici.errors import InputError
from ici.measure import Extremes, Moments
from ici.probe import Probe

KEY = jax.random.key(0)
X = zoo.data()
EVERY = Probe()


def equal(a, b, **tolerance):
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, **tolerance), a, b)


def nnx_model(module, **kwargs):
    model = from_nnx(lambda rngs: module(rngs=rngs, **kwargs))
    return model, model.init(KEY)


def linen_model(module):
    model = from_linen(module)
    return model, model.init(KEY, X)


def sites(model, variables, probe=EVERY):
    return model.apply(variables, X, probe=probe)[2].sites


# JAX keeps the traces of a function. One that is decorated once, in the body of a class or of a
# module, would hand one probe the readings taken for another.


class Layer(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.last = nnx.LayerNorm(4, rngs=rngs)

    def body(self, x):
        return self.last(nnx.relu(self.linear(x)))

    def __call__(self, x):
        return self.body(x)


class RematLayer(Layer):
    @nnx.remat
    def __call__(self, x):
        return self.body(x)


class JitLayer(Layer):
    @nnx.jit
    def __call__(self, x):
        return self.body(x)


class Stack(nnx.Module):
    def __init__(self, layer, first=0, *, rngs):
        self.first = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(first)])
        self.blocks = nnx.List([layer(rngs=rngs) for _ in range(3)])
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        for layer in (*self.first, *self.blocks):
            x = layer(x)
        return self.head(x)


BLOCKS = tuple(f"blocks/{i}/{m}" for i in range(3) for m in ("linear", "last"))


@pytest.mark.parametrize("layer", [RematLayer, JitLayer])
def test_layers_decorated_in_their_class_body(layer):
    plain, variables = nnx_model(Stack, layer=Layer)
    expected = plain.apply(variables, X, probe=EVERY)[2]
    model, _ = nnx_model(Stack, layer=layer)
    longer, more = nnx_model(Stack, layer=layer, first=2)
    extremes = Probe(stats=("extremes",))
    for _ in range(2):  # the second time, everything has been traced before
        for under in (lambda f: f, jax.jit):
            taps = under(lambda v: model.apply(v, X, probe=EVERY)[2])(variables)
            assert taps.sites == expected.sites == (*BLOCKS, "head")
            for site in expected:
                equal(taps[site], expected[site], rtol=1e-5, atol=1e-5)
            # Another probe, and another model that has layers before the same ones.
            taps = under(lambda v: model.apply(v, X, probe=extremes)[2])(variables)
            assert all(isinstance(taps[site], Extremes) for site in taps)
            taps = under(lambda v: longer.apply(v, X, probe=EVERY)[2])(more)
            assert taps.sites == ("first/0", "first/1", *BLOCKS, "head")


@nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
def run_blocks(x, block):
    return block(x)


class ModuleLevelScan(zoo.Scanned):
    def __call__(self, x):
        return self.head(run_blocks(x, self.blocks))


def test_scan_decorated_once_and_two_probes():
    model, variables = nnx_model(ModuleLevelScan)
    model.apply(variables, X)
    first = model.apply(variables, X, probe=EVERY)[2]
    second = model.apply(variables, X, probe=Probe(stats=("extremes", "moments")))[2]
    assert first.sites == second.sites
    equal(first["blocks/2/norm"], second.stat("moments")["blocks/2/norm"], rtol=1e-6)


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.LayerNorm(name="last")(nn.relu(nn.Dense(4, name="linear")(x)))


class LinenStack(nn.Module):
    wrap: str = ""

    @nn.compact
    def __call__(self, x):
        layer = {"": LinenLayer, "remat": nn.remat(LinenLayer), "jit": nn.jit(LinenLayer)}[
            self.wrap
        ]
        for i in range(3):
            x = layer(name=f"blocks_{i}")(x)
        return nn.Dense(2, name="head")(x)


def test_linen_remat_is_seen_through():
    plain, variables = linen_model(LinenStack())
    remat, _ = linen_model(LinenStack("remat"))
    expected = plain.apply(variables, X, probe=EVERY)[2]
    taps = remat.apply(variables, X, probe=EVERY)[2]
    assert taps.sites == expected.sites
    for site in expected:
        equal(taps[site], expected[site], rtol=1e-6)


def test_linen_jit_over_equal_layers_is_reported():
    model, variables = linen_model(LinenStack("jit"))
    model.apply(variables, X)
    # Flax traces the three layers once; which values are whose is not known any more.
    taps = model.apply(variables, X, probe=EVERY)[2]
    assert taps.sites == ("head",)
    assert any("blocks_0/linear" in name for name in taps.unwatched)
    assert all("JAX reuses a trace" in reason for reason in taps.unwatched.values())
    with pytest.raises(InputError, match="only layers that cannot be watched.*JAX reuses a trace"):
        model.apply(variables, X, probe=Probe(select="*linear*"))


def test_gradients_of_a_watched_scan_are_those_of_the_unrolled_layers():
    unrolled, variables = nnx_model(zoo.Chain)
    scanned, shape = nnx_model(zoo.Scanned)
    stacked = jax.tree.map(lambda *b: jnp.stack(b), *variables.params["blocks"].values())
    running = jax.tree.map(lambda *b: jnp.stack(b), *variables.state["blocks"].values())
    params = variables.params | {"blocks": stacked}
    assert jax.tree.structure(params) == jax.tree.structure(shape.params)

    def grad(model, params, state, probe):
        def loss(p):
            return jnp.mean(jnp.square(model.apply(Variables(p, state), X, probe=probe)[0]))

        return jax.jit(jax.grad(loss))(params)

    expected = grad(unrolled, variables.params, variables.state, None)
    got = grad(scanned, params, {"blocks": running}, EVERY)
    expected["blocks"] = jax.tree.map(lambda *b: jnp.stack(b), *expected["blocks"].values())
    equal(got, expected, rtol=1e-3, atol=1e-5)


def test_linen_scan_equals_unrolled():
    scanned, variables = linen_model(zoo.LinenScanned())
    unrolled = from_linen(zoo.LinenChain())

    def unstack(tree):
        blocks = tree["blocks"]["block"]
        each = {f"blocks_{i}": jax.tree.map(lambda a, i=i: a[i], blocks) for i in range(3)}
        return each | {k: v for k, v in tree.items() if k != "blocks"}

    collections = variables.state["collections"]
    same = Variables(
        unstack(variables.params),
        variables.state | {"collections": {k: unstack(v) for k, v in collections.items()}},
    )
    out, _, taps = scanned.apply(variables, X, probe=EVERY)
    expected, _, expected_taps = unrolled.apply(same, X, probe=EVERY)
    equal(out, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(taps.values(), expected_taps.values(), strict=True):
        equal(a, b, rtol=1e-4, atol=1e-4)


class Square(nnx.Module):
    """As many layers as features, and a head of the same size: every array starts with 4."""

    def __init__(self, *, rngs):
        @nnx.split_rngs(splits=4)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs):
            return Layer(rngs=rngs)

        self.blocks = stack(rngs)
        self.head = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(run_blocks(x, self.blocks))


def test_a_stack_is_told_from_layers_that_happen_to_have_its_size():
    expected = [f"blocks/{i}/{m}" for i in range(4) for m in ("linear", "last")]
    assert sites(*nnx_model(Square)) == (*expected, "head")


def test_shared_weights_are_one_site_per_iteration_in_execution_order():
    model, variables = linen_model(LinenShared())
    taps = model.apply(variables, X, probe=EVERY)[2]
    assert taps.sites == ("cell/a#0", "cell/b#0", "cell/a#1", "cell/b#1", "head")
    p = variables.params["cell"]
    hidden = jax.nn.relu(X @ p["a"]["kernel"]) @ p["b"]["kernel"]
    equal(taps["cell/a#1"], Moments.of(hidden), rtol=1e-4, atol=1e-4)


def per_example(module, x):
    return jax.vmap(module.a)(x)


def checkpointed(module, x):
    return jax.checkpoint(lambda x: module.a(x))(x)


def looped(module, x):
    return jax.lax.scan(lambda x, _: (module.a(x), None), x, None, length=2)[0]


def once_more(module, x):
    return jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(module.a(x)))))(x)


@pytest.mark.parametrize("through", [per_example, checkpointed, looped, once_more])
def test_layers_inside_plain_jax_are_watched(through):
    class Net(nnx.Module):
        def __init__(self, *, rngs):
            self.a = nnx.Linear(4, 4, rngs=rngs)
            self.b = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.b(through(self, x))

    model, variables = nnx_model(Net)
    bound = _Bound(variables.params["a"])
    for under in (lambda f: f, jax.jit):
        out, _, taps = under(lambda v: model.apply(v, X, probe=EVERY))(variables)
        assert taps.sites == (("a#0", "a#1", "b") if through is looped else ("a", "b"))
        first, *_, last = taps.values()
        equal(first, Moments.of(X), rtol=1e-5)
        equal(last, Moments.of(through(bound, X)), rtol=1e-4, atol=1e-4)
        if through is looped:
            equal(taps["a#1"], Moments.of(bound.a(X)), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(out, under(lambda v: model.apply(v, X)[0])(variables))


class _Bound:
    """The layer `a` without Flax."""

    def __init__(self, params):
        self.params = params

    def a(self, x):
        bias = self.params["bias"]
        return x @ self.params["kernel"] + bias.reshape((1,) * (x.ndim - 1) + bias.shape)
