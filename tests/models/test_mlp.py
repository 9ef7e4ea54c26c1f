"""The MLP against float64 NumPy, and what every variant must share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ici.adapt import Variables, from_nnx
from ici.engine.step import cross_entropy, gradients
from ici.errors import InputError
from ici.measure import Moments
from ici.models import InputSpec, MLPConfig
from ici.optimizers import Optimizer
from ici.probe import Probe

NORMS = ("none", "batch", "layer", "rms")
TEXT = InputSpec((12,), 100, 2)
VECTORS = InputSpec((6,), None, 3)
KEY = jax.random.key(0)


def mlp(norm="none", depth=3, spec=VECTORS, **config):
    return from_nnx(MLPConfig(**({"width": 8} | config)).build(norm, depth, spec))


def tokens(n=64, seed=0):
    return jax.random.randint(jax.random.key(seed), (n, 12), 1, 100)


def numpy_loss_and_grads(params, x, y, norm):
    """Forward and backward by hand, in float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    h, tape = np.asarray(x, np.float64), []
    for i in sorted(p["blocks"]):
        linear = p["blocks"][i]["linear"]
        z = h @ linear["kernel"] + linear.get("bias", 0)
        if norm == "batch":
            scale = 1 / np.sqrt(z.var(0) + 1e-5)
            unit = (z - z.mean(0)) * scale
            gamma = p["blocks"][i]["norm"]["scale"]
            a = gamma * unit + p["blocks"][i]["norm"]["bias"]
            tape.append((h, a, unit, scale, gamma))
        else:
            a = z
            tape.append((h, a, None, None, None))
        h = np.maximum(a, 0)
    logits = h @ p["head"]["kernel"] + p["head"]["bias"]
    shifted = logits - logits.max(1, keepdims=True)
    probability = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    n = len(y)
    loss = -np.log(probability[np.arange(n), y]).mean()
    d = probability
    d[np.arange(n), y] -= 1
    d /= n
    grads = {"head": {"kernel": h.T @ d, "bias": d.sum(0)}, "blocks": {}}
    d = d @ p["head"]["kernel"].T
    for i in sorted(p["blocks"], reverse=True):
        h, a, unit, scale, gamma = tape[i]
        d = d * (a > 0)
        block = {}
        if norm == "batch":
            block["norm"] = {"scale": (d * unit).sum(0), "bias": d.sum(0)}
            d = d * gamma
            d = scale * (d - d.mean(0) - unit * (d * unit).mean(0))
        block["linear"] = {"kernel": h.T @ d}
        if "bias" in p["blocks"][i]["linear"]:
            block["linear"]["bias"] = d.sum(0)
        grads["blocks"][i] = block
        d = d @ p["blocks"][i]["linear"]["kernel"].T
    return loss, grads


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_forward_gradient_and_one_adam_step_against_numpy(norm):
    model = mlp(norm)
    variables = model.init(KEY)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 6)).astype(np.float32), rng.integers(0, 3, 32)
    result = gradients(model, cross_entropy, variables, (jnp.asarray(x), jnp.asarray(y)))
    loss, grads = numpy_loss_and_grads(variables.params, x, y, norm)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), result.grads, grads
    )
    optimizer = Optimizer("adam").at(1e-2)
    updates, _ = optimizer.update(result.grads, optimizer.init(variables.params), variables.params)
    # Bias-corrected moments of the first step are g and g²: Adam moves by lr · g/(|g| + ε).
    expected = jax.tree.map(lambda g: -1e-2 * g / (np.abs(g) + 1e-8), grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-5), updates, expected
    )


@pytest.mark.parametrize("norm", NORMS)
def test_loss_at_init_is_near_ln_2(norm):
    losses = []
    for seed in range(4):
        model = mlp(norm, depth=10, spec=TEXT, width=128)
        x = tokens(256, seed)
        logits, _, _ = model.apply(model.init(jax.random.key(seed)), x)
        losses.append(float(cross_entropy(logits, jax.random.randint(KEY, (256,), 0, 2))))
    # A head with unit fan-in variance on normalised features gives logits of variance at most 1
    # each: E[loss] <= ln 2 + 1/4 · Var(difference)/2. Untrained networks of width 128 vary.
    assert np.log(2) - 0.05 < np.median(losses) < np.log(2) + 0.5
    if norm == "none":
        assert abs(np.median(losses) - np.log(2)) < 0.1


