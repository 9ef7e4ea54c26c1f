"""The language model: what a position can see, and that it computes what it says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ici
from ici.models import InputSpec, TransformerConfig
from ici.models.attention import rotary
from ici.models.transformer import z_loss

VOCAB, LENGTH = 24, 8
SPEC = InputSpec((LENGTH,), VOCAB, VOCAB, "language_model", separator=1)
KEY = jax.random.key(0)
UNIQUE = jnp.asarray([[5, 9, 3, 17, 22, 4, 11, 8]])  # no token twice, no separator
PACKED = jnp.asarray([[1, 9, 3, 17, 1, 4, 11, 8]])


def model_of(norm="layer", depth=2, spec=SPEC, **settings):
    config = TransformerConfig(**({"width": 16, "heads": 2} | settings))
    return ici.from_nnx(config.build(norm, depth, spec))


def perturbed(variables, scale=0.3):
    """Weights large enough for every path to matter, and none of them at a special value."""
    leaves, structure = jax.tree.flatten(variables.params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noisy = [a + scale * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return variables._replace(params=jax.tree.unflatten(structure, noisy))


def influence(model, tokens, train):
    """Whether the logits at t [T] depend on the input at t' [T]: gradients that are not 0.

    No token occurs twice, so an embedding's gradient is that of the input at its place.
    """
    variables = perturbed(model.init(KEY, tokens))

    def logits_T(embedding):
        params = variables.params | {"embed": {"embedding": embedding}}
        out, _, _ = model.apply(ici.Variables(params, variables.state), tokens, train=train)
        return jnp.sum(jnp.sin(out[0]), axis=-1)

    gradient_TVD = jax.jit(jax.jacrev(logits_T))(variables.params["embed"]["embedding"])
    return np.asarray(jnp.any(gradient_TVD[:, tokens[0]] != 0, axis=-1))


CAUSAL = np.tril(np.ones((LENGTH, LENGTH), bool))
PER_POSITION = ("none", "layer", "rms", "group:groups=4", "weight", "dyt", "layer+qk")
OVER_BATCH = ("batch", "batch_noisy", "lp:p=1")


FAST = ("rms", "batch")
ALL = [
    norm if norm in FAST else pytest.param(norm, marks=pytest.mark.slow)
    for norm in (*PER_POSITION, *OVER_BATCH)
]


@pytest.mark.parametrize("norm", ALL)
@pytest.mark.slow
def test_a_position_sees_itself_and_what_came_before_in_evaluation(norm):
    seen = influence(model_of(norm, tied=False), UNIQUE, train=False)
    np.testing.assert_array_equal(seen, CAUSAL)


@pytest.mark.parametrize("norm", ["none", "rms", "layer+qk"])
def test_and_in_training_where_no_norm_looks_at_several_positions(norm):
    seen = influence(model_of(norm, tied=False, placement="peri"), UNIQUE, train=True)
    np.testing.assert_array_equal(seen, CAUSAL)


def test_batch_statistics_look_ahead_in_training():
    # By definition: the mean over all positions of all rows is part of every output.
    assert influence(model_of("batch", tied=False), UNIQUE, train=True).all()


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_nothing_passes_from_document_to_document(positions):
    tokens = jnp.asarray([[9, 3, 17, 1, 4, 11, 8, 5]])
    seen = influence(model_of(tied=False, positions=positions), tokens, train=True)
    document = np.asarray([0, 0, 0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(seen, CAUSAL & (document[:, None] == document[None]))


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_packed_documents_are_as_if_each_stood_alone(positions):
    model = model_of(positions=positions)
    variables = perturbed(model.init(KEY, PACKED))
    packed = model.apply(variables, PACKED)[0][0]
    alone = [model.apply(variables, PACKED[:, part])[0][0] for part in (slice(0, 4), slice(4, 8))]
    # Attention weights of other documents are exp(-inf); only the order of sums differs.
    np.testing.assert_allclose(packed, jnp.concatenate(alone), rtol=1e-4, atol=1e-5)


# -- an independent forward pass -----------------------------------------------------------------


def by_hand(params, tokens, config, depth):
    """The logits in float64 with loops over rows, heads and positions; one document a row."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def norm(x, at, kind="rms"):
        scale = at["scale"]
        if "bias" in at:
            x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale + at.get("bias", 0.0)

    def turn(v, t):
        half = len(v) // 2
        z = (v[:half] + 1j * v[half:]) * np.exp(1j * t * 1e4 ** (-np.arange(half) / half))
        return np.concatenate([z.real, z.imag])

    def linear(x, at):
        return x @ at["kernel"] + at.get("bias", 0.0)

    def attention(x, at):
        out, size = np.zeros_like(x), config.width // config.heads
        q, k, v = (linear(x, at[name]) for name in ("query", "key", "value"))
        for h in range(config.heads):
            part = slice(h * size, (h + 1) * size)
            for t in range(len(x)):
                qs, ks = q[t, part], [k[s, part] for s in range(t + 1)]
                if config.positions == "rope":
                    qs, ks = turn(qs, t), [turn(vector, s) for s, vector in enumerate(ks)]
                weights = np.exp([qs @ vector / np.sqrt(size) for vector in ks])
                out[t, part] = weights / weights.sum() @ v[: t + 1, part]
        return linear(out, at["out"])

    def feed_forward(x, at):
        if config.activation == "swiglu":
            gate = linear(x, at["gate"])
            return linear(gate / (1 + np.exp(-gate)) * linear(x, at["up"]), at["down"])
        u = linear(x, at["up"])
        gelu = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        return linear(gelu, at["down"])

    rows = []
    for row in np.asarray(tokens):
        x = p["embed"]["embedding"][row]
        if config.positions == "learned":
            x = x + p["position_embed"]["embedding"][: len(row)]
        for i in range(depth):
            block = jax.tree.map(lambda a, i=i: a[i], p["blocks"])
            for name, layer in (("attention", attention), ("feed_forward", feed_forward)):
                at, scale = block[name], block[f"{name}_norm"]
                if config.placement == "post":
                    x = norm(x + layer(x, at), scale)
                elif config.placement == "peri":
                    x = x + norm(layer(norm(x, scale), at), block[f"{name}_out_norm"])
                else:
                    x = x + layer(norm(x, scale), at)
        if config.placement != "post":
            x = norm(x, p["norm"])
        rows.append(x @ (p["embed"]["embedding"].T if config.tied else p["head"]["kernel"]))
    return np.asarray(rows)


