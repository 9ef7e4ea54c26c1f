"""Gradient shift of Flax models: closed forms, invariants, and the definition spelt out."""

from __future__ import annotations

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ici
from ici.dissect.blocks import find_blocks
from ici.engine.step import cross_entropy
from ici.models import InputSpec, MLPConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import zoo

LABELS = jnp.arange(16) % 2


class Residual(nnx.Module):
    def __init__(self, *, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = x + nnx.relu(layer(x))
        return self.head(x)


class DeepLinear(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            x = nn.Dense(x.shape[-1], use_bias=False, name=f"layer_{i}")(x)
        return x


def mlp(norm):
    return ici.from_nnx(MLPConfig(width=8).build(norm, 4, InputSpec((4,), None, 2)))


MODELS = {
    "batchnorm": lambda: ici.from_nnx(lambda rngs: zoo.Chain(rngs=rngs)),
    "dropout": lambda: ici.from_nnx(lambda rngs: zoo.Chain(dropout=0.5, rngs=rngs)),
    "scanned": lambda: ici.from_nnx(lambda rngs: zoo.Scanned(rngs=rngs)),
    "remat": lambda: ici.from_nnx(lambda rngs: zoo.Remat(rngs=rngs)),
    "residual": lambda: ici.from_nnx(lambda rngs: Residual(rngs=rngs)),
    "linen": lambda: ici.from_linen(zoo.LinenChain()),
    "linen scanned": lambda: ici.from_linen(zoo.LinenScanned()),
    "shared layer": lambda: ici.from_linen(zoo.LinenTwice()),
    "layernorm": lambda: mlp("layer"),
    "no norm": lambda: mlp("none"),
}


def two_steps(model, size=0.1, inputs=None):
    inputs = zoo.data() if inputs is None else inputs
    before = model.init(jax.random.key(0), inputs)
    keys = iter(jax.random.split(jax.random.key(1), 200))
    moved = jax.tree.map(
        lambda a: a + size * jax.random.normal(next(keys), a.shape, a.dtype), before.params
    )
    return before, before._replace(params=moved)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_stacked_hybrids_agree_with_one_pass_per_block(name):
    model = MODELS[name]()
    before, after = two_steps(model)
    batch = zoo.data(), LABELS
    stacked = ici.gradient_shift(model, cross_entropy, before, after, batch, method="stacked")
    separate = ici.gradient_shift(model, cross_entropy, before, after, batch, method="separate")
    assert stacked.blocks == separate.blocks and len(stacked.blocks) > 1 or name == "shared layer"
    # Gradients of order 1 summed in another order, then subtracted.
    for field in ("l2", "relative", "cosine", "norm", "norm_shifted"):
        np.testing.assert_allclose(
            getattr(stacked, field), getattr(separate, field), rtol=1e-3, atol=1e-5
        )
    assert stacked.l2[0] == 0 and stacked.cosine[0] == 1
    assert (stacked.l2[1:] > 1e-3).all()


# Float32: the bound that the metric states; float64: rounding of the same sums.
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-4), (np.float64, 1e-10)])
def test_the_definition_on_a_deep_linear_network(dtype, tolerance):
    with jax.enable_x64(dtype is np.float64):
        deep_linear_has_its_closed_form(dtype, tolerance)


def deep_linear_has_its_closed_form(dtype, tolerance):
    """G and G' as products of matrices, in float64."""
    k = 5
    model = ici.from_linen(DeepLinear(k))
    x = np.asarray(zoo.data(), dtype)
    y = np.random.default_rng(3).standard_normal(x.shape).astype(dtype)
    before, after = (
        variables._replace(params=jax.tree.map(lambda a: a.astype(dtype), variables.params))
        for variables in two_steps(model)
    )

    def loss(out, target):
        return 0.5 * jnp.mean(jnp.sum(jnp.square(out - target), axis=-1))

    def matrices(variables):
        kernels = [variables.params[f"layer_{i}"]["kernel"] for i in range(k)]
        return [np.asarray(kernel, np.float64) for kernel in kernels]

    def gradient(mixed, i):
        below, above = np.asarray(x, np.float64), np.eye(4)
        for w in mixed[:i]:
            below = below @ w
        for w in mixed[i + 1 :]:
            above = above @ w
        return below.T @ ((below @ mixed[i] @ above - y) / len(x)) @ above.T

    old, new = matrices(before), matrices(after)
    plain = [gradient(old, i) for i in range(k)]
    moved = [gradient([*new[:i], *old[i:]], i) for i in range(k)]
    seen = ici.gradient_shift(model, loss, before, after, (jnp.asarray(x), jnp.asarray(y)))
    assert seen.blocks == tuple(f"layer_{i}" for i in range(k))
    assert seen.l2.dtype == dtype
    distance = [np.linalg.norm(a - b) for a, b in zip(plain, moved, strict=True)]
    np.testing.assert_allclose(seen.l2, distance, rtol=tolerance)
    norms = [np.linalg.norm(a) for a in plain]
    np.testing.assert_allclose(seen.norm, norms, rtol=tolerance)
    np.testing.assert_allclose(seen.relative, np.divide(distance, norms), rtol=tolerance)
    cosines = [
        np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(plain, moved, strict=True)
    ]
    np.testing.assert_allclose(seen.cosine, cosines, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["stacked", "separate"])
