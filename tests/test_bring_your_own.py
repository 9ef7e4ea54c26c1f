"""Public-style models, unmodified: their sites, statistics, gradients and training steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import public_models as zoo
import pytest
from flax import nnx

from ici.adapt import Variables, from_linen, from_nnx
from ici.engine.step import init_train_state, make_train_step
from ici.measure import Moments
from ici.probe import Probe

KEY = jax.random.key(0)
PROBE = Probe()


def nnx_model(module, **settings):
    return from_nnx(lambda rngs: module(rngs=rngs, **settings))


GRU = ("ir", "hr", "iz", "hz", "in", "hn")
MODELS = {
    "resnet": (lambda: from_linen(zoo.ResNet()), zoo.images, zoo.resnet_sites()),
    "transformer": (
        lambda: nnx_model(zoo.Transformer, dropout=0.2),
        zoo.tokens,
        zoo.transformer_sites(),
    ),
    "convnet": (lambda: nnx_model(zoo.GroupNormConvNet), zoo.images, zoo.CONVNET_SITES),
    "lstm": (
        lambda: nnx_model(zoo.LSTMClassifier),
        zoo.series,
        (*(f"rnn/cell/dense_{m}#{t}" for t in range(4) for m in "ih"), "head"),
    ),
    "gru": (
        lambda: from_linen(zoo.LinenGRU()),
        zoo.series,
        (*(f"GRUCell_0/{m}#{t}" for t in range(4) for m in GRU), "head"),
    ),
}


@pytest.fixture(scope="module", params=list(MODELS))
def case(request):
    make, inputs, sites = MODELS[request.param]
    model, x = make(), inputs()
    return model, model.init(KEY, x), x, sites


def plain(leaf):
    """Random keys as the numbers that they are."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def equal(a, b, **tolerance):
    a, b = jax.tree.map(plain, (a, b))
    check = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
    jax.tree.map(lambda p, q: check(p, q, **tolerance), a, b)


def test_sites_come_in_execution_order(case):
    model, variables, x, sites = case
    assert model.taps_shape(variables, x, PROBE).sites == sites


@pytest.mark.slow
def test_outputs_and_gradients_are_the_same_bits_with_and_without_a_probe(case):
    model, variables, x, _ = case

    def run(probe):
        def loss(params):
            out, state, taps = model.apply(Variables(params, variables.state), x, probe=probe)
            return jnp.mean(jnp.square(out)), (out, taps)

        return jax.value_and_grad(loss, has_aux=True)(variables.params)

    # Operation by operation, so that no compiler decides anew for another program.
    (loss, (out, _)), grads = run(None)
    (watched_loss, (watched_out, taps)), watched_grads = run(PROBE)
    assert taps is not None
    equal((loss, out, grads), (watched_loss, watched_out, watched_grads))


@pytest.mark.slow
def test_a_training_step(case):
    model, variables, x, sites = case
    n_classes = jax.eval_shape(lambda: model.apply(variables, x)[0]).shape[-1]
    targets = x if jnp.issubdtype(x.dtype, jnp.integer) else jnp.arange(len(x)) % n_classes
    probe = Probe(every=2, cotangents=True)
    step = make_train_step(model, optax.adam(1e-2), probe=probe)
    state = init_train_state(model, optax.adam(1e-2), KEY, x)
    losses = []
    for i in range(4):
        state, metrics = step(state, (x, targets))
        losses.append(float(metrics.loss))
        assert (metrics.taps is not None) == (i % 2 == 0)
        if metrics.taps is not None:
            assert metrics.taps.sites == sites and set(metrics.taps.cotangents) == set(sites)
            assert all(np.isfinite(m.std).all() for m in metrics.taps.values())
    assert losses[-1] < losses[0]


# -- statistics against forward passes written down once more -----------------------------------


@pytest.mark.slow
def test_resnet_statistics():
    model, x = from_linen(zoo.ResNet()), zoo.images()
    variables = model.init(KEY, x)
    params, taps = variables.params, model.apply(variables, x, probe=PROBE)[2]
    seen: dict[str, Moments] = {}

    def conv(name, h, kernel, strides=1):
        seen[name] = Moments.of(h)
        return jax.lax.conv_general_dilated(
            h, kernel, (strides, strides), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def norm(name, h, p):
        seen[name] = Moments.of(h)
        h = (h - h.mean((0, 1, 2))[None, None, None]) / jnp.sqrt(
            h.var((0, 1, 2))[None, None, None] + 1e-5
        )
        return h * p["scale"][None, None, None] + p["bias"][None, None, None]

    h = conv("conv_init", x, params["conv_init"]["kernel"])
    h = jax.nn.relu(norm("bn_init", h, params["bn_init"]))
    for i in range(2):
        b, p = f"ResidualBlock_{i}", params[f"ResidualBlock_{i}"]
        y = conv(f"{b}/Conv_0", h, p["Conv_0"]["kernel"], 1 + i)
        y = jax.nn.relu(norm(f"{b}/BatchNorm_0", y, p["BatchNorm_0"]))
        y = conv(f"{b}/Conv_1", y, p["Conv_1"]["kernel"])
        y = norm(f"{b}/BatchNorm_1", y, p["BatchNorm_1"])
        if i:
            h = conv(f"{b}/conv_proj", h, p["conv_proj"]["kernel"], 2)
            h = norm(f"{b}/norm_proj", h, p["norm_proj"])
        h = jax.nn.relu(h + y)
    seen["Dense_0"] = Moments.of(h.mean((1, 2)))
    assert tuple(seen) == taps.sites
    # Sums of up to 8 * 36 values in another order, through a dozen layers.
    equal(dict(taps), seen, rtol=2e-4, atol=2e-4)


def _norm(h, p):
    h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6)
    return h * p["scale"][None, None] + p["bias"][None, None]