@pytest.mark.parametrize(
    ("norm", "settings"),
    [
        ("rms", {"placement": "pre", "activation": "swiglu", "positions": "rope", "tied": False}),
        ("layer", {"placement": "post", "positions": "learned", "use_bias": True}),
        ("layer", {"placement": "peri", "positions": "rope"}),
    ],
)
@pytest.mark.slow
def test_equals_a_forward_pass_written_with_loops(norm, settings):
    config = TransformerConfig(width=16, heads=2, **settings)
    tokens = jnp.asarray([[5, 9, 3, 17, 5, 4], [2, 2, 7, 23, 12, 6]])
    model = ici.from_nnx(config.build(norm, 3, SPEC))
    variables = perturbed(model.init(KEY, tokens))
    got = model.apply(variables, tokens)[0]
    expected = by_hand(variables.params, tokens, config, depth=3)
    # Float32 through three blocks of sums over 16 to 64 terms.
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


def test_rotary_depends_on_distance_alone():
    q, k = jax.random.normal(KEY, (2, 1, 1, 1, 6))

    def product(t, s):
        at = [rotary(x, jnp.asarray([[place]])) for x, place in ((q, t), (k, s))]
        return float(jnp.sum(at[0] * at[1]))

    assert product(3, 1) == pytest.approx(product(12, 10), abs=1e-5)
    assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-3)
    np.testing.assert_allclose(
        jnp.linalg.norm(rotary(q, jnp.asarray([[5]]))), jnp.linalg.norm(q), rtol=1e-6
    )


def test_qk_norm_bounds_the_logits():
    probe = ici.Probe(stats=("moments", "attention"))
    for norm, bounded in (("rms", False), ("rms+qk", True)):
        model = model_of(norm)
        variables = model.init(KEY, UNIQUE)
        blocks = variables.params["blocks"]
        attention = blocks["attention"]
        large = jax.tree.map(lambda a: 100 * a, {k: attention[k] for k in ("query", "key")})
        params = variables.params | {"blocks": blocks | {"attention": attention | large}}
        taps = model.apply(ici.Variables(params, variables.state), UNIQUE, probe=probe)[2]
        largest = max(float(jnp.max(a.max_logit)) for a in taps.stat("attention").values())
        # |q| = |k| = √K after the norm, so |q·k| / √K ≤ √K.
        assert (largest <= np.sqrt(8) * (1 + 1e-5)) == bounded


def test_z_loss_and_its_gradient():
    logits = jax.random.normal(KEY, (2, 3, VOCAB))
    labels = jnp.asarray([[1, -1, 3], [4, 5, -1]])
    counts = labels >= 0
    log_z = jax.nn.logsumexp(logits, axis=-1)
    np.testing.assert_allclose(z_loss(logits, labels), (log_z**2)[counts].mean(), rtol=1e-6)
    expected = 2 * log_z[..., None] * jax.nn.softmax(logits) * counts[..., None] / counts.sum()
    np.testing.assert_allclose(jax.grad(z_loss)(logits, labels), expected, atol=1e-6)
    config = TransformerConfig(z_loss=0.5)
    nll = -jax.nn.log_softmax(logits)[jnp.arange(2)[:, None], jnp.arange(3)[None], labels]
    np.testing.assert_allclose(
        config.loss(SPEC)(logits, labels),
        nll[counts].mean() + 0.5 * z_loss(logits, labels),
        rtol=1e-6,
    )
    assert TransformerConfig().loss(SPEC) is None
