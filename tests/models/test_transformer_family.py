"""The family: sizes, initial weights, precision, measurement, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_transformer import KEY, SPEC, UNIQUE, VOCAB, model_of, perturbed

import ici
from ici.engine.task import cross_entropy
from ici.models import InputSpec, TransformerConfig


def n_parameters(model, tokens):
    shapes = jax.eval_shape(lambda x: model.init(KEY, x), tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes.params))


def test_gpt2_small_has_as_many_parameters_as_published():
    spec = InputSpec((1024,), 50257, 50257, "language_model", 1)
    config = TransformerConfig(
        width=768, heads=12, positions="learned", max_length=1024, use_bias=True
    )
    d, layers, hidden = 768, 12, 3072
    attention = 4 * (d * d + d)
    feed_forward = d * hidden + hidden + hidden * d + d
    block = attention + feed_forward + 2 * 2 * d
    by_hand = 50257 * d + 1024 * d + layers * block + 2 * d
    counted = n_parameters(ici.from_nnx(config.build("layer", layers, spec)), jnp.ones((1, 4), int))
    assert counted == by_hand == 124_439_808  # Radford et al. 2019, released weights


def test_swiglu_has_the_parameters_of_gelu():
    gelu, swiglu = (
        n_parameters(model_of("none", width=96, activation=kind), UNIQUE)
        for kind in ("gelu", "swiglu")
    )
    assert gelu == swiglu  # three matrices of 256 columns for two of 384


def test_initial_weights_are_those_of_the_paper():
    depth = 8
    for init, expected in (("normal", 0.02), ("depth_scaled", 0.02 / np.sqrt(2 * depth))):
        params = model_of(depth=depth, width=64, heads=4, init=init).init(KEY, UNIQUE).params
        blocks = params["blocks"]
        # A standard deviation of n values is off by 1/√(2n) of itself: 0.4 % here; 5 of those.
        for kernel in (blocks["attention"]["out"], blocks["feed_forward"]["down"]):
            np.testing.assert_allclose(jnp.std(kernel["kernel"]), expected, rtol=0.02)
        for kernel in (blocks["attention"]["query"], blocks["feed_forward"]["up"]):
            np.testing.assert_allclose(jnp.std(kernel["kernel"]), 0.02, rtol=0.02)


def test_an_untrained_model_knows_nothing():
    tokens = jax.random.randint(KEY, (8, 8), 2, VOCAB)
    model = model_of()
    logits = model.apply(model.init(KEY, tokens), tokens)[0]
    # Not a token's own: a tied output layer knows that one from the start.
    labels = 2 + (tokens - 2 + 5) % (VOCAB - 2)
    assert float(cross_entropy(logits, labels)) == pytest.approx(np.log(VOCAB), rel=0.05)


def test_depths_and_norms_share_their_weights():
    shallow, deep = (model_of("layer", depth=n).init(KEY, UNIQUE).params for n in (2, 5))
    other = model_of("none", depth=2).init(KEY, UNIQUE).params
    for name in ("attention", "feed_forward"):
        first_two = jax.tree.map(lambda a: a[:2], deep["blocks"][name])
        jax.tree.map(np.testing.assert_array_equal, first_two, shallow["blocks"][name])
        jax.tree.map(np.testing.assert_array_equal, other["blocks"][name], shallow["blocks"][name])
    kernels = shallow["blocks"]["attention"]["query"]["kernel"]
    assert not np.array_equal(kernels[0], kernels[1])


@pytest.mark.parametrize("setting", [{"remat": True}, {"dtype": "bfloat16"}])
def test_same_gradient_with_less_memory_or_precision(setting):
    tokens, labels = UNIQUE, jnp.roll(UNIQUE, -1, axis=1)

    def gradient(**settings):
        model = model_of("rms", **settings)
        variables = perturbed(model.init(KEY, tokens), scale=0.1)

        def loss(params):
            out = model.apply(ici.Variables(params, variables.state), tokens)[0]
            assert out.dtype == jnp.float32
            return cross_entropy(out, labels)

        return jax.jit(jax.grad(loss))(variables.params)

    # The recomputed pass is the same to rounding; bfloat16 has 8 bits: 0.4 % a value, and sums
    # of 16 to 64 of them through two blocks.
    tolerance = 1e-5 if "remat" in setting else 0.1
    plain, other = gradient(), gradient(**setting)
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(plain), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def test_every_block_has_its_own_running_averages():
    model = model_of("batch", depth=3, tied=False)
    tokens = jax.random.randint(KEY, (4, 8), 2, VOCAB)
    variables = perturbed(model.init(KEY, tokens))
    _, state, taps = model.apply(variables, tokens, train=True, probe=ici.Probe())
    means = state["blocks"]["attention_norm"]["mean"]
    for i in range(3):
        seen = taps[f"blocks/{i}/attention_norm"].mean
        np.testing.assert_allclose(means[i], 0.1 * seen, rtol=1e-4, atol=1e-6)
    assert not np.allclose(means[1], means[2])


def test_sites_are_in_execution_order():
    model = model_of("layer+qk", placement="peri", activation="swiglu", tied=False)
    variables = model.init(KEY, UNIQUE)
    sites = model.taps_shape(variables, UNIQUE, ici.Probe(stats=("moments", "attention"))).sites
    block = [
        "attention_norm", "attention/query", "attention/key", "attention/value",
        "attention/query_norm", "attention/key_norm", "attention/attention", "attention/out",
        "attention_out_norm", "feed_forward_norm", "feed_forward/gate", "feed_forward/up",
        "feed_forward/down", "feed_forward_out_norm",
    ]  # fmt: skip
    assert list(sites) == [f"blocks/{i}/{s}" for i in range(2) for s in block] + ["norm", "head"]


@pytest.mark.slow
def test_shift_of_gradients_and_its_attribution():
    model = model_of("rms", depth=2)
    tokens, labels = UNIQUE, jnp.roll(UNIQUE, -1, axis=1)
    before = model.init(KEY, tokens)
    after = perturbed(before, scale=0.02)
    shift = ici.gradient_shift(model, cross_entropy, before, after, (tokens, labels))
    assert float(shift.l2[0]) == 0.0 and (np.asarray(shift.l2[1:]) > 0).all()
    attribution = ici.attribute_shift(model, before, after, tokens)
    first = attribution.sites.index("blocks/0/attention_norm")
    late = [i for i, name in enumerate(attribution.blocks) if name.startswith("blocks/1/")]
    # What comes later moves nothing before it; the embedding moves the first norm's input.
    assert len(late) == 6 and (np.asarray(attribution.alone)[late, first] == 0).all()
    assert float(attribution.alone[0, first]) > 0


BAD = [
    ({"heads": 3}, {}, "heads is 3 and width is 16"),
    ({"width": 6, "heads": 2}, {}, "a head has 3 features: wanted an even number"),
    ({"positions": "learned", "max_length": 4}, {}, "rows have 8 tokens and max_length is 4"),
    ({"placement": "mid"}, {}, "unknown placement 'mid'"),
    ({"qk_norm": "batch"}, {}, "unknown qk_norm 'batch'"),
    ({"z_loss": -1.0}, {}, "z_loss is -1.0"),
    ({"dtype": "float16"}, {}, "unknown dtype 'float16'.*bfloat16"),
    ({}, {"depth": 0}, "depth is 0"),
    ({}, {"norm": "laier"}, "unknown norm 'laier'"),
    ({}, {"norm": "instance"}, "instance"),
    ({}, {"spec": InputSpec((8,), VOCAB, 2)}, "on classification data"),
    ({}, {"spec": InputSpec((8,), VOCAB, 30, "language_model", 1)}, "24 tokens go in and 30"),
]


@pytest.mark.parametrize(("settings", "built", "message"), BAD)
def test_what_cannot_be(settings, built, message):
    built = {"norm": "layer", "depth": 2, "spec": SPEC} | built
    with pytest.raises(ici.InputError, match=message):
        TransformerConfig(**({"width": 16, "heads": 2} | settings)).build(*built.values())


def test_an_experiment_adds_qk_norm_to_a_norm():
    settings = {"model": TransformerConfig(), "data": "digits"}
    assert ici.Experiment(norm=("layer", "layer+qk"), **settings).groups[1].norm == "layer+qk"
    with pytest.raises(ici.InputError, match=r"TransformerConfig adds qk to a norm, not 'kq'"):
        ici.Experiment(norm="layer+kq", **settings)
    with pytest.raises(ici.InputError, match=r"MLPConfig adds nothing to a norm"):
        ici.Experiment(norm="layer+qk", data="digits")
