"""What cannot be watched and why, masks, and input that does not fit."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import public_models as zoo
import pytest
from building import FLAT, KEY, X, equal, linen_model, nnx_model
from flax import nnx

from ici.adapt import Variables, check_same_model, from_linen
from ici.engine.step import init_train_state, make_train_step
from ici.errors import InputError
from ici.measure import Moments
from ici.probe import Probe

# -- what cannot be watched ---------------------------------------------------------------------


class Awkward(nnx.Module):
    def __init__(self, *, rngs):
        self.embed = nnx.Embed(11, 3, rngs=rngs)
        self.sometimes = nnx.Linear(3, 3, rngs=rngs)
        self.until = nnx.Linear(3, 3, rngs=rngs)
        self.never = nnx.Linear(3, 3, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = nnx.cond(x.sum() > 0, lambda m, x: m(x), lambda m, x: x, self.sometimes, x)
        x = nnx.while_loop(
            lambda c: c[2] < 2, lambda c: (c[0], c[0](c[1]), c[2] + 1), (self.until, x, 0)
        )[1]
        return self.head(x)


class LinenAwkward(nn.Module):
    def setup(self):
        self.embed = nn.Embed(11, 3)
        self.sometimes = nn.Dense(3)
        self.never = nn.Dense(3)
        self.head = nn.Dense(2)

    def __call__(self, tokens):
        x = self.embed(tokens)
        if self.is_initializing():
            self.never(x)
        branch = self.sometimes(x) if self.is_initializing() else x
        x = nn.cond(jnp.sum(x) > 0, lambda m, x: m.sometimes(x), lambda m, x: x, self, branch)
        return self.embed.attend(x) + self.head(x).sum()


REASONS = {
    "embed": "its input is int32",
    "sometimes": "inside a condition",
    "until": "inside a while loop",
    "never": "never calls it",
}


@pytest.mark.parametrize(
    "make", [lambda: nnx_model(Awkward), lambda: linen_model(LinenAwkward(), zoo.tokens())]
)
def test_layers_that_cannot_be_watched_are_named_with_the_reason(make):
    model, variables = make()
    tokens = zoo.tokens()
    out, _, taps = jax.jit(lambda v: model.apply(v, tokens, probe=Probe()))(variables)
    assert taps.sites == ("head",)
    expected = {k: v for k, v in REASONS.items() if k in variables.params}
    assert taps.unwatched.keys() == expected.keys()
    assert all(reason in taps.unwatched[name] for name, reason in expected.items())
    np.testing.assert_array_equal(out, jax.jit(lambda v: model.apply(v, tokens)[0])(variables))
    for name, reason in expected.items():
        with pytest.raises(InputError, match=rf"cannot be watched: {name} \(.*{reason}"):
            model.taps_shape(variables, tokens, Probe(select=name))
    assert model.taps_shape(variables, tokens, Probe(select="head")).unwatched == {}


# -- signatures and losses ---------------------------------------------------------------------


class TwoTowers(nn.Module):
    @nn.compact
    def __call__(self, query, *, document, scale=None, deterministic=True):
        shared = nn.Dense(4, name="shared")
        q, d = shared(query), shared(document["text"])
        return jnp.sum(q * d, axis=-1, keepdims=True) * (1.0 if scale is None else scale)


def test_several_inputs_by_position_and_keyword_and_a_loss_of_the_models_own():
    model = from_linen(
        TwoTowers(),
        call=lambda m, batch, train: m(batch[0], document=batch[1], deterministic=not train),
        loss=lambda out, target: jnp.mean(jnp.abs(out - target)),
    )
    x = FLAT
    inputs = (x, {"text": x + 1})
    state = init_train_state(model, optax.sgd(0.1), KEY, inputs)
    variables = Variables(state.params, state.state)
    expected = float(jnp.mean(jnp.abs(model.apply(variables, inputs)[0] - 2.0)))
    _, metrics = make_train_step(model, optax.sgd(0.1), probe=Probe())(state, (inputs, 2.0))
    np.testing.assert_allclose(metrics.loss, expected, rtol=1e-6)
    assert metrics.taps.sites == ("shared#0", "shared#1")
    equal(metrics.taps["shared#1"], Moments.of(x + 1), rtol=1e-5)


# -- masks --------------------------------------------------------------------------------------


class Padded(nnx.Module):
    def __init__(self, *, rngs):
        self.embed = nnx.Embed(11, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, tokens):
        keep = tokens != 0
        x = self.norm(self.embed(tokens))
        x = self.attn(x, mask=nnx.make_attention_mask(keep, keep)) * keep[..., None]
        return self.head(x.sum(axis=1))


def not_padding(tokens):
    return tokens != 0


STATS = ("moments", "extremes", "attention", "output_logits")


@pytest.mark.slow
def test_padding_never_counts():
    model, variables = nnx_model(Padded)
    short = zoo.tokens()
    padded = jnp.pad(short, ((0, 0), (0, 3)))
    probe = Probe(stats=STATS, mask=not_padding, cotangents=True)
    expected = model.apply(variables, short, probe=Probe(stats=STATS))[2]
    taps = model.apply(variables, padded, probe=probe)[2]
    assert taps.sites == expected.sites
    for site in taps:
        for a, b in zip(
            taps.readings[site].values(), expected.readings[site].values(), strict=True
        ):
            equal(a, b, rtol=1e-4, atol=1e-5)
    without = model.apply(variables, padded, probe=Probe())[2]
    assert without["norm"].count > taps["norm"].count == short.size


@pytest.mark.slow
def test_masked_cotangents_count_what_the_mask_leaves():
    model, variables = nnx_model(Padded)
    padded = jnp.pad(zoo.tokens(), ((0, 0), (0, 3)))
    probe = Probe(select="norm", mask=not_padding, cotangents=True)
    sinks = model.cotangent_sinks(variables, padded, probe)
    moments = jax.grad(
        lambda s: jnp.sum(jnp.sin(model.apply(variables, padded, probe=probe, sinks=s)[0]))
    )(sinks)
    assert moments["norm"].count == zoo.tokens().size


def test_a_recurrent_scan_under_a_mask_is_refused_and_the_rest_is_masked():
    model, variables = nnx_model(zoo.LSTMClassifier)
    probe = Probe(select="*", mask=lambda x: jnp.arange(4)[None] < jnp.arange(1, 6)[:, None])
    taps = model.apply(variables, X, probe=probe)[2]
    assert "rnn/cell/dense_i" in taps.unwatched
    assert "padding would count" in taps.unwatched["rnn/cell/dense_i"]
    assert taps["rnn"].count == 1 + 2 + 3 + 4 + 4 and taps["head"].count == 5


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda x: jnp.ones((7, 7), bool), r"mask of shape \(7, 7\) fits no site, such as a of"),
        (lambda x: jnp.ones((5, 4)), "mask gave float32.*wanted bool"),
        (lambda x: None, "mask gave NoneType: wanted bool"),
    ],
)
def test_masks_that_do_not_fit(mask, message):
    class Net(nnx.Module):
        def __init__(self, *, rngs):
            self.a = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.a(x)

    model, variables = nnx_model(Net)
    with pytest.raises(InputError, match=message):
        model.apply(variables, X, probe=Probe(mask=mask))


def test_a_mask_that_removes_everything_leaves_nothing_to_count():
    model, variables = nnx_model(Padded)
    probe = Probe(select="norm", mask=lambda tokens: jnp.zeros(tokens.shape, bool))
    moments = model.apply(variables, zoo.tokens(), probe=probe)[2]["norm"]
    assert moments.count == 0 and np.isnan(moments.mean).all()


def test_a_statistic_that_knows_no_mask_says_so():
    class Bare:
        @classmethod
        def of(cls, x):
            return Moments.of(x)

    model, variables = nnx_model(Padded)
    taps = model.apply(variables, zoo.tokens(), probe=Probe(stats=(Bare, "moments")))[2]
    equal(taps.stat("bare")["head"], taps.stat("moments")["head"])
    with pytest.raises(InputError, match="'bare' has no mask parameter"):
        Probe(stats=(Bare,), mask=not_padding)


class Cell(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(3, name="dense")(x)), None


class PlainScan(nn.Module):
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Cell, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(2, name="head")(scan(name="stack")(x, None)[0])


# -- input that does not fit --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_parameters_of_another_shape_or_name_are_refused_by_name(kind):
    if kind == "nnx":
        make = lambda: nnx_model(zoo.GroupNormConvNet)  # noqa: E731
        (model, variables), x, layer = make(), zoo.images(), "head"
    else:
        (model, variables), x, layer = (
            linen_model(zoo.ResNet(), zoo.images()),
            zoo.images(),
            "Dense_0",
        )
    params = variables.params
    wider = params | {layer: params[layer] | {"bias": jnp.zeros(9)}}
    message = rf"not belong to .*: {layer}/bias is \(9,\) in what is given and \(3,\) in "
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda: model.apply(Variables(wider, variables.state), x))
    fewer = {k: v for k, v in params.items() if k != layer}
    more = params | {"extra": jnp.zeros(2)}
    for given, message in ((fewer, f"has {layer}/bias, which what"), (more, "has extra, which")):
        with pytest.raises(InputError, match=message):
            model.apply(Variables(given, variables.state), x)


def test_variables_of_two_models_do_not_compare():
    a = linen_model(PlainScan())[1]
    check_same_model(a, jax.tree.map(jnp.copy, a))
    wider = a.params | {"head": {"bias": jnp.zeros(2), "kernel": jnp.zeros((4, 2))}}
    with pytest.raises(
        InputError, match=r"head/kernel is \(3, 2\) in before and \(4, 2\) in after"
    ):
        check_same_model(a, Variables(wider, a.state))
    with pytest.raises(InputError, match="of different models: before has .*after has not"):
        check_same_model(a, Variables({"stack": a.params["stack"]}, a.state))


@pytest.mark.parametrize(
    ("loss", "seen"),
    [
        (lambda out, y: jnp.square(out - y[:, None]), r"shape \(5, 2\)"),
        (lambda out, y: (jnp.mean(out), {}), "type tuple"),
    ],
)
def test_a_loss_that_is_not_a_scalar_is_refused_before_any_compute(loss, seen):
    model, _ = linen_model(PlainScan())
    state = init_train_state(model, optax.sgd(0.1), KEY, FLAT)
    with pytest.raises(InputError, match=f"loss of {seen}: wanted loss"):
        make_train_step(model, optax.sgd(0.1), loss)(state, (FLAT, jnp.zeros(5)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