@pytest.mark.parametrize("norm", NORMS)
def test_overfits_64_reviews(norm):
    model = mlp(norm, depth=4, spec=TEXT, width=32)
    params, state = model.init(KEY)
    x, y = tokens(64), jax.random.randint(jax.random.key(9), (64,), 0, 2)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def train(params, state, opt_state):
        def step(carry, _):
            params, state, opt_state = carry
            result = gradients(model, cross_entropy, Variables(params, state), (x, y))
            updates, opt_state = optimizer.update(result.grads, opt_state, params)
            return (optax.apply_updates(params, updates), result.state, opt_state), result.loss

        return jax.lax.scan(step, (params, state, opt_state), length=400)[1]

    losses = train(params, state, optimizer.init(params))
    assert losses[-1] < 0.01 < losses[0]


def test_variants_share_their_weights():
    params = {norm: mlp(norm, depth=4).init(KEY).params for norm in NORMS}
    deeper = mlp("none", depth=6).init(KEY).params
    for other in (*params.values(), deeper):
        for i in range(4):
            np.testing.assert_array_equal(
                other["blocks"][i]["linear"]["kernel"],
                params["none"]["blocks"][i]["linear"]["kernel"],
            )
        np.testing.assert_array_equal(other["head"]["kernel"], params["none"]["head"]["kernel"])
    kernels = [params["none"]["blocks"][i]["linear"]["kernel"] for i in (1, 2)]
    assert (kernels[0] != kernels[1]).any()


def test_only_a_bias_that_batchnorm_would_cancel_is_left_out():
    def biases(norm, placement):
        blocks = mlp(norm, placement=placement).init(KEY).params["blocks"]
        return ["bias" in block["linear"] for block in blocks.values()]

    assert biases("batch", "post") == [False] * 3
    assert biases("batch:ghost=4", "post") == [False] * 3
    for norm, placement in (
        ("batch", "pre"),
        ("batch", "after"),
        ("none", "post"),
        ("layer", "post"),
        ("rms", "post"),
    ):
        assert biases(norm, placement) == [True] * 3


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "gelu"])
@pytest.mark.parametrize("placement", ["post", "pre", "after"])
def test_order_inside_a_block(activation, placement):
    model = mlp("layer", depth=1, activation=activation, placement=placement)
    variables = model.init(KEY)
    x = jax.random.normal(KEY, (5, 6))
    linear, head = variables.params["blocks"][0]["linear"], variables.params["head"]

    def norm(v):
        v = v - v.mean(-1, keepdims=True)
        return v / np.sqrt((v**2).mean(-1, keepdims=True) + 1e-5)

    def affine(v, p):
        return v @ np.asarray(p["kernel"]) + np.asarray(p["bias"])

    activations = {
        "relu": jax.nn.relu,
        "sigmoid": jax.nn.sigmoid,
        "tanh": jnp.tanh,
        "gelu": jax.nn.gelu,
    }

    def act(v):
        return np.asarray(activations[activation](v))

    x = np.asarray(x)
    h = {
        "post": lambda: act(norm(affine(x, linear))),
        "pre": lambda: act(affine(norm(x), linear)),
        "after": lambda: norm(act(affine(x, linear))),
    }[placement]()
    expected = affine(h, head)
    np.testing.assert_allclose(model.apply(variables, x)[0], expected, rtol=1e-4, atol=1e-5)


def test_inits():
    for init, expected in (
        ("he", np.sqrt(2 / 400)),
        ("glorot", np.sqrt(2 / 800)),
        ("small_gaussian", 0.01),
    ):
        model = mlp(depth=2, width=400, init=init)
        kernel = model.init(KEY).params["blocks"][1]["linear"]["kernel"]
        # 160,000 draws: the standard error of a standard deviation is 0.18 %.
        np.testing.assert_allclose(kernel.std(), expected, rtol=0.02)


