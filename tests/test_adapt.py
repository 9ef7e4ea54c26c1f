"""Unmodified modules of both kinds, as pure functions, watched from outside."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from flax import nnx

from ici.adapt import Variables, from_linen, from_nnx
from ici.errors import InputError
from ici.measure import Moments
from ici.probe import Probe

KEY = jax.random.key(0)
X = zoo.data()
EVERY = Probe()
CHAIN_SITES = tuple(f"blocks/{i}/{m}" for i in range(3) for m in ("linear", "norm")) + ("head",)


def nnx_model(module=zoo.Chain, **kwargs):
    return from_nnx(lambda rngs: module(rngs=rngs, **kwargs))


def as_linen(variables):
    """The variables of `zoo.Chain` renamed for `zoo.LinenChain`."""
    params, state = variables
    renamed = {"head": params["head"]}
    stats = {}
    for i in params["blocks"]:
        renamed[f"blocks_{i}"] = params["blocks"][i]
        stats[f"blocks_{i}"] = {"norm": state["blocks"][i]["norm"]}
    rng = {"key": KEY, "count": jnp.uint32(0)}
    return Variables(renamed, {"collections": {"batch_stats": stats}, "rng": rng})


def loss_and_grad(model, variables, probe=None):
    def loss(params):
        out, state, taps = model.apply(Variables(params, variables.state), X, probe=probe)
        return jnp.mean(jnp.square(out)), (state, taps)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables.params)


def equal(a, b, **tolerance):
    check = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
    jax.tree.map(lambda p, q: check(p, q, **tolerance), a, b)


def test_sites_come_in_execution_order_whatever_the_order_of_definition():
    model = nnx_model()
    taps = model.apply(model.init(KEY), X, probe=EVERY)[2]
    assert taps.sites == tuple(taps) == CHAIN_SITES
    assert taps.features == (4,) * 7
    linen = from_linen(zoo.LinenChain())
    taps = linen.apply(linen.init(KEY, X), X, probe=EVERY)[2]
    assert taps.sites == tuple(s.replace("blocks/", "blocks_") for s in CHAIN_SITES)


def test_taps_are_the_layers_real_inputs():
    model = nnx_model(depth=1)
    variables = model.init(KEY)
    taps = model.apply(variables, X, probe=EVERY)[2]
    p = variables.params["blocks"][0]
    hidden = X @ p["linear"]["kernel"] + p["linear"]["bias"][None]
    normed = (hidden - hidden.mean(0)[None]) / jnp.sqrt(hidden.var(0) + 1e-5)[None]
    for site, value in {
        "blocks/0/linear": X,
        "blocks/0/norm": hidden,
        "head": jax.nn.relu(normed),
    }.items():
        expected = Moments.of(value)
        np.testing.assert_allclose(taps[site].mean, expected.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(taps[site].std, expected.std, rtol=1e-4)


def test_mean_at_batchnorm_is_batchnorms_own():
    model = nnx_model()
    variables = model.init(KEY)
    _, state, taps = model.apply(variables, X, probe=EVERY)
    for i in range(3):
        # running average: 0.99 · 0 + 0.01 · batch mean
        own = state["blocks"][i]["norm"]["mean"] / 0.01
        np.testing.assert_allclose(taps[f"blocks/{i}/norm"].mean, own, rtol=1e-4, atol=1e-5)


def test_linen_equals_nnx_on_the_same_weights():
    nnx_side, linen_side = nnx_model(), from_linen(zoo.LinenChain())
    variables = nnx_side.init(KEY)
    (loss, (state, taps)), grads = loss_and_grad(nnx_side, variables, EVERY)
    renamed = as_linen(variables)
    (other, (other_state, other_taps)), other_grads = loss_and_grad(linen_side, renamed, EVERY)
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    equal(loss, other, **tolerance)
    expected = as_linen(Variables(grads, state))
    equal(expected.params, other_grads, **tolerance)
    equal(expected.state["collections"], other_state["collections"], **tolerance)
    for a, b in zip(taps.values(), other_taps.values(), strict=True):
        equal(a, b, **tolerance)
    out, _, _ = nnx_side.apply(variables, X, train=False)
    equal(out, linen_side.apply(renamed, X, train=False)[0], **tolerance)


@pytest.mark.parametrize("model", [nnx_model(dropout=0.5), from_linen(zoo.LinenChain(dropout=0.5))])
def test_probe_changes_nothing(model):
    variables = model.init(KEY, X)
    (loss, (state, _)), grads = loss_and_grad(model, variables)
    (watched, (watched_state, taps)), watched_grads = loss_and_grad(model, variables, EVERY)
    assert taps is not None
    equal(loss, watched)
    equal(grads, watched_grads)
    keys = {jax.dtypes.prng_key}
    plain = [a for a in jax.tree.leaves(state) if not any(jnp.issubdtype(a.dtype, k) for k in keys)]
    seen = [
        a
        for a in jax.tree.leaves(watched_state)
        if not any(jnp.issubdtype(a.dtype, k) for k in keys)
    ]
    equal(plain, seen)


def stacked(variables):
    """`zoo.Chain`'s variables as `zoo.Scanned`'s."""

    def stack(tree):
        blocks = tree.get("blocks")
        if not blocks:
            return tree
        return tree | {"blocks": jax.tree.map(lambda *b: jnp.stack(b), *blocks.values())}

    return Variables(*(stack(dict(part)) for part in variables))


def test_scan_equals_unrolled():
    unrolled, scanned = nnx_model(), nnx_model(zoo.Scanned)
    variables = unrolled.init(KEY)
    out, _, taps = unrolled.apply(variables, X, probe=EVERY)
    together = stacked(Variables(variables.params, {"blocks": variables.state["blocks"]}))
    scanned_out, _, scanned_taps = jax.jit(lambda v: scanned.apply(v, X, probe=EVERY))(together)
    equal(out, scanned_out, rtol=1e-4, atol=1e-5)
    assert scanned_taps.sites == taps.sites
    for site in taps:
        equal(taps[site], scanned_taps[site], rtol=1e-4, atol=1e-4)


def test_linen_scan_names_and_orders_its_iterations():
    model = from_linen(zoo.LinenScanned())
    variables = model.init(KEY, X)
    taps = model.apply(variables, X, probe=EVERY)[2]
    expected = tuple(f"blocks/{i}/block/{m}" for i in range(3) for m in ("linear", "norm"))
    assert taps.sites == (*expected, "head")
    np.testing.assert_allclose(taps["blocks/0/block/linear"].mean, X.mean(0), rtol=1e-5)
    assert not np.allclose(taps["blocks/1/block/linear"].mean, taps["blocks/2/block/linear"].mean)


def test_remat_is_seen_through():
    plain, remat = nnx_model(), nnx_model(zoo.Remat)
    variables = plain.init(KEY)
    _, (_, taps) = loss_and_grad(plain, variables, EVERY)[0]
    _, (_, remat_taps) = loss_and_grad(remat, variables, EVERY)[0]
    assert remat_taps.sites == taps.sites
    for site in taps:
        equal(taps[site], remat_taps[site], rtol=1e-5, atol=1e-5)


def test_repeated_calls_have_an_index_and_integers_are_passed_over():
    model = nnx_model(zoo.Twice)
    variables = model.init(KEY)
    tokens = jnp.arange(6).reshape(2, 3)
    taps = model.apply(variables, tokens, probe=EVERY)[2]
    assert taps.sites == ("layer#0", "layer#1")
    embedded = variables.params["embed"]["embedding"][tokens]
    equal(taps["layer#0"], Moments.of(embedded), rtol=1e-6)
    linen = from_linen(zoo.LinenTwice())
    assert linen.apply(linen.init(KEY, X), X, probe=EVERY)[2].sites == ("layer#0", "layer#1")


def test_subclass_that_calls_its_parent_is_seen_once():
    model = nnx_model(zoo.WithSub)
    taps = model.apply(model.init(KEY), X, probe=EVERY)[2]
    assert taps.sites == ("sub", "plain")
    equal(taps["sub"], Moments.of(X))  # its own input, not the doubled one


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (None, CHAIN_SITES),
        (nnx.BatchNorm, CHAIN_SITES[1:6:2]),
        ((nnx.BatchNorm, nnx.Dropout), (*CHAIN_SITES[1:6:2], "dropout")),
        ("blocks/1/*", CHAIN_SITES[2:4]),
        (lambda site: site.name == "head" and site.has_weights, ("head",)),
    ],
)
def test_selection(select, expected):
    model = nnx_model()
    assert model.apply(model.init(KEY), X, probe=Probe(select=select))[2].sites == expected


@pytest.mark.parametrize("model", [nnx_model(), from_linen(zoo.LinenChain())])
def test_empty_selection_lists_what_there_is(model):
    variables = model.init(KEY, X)
    with pytest.raises(InputError, match=r"matches no site.*linear.*BatchNorm.*head"):
        model.apply(variables, X, probe=Probe(select="nope"))


@pytest.mark.parametrize("model", [nnx_model(dropout=0.5), from_linen(zoo.LinenChain(dropout=0.5))])
def test_train_and_eval(model):
    variables = model.init(KEY, X)
    first, state, _ = model.apply(variables, X)
    second, _, _ = model.apply(Variables(variables.params, state), X)
    assert not np.allclose(first, second)  # another dropout mask
    again, _, _ = model.apply(variables, X)
    equal(first, again)  # pure: the same variables, the same mask
    still, kept, _ = model.apply(variables, X, train=False)
    equal(still, model.apply(variables, X, train=False)[0])
    stats = [a for a in jax.tree.leaves(kept) if a.dtype == jnp.float32]
    equal(stats, [a for a in jax.tree.leaves(variables.state) if a.dtype == jnp.float32])


def test_linen_flag_named_deterministic():
    model = from_linen(zoo.LinenTwice())
    variables = model.init(KEY, X)
    equal(model.apply(variables, X, train=False)[0], model.apply(variables, X, train=False)[0])
    assert not np.allclose(model.apply(variables, X)[0], model.apply(variables, X, train=False)[0])


def test_call_hook_for_another_signature():
    class Pair(nnx.Module):
        def __init__(self, *, rngs):
            self.layer = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, a, *, b):
            return self.layer(a + b)

    model = from_nnx(
        lambda rngs: Pair(rngs=rngs), call=lambda m, inputs, train: m(inputs["a"], b=inputs["b"])
    )
    taps = model.apply(model.init(KEY), {"a": X, "b": X}, probe=EVERY)[2]
    equal(taps["layer"], Moments.of(2 * X), rtol=1e-6)


def test_nothing_stays_behind():
    before = {t: t.__call__ for t in (nnx.Linear, nnx.BatchNorm, zoo.Block, zoo.Sub)}
    own = "__call__" in vars(zoo.Remat), "__call__" in vars(nnx.List)
    model = nnx_model()
    variables = model.init(KEY)
    model.apply(variables, X, probe=EVERY)
    with pytest.raises(TypeError):
        model.apply(variables, X[:, :3], probe=EVERY)  # fails inside the module
    assert all(t.__call__ is call for t, call in before.items())
    assert own == ("__call__" in vars(zoo.Remat), "__call__" in vars(nnx.List))


def test_two_threads_trace_at_once():
    models = [nnx_model(depth=d) for d in (1, 2, 3, 2)]
    seen = [None] * len(models)

    def work(i):
        variables = models[i].init(KEY)
        taps = jax.jit(lambda v: models[i].apply(v, X, probe=EVERY)[2])(variables)
        seen[i] = taps.sites

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(models))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert [len(s) for s in seen] == [3, 5, 7, 5]


@pytest.mark.parametrize("model", [nnx_model(), from_linen(zoo.LinenChain())])
def test_cotangents_are_gradients_at_the_sites(model):
    variables = model.init(KEY, X)
    sinks = model.cotangent_sinks(variables, X, EVERY)

    def loss(x, sinks):
        out = model.apply(variables, x, probe=EVERY, sinks=sinks)[0]
        return jnp.mean(jnp.square(out))

    at_input, moments = jax.jit(jax.grad(loss, argnums=(0, 1)))(X, sinks)
    first, head = next(iter(moments)), "head"
    first = "blocks/0/linear" if "blocks/0/linear" in moments else "blocks_0/linear"
    equal(moments[first], Moments.of(at_input), rtol=1e-5, atol=1e-8)
    out = model.apply(variables, X)[0]
    by_hand = (2 * out / out.size) @ variables.params["head"]["kernel"].T
    equal(moments[head], Moments.of(by_hand), rtol=1e-4, atol=1e-8)


def test_works_under_vmap_and_map():
    model = nnx_model()
    keys = jax.random.split(KEY, 3)
    lanes = jax.vmap(model.init)(keys)

    def one(variables):
        return model.apply(variables, X, probe=EVERY)[2]["head"].mean

    side = jax.vmap(one)(lanes)
    turn = jax.lax.map(one, lanes)
    alone = jnp.stack([one(model.init(key)) for key in keys])
    np.testing.assert_allclose(side, alone, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(turn, alone, rtol=1e-4, atol=1e-6)


def test_wrong_input():
    with pytest.raises(InputError, match="factory returned .*: wanted a function from nnx.Rngs"):
        from_nnx(lambda rngs: 3)
    with pytest.raises(InputError, match="got type.*linen module instance"):
        from_linen(zoo.LinenChain)
    model = nnx_model()
    variables = model.init(KEY)
    with pytest.raises(InputError, match="not belong to Chain: Chain has blocks/0/linear/bias"):
        model.apply(Variables({"head": variables.params["head"]}, variables.state), X)


def test_probe_is_checked_at_birth():
    for bad, message in (
        ({"every": 0}, "every is 0"),
        ({"stats": ()}, "stats is empty"),
        ({"stats": ("mean",)}, "unknown statistic 'mean'"),
    ):
        with pytest.raises(InputError, match=message):
            Probe(**bad)