def test_an_unchanged_network_has_no_shift(name, method):
    model = MODELS[name]()
    before, _ = two_steps(model)
    seen = ici.gradient_shift(
        model, cross_entropy, before, before, (zoo.data(), LABELS), method=method
    )
    assert (seen.l2 == 0).all() and (seen.relative == 0).all() and (seen.cosine == 1).all()


def test_only_what_lies_above_a_moved_block_shifts():
    model = mlp("batch")
    before, after = two_steps(model)
    blocks = find_blocks(model, before, zoo.data())
    only_2 = jnp.arange(len(blocks)) == 2
    params = blocks.select(only_2, after.params, before.params)
    seen = ici.gradient_shift(
        model, cross_entropy, before, before._replace(params=params), (zoo.data(), LABELS)
    )
    assert (seen.l2[:3] == 0).all() and (seen.l2[3:] > 1e-3).all()


def test_scanned_equals_unrolled():
    unrolled = ici.from_nnx(lambda rngs: zoo.Chain(rngs=rngs))
    scanned = ici.from_nnx(lambda rngs: zoo.Scanned(rngs=rngs))
    before, after = two_steps(unrolled)

    def stack(variables, like):
        layers = [variables.params["blocks"][i] for i in range(3)]
        stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *layers)
        return like._replace(params={"head": variables.params["head"], "blocks": stacked})

    like = scanned.init(jax.random.key(0))
    batch = zoo.data(), LABELS
    a = ici.gradient_shift(unrolled, cross_entropy, before, after, batch)
    b = ici.gradient_shift(scanned, cross_entropy, stack(before, like), stack(after, like), batch)
    assert a.blocks == b.blocks
    np.testing.assert_allclose(a.l2, b.l2, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(a.cosine, b.cosine, rtol=1e-3, atol=1e-5)


def test_running_statistics_have_no_part_in_it():
    model = MODELS["batchnorm"]()
    before, after = two_steps(model)
    batch = zoo.data(), LABELS
    other = jax.tree.map(
        lambda a: a + 1 if jnp.issubdtype(a.dtype, jnp.floating) else a, before.state
    )
    a = ici.gradient_shift(model, cross_entropy, before, after, batch)
    b = ici.gradient_shift(model, cross_entropy, before._replace(state=other), after, batch)
    np.testing.assert_array_equal(a.l2, b.l2)


def test_one_block():
    model = ici.from_linen(nn.Dense(2))
    before, after = two_steps(model)
    seen = ici.gradient_shift(model, cross_entropy, before, after, (zoo.data(), LABELS))
    assert seen.l2.shape == (1,) and seen.l2[0] == 0 and seen.norm[0] > 0


def test_one_example_under_batchnorm():
    """Its output is the norm's bias alone, so nothing below the last norm has a gradient."""
    model = MODELS["batchnorm"]()
    inputs = zoo.data(1)
    before, after = two_steps(model, inputs=inputs)
    seen = ici.gradient_shift(model, cross_entropy, before, after, (inputs, LABELS[:1]))
    assert np.isfinite(seen.l2).all()


def test_parameters_that_are_not_finite_are_counted():
    model = mlp("none")
    before, after = two_steps(model)
    kernel = after.params["blocks"][1]["linear"]["kernel"].at[0, 0].set(jnp.nan)
    blocks = {**after.params["blocks"]}
    blocks[1] = {"linear": {**blocks[1]["linear"], "kernel": kernel}}
    broken = after._replace(params={**after.params, "blocks": blocks})
    seen = ici.gradient_shift(model, cross_entropy, before, broken, (zoo.data(), LABELS))
    np.testing.assert_allclose(seen.nonfinite, [0, 1 / 72, 0, 0, 0], rtol=1e-6)
    assert np.isfinite(seen.l2[:2]).all() and np.isnan(seen.l2[2:]).all()


def test_pairs_that_do_not_belong_together():
    model = mlp("none")
    before, after = two_steps(model)
    batch = zoo.data(), LABELS
    fewer = after._replace(params={"head": after.params["head"]})
    with pytest.raises(
        ici.InputError, match="before has blocks/0/linear/bias, which after has not"
    ):
        ici.gradient_shift(model, cross_entropy, before, fewer, batch)
    wider = jax.tree.map(lambda a: jnp.zeros((*a.shape[:-1], 9)), after.params)
    with pytest.raises(ici.InputError, match=r"bias is \(8,\) in before and \(9,\)"):
        ici.gradient_shift(model, cross_entropy, before, after._replace(params=wider), batch)
    with pytest.raises(ici.InputError, match="unknown method 'stakced'.*stacked"):
        ici.gradient_shift(model, cross_entropy, before, after, batch, method="stakced")
