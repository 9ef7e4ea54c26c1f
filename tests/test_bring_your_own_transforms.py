"""Layers inside every transformation, attention wherever it is called, and outputs."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import FLAT, KEY, X, equal, linen_model, nnx_model
from flax import nnx

from ici.adapt import from_nnx
from ici.errors import InputError
from ici.measure import Attention, Moments, OutputLogits
from ici.probe import Probe

# -- transformations ----------------------------------------------------------------------------


class Cell(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(3, name="dense")(x)), None


class PlainScan(nn.Module):
    """A scan as it is usually written: only parameters are stacked."""

    axis: int = 0

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            nn.remat(Cell),
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=3,
        )
        return nn.Dense(2, name="head")(scan(name="stack")(x, None)[0])


@pytest.mark.parametrize("axis", [0, 1])
def test_a_linen_scan_needs_no_collection_of_ours(axis):
    model, variables = linen_model(PlainScan(axis))
    taps = model.apply(variables, FLAT, probe=Probe())[2]
    assert taps.sites == (*(f"stack/{i}/dense" for i in range(3)), "head")
    assert [(s.path, s.row) for s in taps.watched[:2]] == [(("stack", "dense"), i) for i in (0, 1)]
    x, p = FLAT, variables.params["stack"]["dense"]
    for i in range(3):
        equal(taps[f"stack/{i}/dense"], Moments.of(x), rtol=1e-5, atol=1e-5)
        x = jax.nn.relu(x @ jnp.take(p["kernel"], i, axis) + jnp.take(p["bias"], i, axis)[None])
    equal(taps["head"], Moments.of(x), rtol=1e-4, atol=1e-5)


class Ensemble(nn.Module):
    @nn.compact
    def __call__(self, x):
        members = nn.vmap(
            Cell,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=2,
        )
        x, _ = members(name="members")(x, None)
        over_batch = nn.vmap(nn.Dense, variable_axes={"params": None}, split_rngs={"params": False})
        return over_batch(2, name="shared")(x)


def test_mapped_models_are_rows_and_mapped_batches_are_pooled():
    model, variables = linen_model(Ensemble())
    taps = model.apply(variables, FLAT, probe=Probe(select="*dense"))[2]
    assert taps.sites == ("members/0/dense", "members/1/dense")
    equal(taps["members/1/dense"], Moments.of(FLAT), rtol=1e-6)
    pooled = model.apply(variables, FLAT, probe=Probe())[2]["shared"]
    assert pooled.count == 2 * len(FLAT)


class NnxEnsemble(nnx.Module):
    def __init__(self, *, rngs):
        @nnx.split_rngs(splits=2)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs):
            return nnx.Linear(3, 3, rngs=rngs)

        self.first, self.second = stack(rngs), stack(rngs)

    def __call__(self, x):
        ensemble = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))
        x = nnx.relu(ensemble(self.first, x))
        return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, 0))(self.second, x)


def test_nnx_models_side_by_side():
    model, variables = nnx_model(NnxEnsemble)
    out, _, taps = model.apply(variables, FLAT, probe=Probe(cotangents=True))
    np.testing.assert_array_equal(out, model.apply(variables, FLAT)[0])
    assert taps.sites == ("first/0", "first/1", "second/0", "second/1")
    p = variables.params["first"]
    hidden = jax.nn.relu(jnp.einsum("nd,mdk->mnk", FLAT, p["kernel"]) + p["bias"][:, None])
    for m in range(2):
        equal(taps[f"first/{m}"], Moments.of(FLAT), rtol=1e-6)
        equal(taps[f"second/{m}"], Moments.of(hidden[m]), rtol=1e-4, atol=1e-5)


class ScannedTwice(nnx.Module):
    def __init__(self, *, rngs):
        @nnx.split_rngs(splits=2)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs):
            return nnx.Linear(3, 3, rngs=rngs)

        self.stack, self.between = stack(rngs), nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        run = nnx.scan(
            lambda x, layer: jnp.tanh(layer(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
        )
        again = nnx.scan(
            lambda x, layer: jnp.tanh(layer(x)),
            in_axes=(nnx.Carry, 0),
            out_axes=nnx.Carry,
            reverse=True,
        )
        return again(self.between(run(x, self.stack)), self.stack)


def test_a_stack_scanned_twice_once_backwards_is_in_execution_order():
    model, variables = nnx_model(ScannedTwice)
    taps = model.apply(variables, FLAT, probe=Probe())[2]
    assert taps.sites == ("stack/0#0", "stack/1#0", "between", "stack/1#1", "stack/0#1")
    x, p = FLAT, variables.params
    for site in taps:
        equal(taps[site], Moments.of(x), rtol=1e-4, atol=1e-5)
        layer = (
            p["between"]
            if site == "between"
            else jax.tree.map(lambda a, site=site: a[int(site[6])], p["stack"])
        )
        x = x @ layer["kernel"] + layer["bias"][None]
        x = x if site == "between" else jnp.tanh(x)


STATS = ("moments", "extremes", "attention", "output_logits")


INNER = nn.Dense(3)
jitted_apply = jax.jit(INNER.apply)


class AppliesAnother(nn.Module):
    @nn.compact
    def __call__(self, x):
        params = self.param("inner", lambda key: INNER.init(key, x))
        return nn.Dense(2, name="head")(jitted_apply(params, x))


def test_a_trace_that_jax_kept_from_before_hides_nothing():
    model, variables = linen_model(AppliesAnother())
    model.apply(variables, FLAT)  # JAX keeps the trace of the inner jit, without tags
    probe = Probe(select="Dense")
    equal(model.apply(variables, FLAT, probe=probe)[2]["Dense"], Moments.of(FLAT), rtol=1e-6)


# -- attention and output -----------------------------------------------------------------------


class NnxAttends(nnx.Module):
    def __init__(self, how, *, rngs):
        self.qkv = nnx.Linear(3, 24, rngs=rngs)
        self.how = how

    def __call__(self, x):
        q, k, v = jnp.split(self.qkv(x).reshape(*x.shape[:-1], 2, 12), 3, axis=-1)
        return self.how(q, k, v).reshape(*x.shape[:-1], 8)


held = jax.nn.dot_product_attention
ORIGINALS = (jax.nn.dot_product_attention, nnx.dot_product_attention, nn.dot_product_attention)


class LinenAttends(nn.Module):
    @nn.compact
    def __call__(self, x):
        q, k, v = jnp.split(nn.Dense(24, name="qkv")(x).reshape(*x.shape[:-1], 2, 12), 3, axis=-1)
        return nn.dot_product_attention(q, k, v).reshape(*x.shape[:-1], 8)


HOW = {
    "jax": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True, scale=0.3),
    "held": lambda q, k, v: held(q, k, v, is_causal=True, scale=0.3),
    "nnx": lambda q, k, v: nnx.dot_product_attention(q, k, v),
    "per example": lambda q, k, v: jax.vmap(nnx.dot_product_attention)(q, k, v),
}


@pytest.mark.parametrize("how", [*HOW, "linen"])
def test_direct_calls_of_attention_are_watched(how):
    if how == "linen":
        model, variables = linen_model(LinenAttends(), X)
    else:
        model, variables = nnx_model(NnxAttends, how=HOW[how])
    probe = Probe(stats=("attention", "moments"))
    out, _, taps = model.apply(variables, X, probe=probe)
    np.testing.assert_array_equal(out, model.apply(variables, X)[0])
    assert taps.sites == ("qkv", "attention") and list(taps.stat("attention")) == ["attention"]
    p = variables.params["qkv"]
    qkv = (X @ p["kernel"] + p["bias"][None, None]).reshape(5, 4, 2, 12)
    settings = {"is_causal": True, "scale": 0.3} if how in ("jax", "held") else {}
    expected = Attention.of(qkv[..., :4], qkv[..., 4:8], **settings)
    equal(taps["attention"], expected, rtol=1e-4, atol=1e-5)
    assert taps["attention"].count.tolist() == [20, 20]
    # Nothing stays behind.
    now = (jax.nn.dot_product_attention, nnx.dot_product_attention, nn.dot_product_attention)
    assert all(a is b for a, b in zip((*now, held), (*ORIGINALS, ORIGINALS[0]), strict=True))


@pytest.mark.parametrize("how", ["jax", "per example"])
def test_queries_that_a_mask_leaves_out_do_not_count(how):
    model, variables = nnx_model(NnxAttends, how=HOW[how])
    keep = jnp.arange(4)[None] < jnp.array([1, 2, 3, 4, 4])[:, None]
    probe = Probe(stats=("attention",), mask=lambda x: keep)
    taps = model.apply(variables, X, probe=probe)[2]
    assert taps["attention"].count.tolist() == [14, 14]


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(x[..., 0])
        for i in range(2):
            x = x + nn.MultiHeadDotProductAttention(2, qkv_features=4, name=f"attn_{i}")(
                nn.LayerNorm(name=f"norm_{i}")(x), mask=mask
            )
        return nn.Dense(3, name="head")(x)


@pytest.mark.slow
def test_linen_attention_layers_and_the_output():
    model, variables = linen_model(LinenTransformer(), X)
    out, _, taps = model.apply(variables, X, probe=Probe(select="head", stats=STATS))
    assert taps.sites == ("attn_0/attention", "attn_1/attention", "head", "output")
    assert taps.watched[0].where == "attention" and taps.watched[-1].where == "output"
    equal(taps["output"], OutputLogits.of(out), rtol=1e-6)
    p = variables.params
    x = X
    h = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    q, k = (jnp.einsum("btd,dhk->bthk", h, p["attn_0"][m]["kernel"]) for m in ("query", "key"))
    equal(taps["attn_0/attention"], Attention.of(q, k, is_causal=True), rtol=1e-3, atol=1e-4)


def test_attention_and_output_that_are_not_there():
    model, variables = linen_model(PlainScan())
    with pytest.raises(InputError, match="has attention and the model calls no attention"):
        model.apply(variables, FLAT, probe=Probe(stats=("moments", "attention")))
    pair = from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs), call=lambda m, x, train: (m(x), x))
    its = pair.init(KEY)
    taps = pair.apply(its, FLAT, probe=Probe(stats=("moments", "output_logits")))[2]
    assert "returns tuple" in taps.unwatched["output"]
    with pytest.raises(InputError, match="output cannot be watched: the model returns tuple"):
        pair.apply(its, FLAT, probe=Probe(stats=("output_logits",)))


def test_the_part_of_a_probe_that_is_for_every_step():
    probe = Probe(select="head", stats=("moments", "effective_rank"), every=3)
    part = probe.step_part()
    assert part == Probe(select="head", every=3)
    assert part.step_part() is part
    assert Probe(stats=("effective_rank",)).step_part() is None