@pytest.mark.slow
def test_transformer_statistics():
    model, tokens = nnx_model(zoo.Transformer), zoo.tokens()
    variables = model.init(KEY)
    p, taps = variables.params, model.apply(variables, tokens, probe=PROBE)[2]
    x = p["embed"]["embedding"][tokens]
    seen: dict[str, Moments] = {}
    causal = jnp.tril(jnp.ones((6, 6), bool))[None, None]
    for i in range(3):
        b = jax.tree.map(lambda a, i=i: a[i], p["blocks"])

        def note(name, h, i=i):
            seen[f"blocks/{i}/{name}"] = Moments.of(h)
            return h

        h = _norm(note("norm1", x), b["norm1"])
        heads = []
        for name in ("query", "key", "value"):
            w = b["attn"][name]
            heads.append(
                jnp.einsum("btd,dhk->bthk", note(f"attn/{name}", h), w["kernel"])
                + w["bias"][None, None]
            )
        logits = jnp.einsum("bthk,bshk->bhts", heads[0], heads[1]) / 2.0
        weights = jax.nn.softmax(jnp.where(causal, logits, -jnp.inf))
        h = note("attn/out", jnp.einsum("bhts,bshk->bthk", weights, heads[2]))
        out = b["attn"]["out"]
        x = x + jnp.einsum("bthk,hkd->btd", h, out["kernel"]) + out["bias"][None, None]
        h = _norm(note("norm2", x), b["norm2"])
        h = jax.nn.gelu(note("up", h) @ b["up"]["kernel"] + b["up"]["bias"][None, None])
        x = x + note("down", h) @ b["down"]["kernel"] + b["down"]["bias"][None, None]
    seen["norm"] = Moments.of(x)
    seen["head"] = Moments.of(_norm(x, p["norm"]))
    assert tuple(seen) == taps.sites
    equal(dict(taps), seen, rtol=2e-4, atol=2e-4)