def test_the_network_of_the_2015_paper():
    # Ioffe & Szegedy 2015, section 4.1: 28x28 images, three hidden layers of 100 sigmoids, small
    # Gaussian weights, the norm before each nonlinearity.
    config = MLPConfig(width=100, activation="sigmoid", init="small_gaussian", gaussian_std=0.02)
    model = from_nnx(config.build("batch", 3, InputSpec((28, 28, 1), None, 10)))
    variables = model.init(KEY)
    p = jax.tree.map(np.asarray, variables.params)
    kernels = [*(p["blocks"][i]["linear"]["kernel"] for i in range(3)), p["head"]["kernel"]]
    assert [k.shape for k in kernels] == [(784, 100), (100, 100), (100, 100), (100, 10)]
    for kernel in kernels:  # 1,000 draws at least: a relative standard error of 2.2 %
        np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.08)
    x = np.asarray(jax.random.normal(KEY, (16, 28, 28, 1)))
    h = x.reshape(16, -1)
    for kernel in kernels[:3]:
        z = h @ kernel
        h = 1 / (1 + np.exp(-(z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)))
    out = model.apply(variables, jnp.asarray(x))[0]
    np.testing.assert_allclose(out, h @ kernels[3], rtol=1e-3, atol=1e-5)
    order = [f"blocks/{i}/{layer}" for i in range(3) for layer in ("linear", "norm")]
    assert list(model.taps_shape(variables, x, Probe()).sites) == [*order, "head"]


def test_weight_norm_is_of_every_block():
    params = mlp("weight").init(KEY).params
    assert all("scale" in block["linear"] for block in params["blocks"].values())


def test_regression_and_language_modelling():
    model = mlp(spec=InputSpec((6,), None, 5, task="regression"))
    assert model.apply(model.init(KEY), jnp.ones((2, 6)))[0].shape == (2, 5)
    with pytest.raises(InputError, match="'mlp' on language-model data.* such as 'transformer'"):
        mlp(spec=InputSpec((6,), 100, 100, task="language_model"))


def test_he_keeps_the_second_moment_through_a_wide_deep_net():
    model = mlp(depth=10, width=1024, spec=InputSpec((1024,), None, 2))
    x = jax.random.normal(KEY, (64, 1024))
    taps = model.apply(model.init(KEY), x, probe=Probe(select="*/linear"))[2]
    second = [float(jnp.mean(jnp.square(m.mean) + m.variance)) for m in taps.values()]
    # The product of ten factors whose relative spread is about sqrt(5/1024) each.
    assert all(0.5 < value < 2 for value in second[1:])


def test_padding_and_word_order_do_not_count():
    model = mlp("layer", spec=TEXT)
    variables = model.init(KEY)
    x = np.array(tokens(4))
    x[:, 7:] = 0
    moved = x.copy()
    moved[:, :7] = moved[:, 6::-1]
    shifted = np.roll(x, 5, axis=1)
    out = model.apply(variables, jnp.asarray(x))[0]
    for other in (moved, shifted):
        np.testing.assert_allclose(model.apply(variables, jnp.asarray(other))[0], out, atol=1e-5)
    embedding = variables.params["words"]["embed"]["embedding"]
    taps = model.apply(variables, jnp.asarray(x), probe=Probe(select="blocks/0/linear"))[2]
    mean = np.asarray(embedding)[x[:, :7]].mean(axis=1)
    np.testing.assert_allclose(
        taps["blocks/0/linear"].mean, Moments.of(jnp.asarray(mean)).mean, atol=1e-6
    )
    assert np.isfinite(model.apply(variables, jnp.zeros((2, 12), jnp.int32))[0]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"width": -4}, "width is -4"),
        ({"width": 1.5}, "width is 1.5: wanted an integer"),
        ({"embed_features": 0}, "embed_features is 0"),
        ({"activation": "rleu"}, "unknown activation 'rleu'.*relu"),
        ({"placement": "middle"}, "unknown placement 'middle'.*post"),
        ({"init": "hee"}, "unknown init 'hee'.*he"),
        ({"gaussian_std": 0.0}, "gaussian_std is 0.0: wanted a number > 0"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(InputError, match=message):
        MLPConfig(**change)
    with pytest.raises(InputError, match="unknown norm"):
        MLPConfig().build("nope", 2, VECTORS)
    with pytest.raises(InputError, match="depth is 0"):
        MLPConfig().build("none", 0, VECTORS)