def test_convnet_statistics():
    model, x = nnx_model(zoo.GroupNormConvNet), zoo.images()
    variables = model.init(KEY)
    p, taps = variables.params, model.apply(variables, x, probe=PROBE)[2]

    def conv(h, w, stride):
        h = jax.lax.conv_general_dilated(
            h, w["kernel"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return h + w["bias"][None, None, None]

    def norm(h, w):
        g = h.reshape(*h.shape[:3], 2, -1)
        g = (g - g.mean((1, 2, 4), keepdims=True)) / jnp.sqrt(
            g.var((1, 2, 4), keepdims=True) + 1e-6
        )
        return g.reshape(h.shape) * w["scale"][None, None, None] + w["bias"][None, None, None]

    layers = p["layers"]["layers"]
    a = conv(x, p["stem"], 1)
    b = jax.nn.relu(norm(a, layers[0]))
    c = conv(b, layers[2], 2)
    d = jax.nn.relu(norm(c, layers[3])).mean((1, 2))
    seen = dict(zip(zoo.CONVNET_SITES, map(Moments.of, (x, a, b, c, d)), strict=True))
    equal(dict(taps), seen, rtol=2e-4, atol=2e-4)


def test_lstm_statistics():
    model, x = nnx_model(zoo.LSTMClassifier), zoo.series()
    variables = model.init(KEY)
    cell, taps = variables.params["rnn"]["cell"], model.apply(variables, x, probe=PROBE)[2]
    c = h = jnp.zeros((len(x), 4))
    for t in range(x.shape[1]):
        equal(taps[f"rnn/cell/dense_i#{t}"], Moments.of(x[:, t]), rtol=1e-5, atol=1e-5)
        equal(taps[f"rnn/cell/dense_h#{t}"], Moments.of(h), rtol=2e-4, atol=2e-5)
        gates = x[:, t] @ cell["dense_i"]["kernel"] + h @ cell["dense_h"]["kernel"]
        gates = gates + cell["dense_h"]["bias"][None]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
    equal(taps["head"], Moments.of(h), rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_scanned_and_unrolled_transformers_have_the_same_taps():
    scanned, unrolled = nnx_model(zoo.Transformer), nnx_model(zoo.Transformer, scan=False)
    variables, tokens = unrolled.init(KEY), zoo.tokens()
    blocks = variables.params["blocks"].values()
    params = variables.params | {"blocks": jax.tree.map(lambda *b: jnp.stack(b), *blocks)}
    state = scanned.init(KEY).state
    probe = Probe(stats=("moments", "attention", "output_logits"))
    expected = unrolled.apply(variables, tokens, probe=probe)[2]
    taps = scanned.apply(Variables(params, state), tokens, probe=probe)[2]
    assert taps.sites == expected.sites and "blocks/2/attn/attention" in taps.sites
    assert [s.row for s in taps.watched if s.name.startswith("blocks/2/")] == [2] * 9
    for site in taps:
        equal(taps[site], expected[site], rtol=1e-4, atol=1e-4)


# -- conventions of older and larger models -----------------------------------------------------


@pytest.mark.slow
def test_a_mapped_axis_that_a_linen_module_names_is_the_whole_batch():
    plain, named = from_linen(zoo.ResNet()), from_linen(zoo.ResNet(axis_name="batch"))
    x = zoo.images(4, 4)
    variables = plain.init(KEY, x)
    for train, probe in ((True, PROBE), (False, None)):
        expected = plain.apply(variables, x, train=train, probe=probe)
        got = named.apply(variables, x, train=train, probe=probe)
        equal(expected[:2], got[:2])
        if probe:
            assert got[2].sites == zoo.resnet_sites()
            equal(dict(expected[2]), dict(got[2]))
    equal(named.init(KEY, x), variables)


class NamedAxis(nnx.Module):
    def __init__(self, axis_name, *, rngs):
        self.a = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, axis_name=axis_name, rngs=rngs)
        self.axis_name = axis_name

    def __call__(self, x):
        x = self.norm(self.a(x))
        return x if self.axis_name is None else x + jax.lax.axis_index(self.axis_name)


def test_a_mapped_axis_that_an_nnx_module_names():
    x = zoo.series()[:, 0]
    plain, named = nnx_model(NamedAxis, axis_name=None), nnx_model(NamedAxis, axis_name="replicas")
    variables = plain.init(KEY)
    grads = []
    for model in (plain, named):

        def loss(params, model=model):
            out, state, taps = model.apply(Variables(params, variables.state), x, probe=PROBE)
            return jnp.sum(jnp.sin(out)), (out, state, dict(taps), taps.sites)

        aux_and_grads = jax.jit(jax.grad(lambda p, f=loss: f(p)[0]))(variables.params)
        grads.append((aux_and_grads, loss(variables.params)[1]))
    equal(*([g, *aux[:3]] for g, aux in grads))
    assert grads[1][1][3] == ("a", "norm")


def test_bfloat16_compute_has_float32_statistics():
    class Half(nnx.Module):
        def __init__(self, *, rngs):
            half = jnp.bfloat16
            self.a = nnx.Linear(3, 8, dtype=half, param_dtype=jnp.float32, rngs=rngs)
            self.b = nnx.Linear(8, 2, dtype=half, param_dtype=half, rngs=rngs)

        def __call__(self, x):
            return self.b(self.a(x.astype(jnp.bfloat16) + 100))

    model, x = nnx_model(Half), zoo.series()
    variables = model.init(KEY)
    taps = model.apply(variables, x, probe=Probe(stats=("moments", "extremes")))[2]
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(taps))
    values = np.asarray(x.astype(jnp.bfloat16) + 100).astype(np.float64).reshape(-1, 3)
    # The values are what bfloat16 holds; their statistics are exact to float32.
    np.testing.assert_allclose(taps["a"].mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(taps["a"].std, values.std(0), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_frozen_parameters_do_not_change_and_the_others_do(name):
    make, inputs, _ = MODELS[name]
    model, x = make(), inputs()
    variables = model.init(KEY, x)
    frozen = list(variables.params)[0]
    labels = {
        name: jax.tree.map(lambda _, name=name: "frozen" if name == frozen else "trained", part)
        for name, part in variables.params.items()
    }
    optimizer = optax.partition(
        {"trained": optax.adam(1e-2), "frozen": optax.set_to_zero()}, labels
    )
    state = init_train_state(model, optimizer, KEY, x)
    before = jax.tree.map(np.asarray, state.params)
    step = make_train_step(model, optimizer, probe=PROBE)
    for _ in range(2):
        state, _ = step(state, (x, x if name == "transformer" else jnp.zeros(len(x), int)))
    for part, old in before.items():
        moved = [
            bool((a != b).any())
            for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(state.params[part]), strict=True)
        ]
        assert not any(moved) if part == frozen else any(moved), part
