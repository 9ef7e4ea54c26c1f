"""Gradients of all hybrids at once, against closed forms and against one pass per block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ici.measure.hybrids import hybrid_gradients

WIDTH = 5


def weights(k, seed, dtype=np.float32, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal((WIDTH, WIDTH)) / 2).astype(dtype) for _ in range(k)]


def batch(dtype=np.float32):
    rng = np.random.default_rng(7)
    return (rng.standard_normal((2, 9, WIDTH))).astype(dtype)


def one_by_one(objective, before, after, owners, n_blocks):
    """G' by one pass per block: the definition, spelt out."""
    old, structure = jax.tree.flatten(before)
    new = jax.tree.leaves(after)
    shifted = [np.zeros_like(leaf) for leaf in old]
    for block in range(n_blocks):
        mixed = []
        for owner, a, b in zip(owners, old, new, strict=True):
            rows = np.broadcast_to(np.asarray(owner), np.shape(a)[:1] or ())
            if not isinstance(owner, int):
                rows = rows.reshape(-1, *(1,) * (np.ndim(a) - 1))
                mixed.append(jnp.where(rows < block, b, a))
            else:
                mixed.append(b if owner < block else a)
        gradient = jax.tree.leaves(jax.grad(objective)(jax.tree.unflatten(structure, mixed)))
        for leaf, owner in enumerate(owners):
            if isinstance(owner, int):
                if owner == block:
                    shifted[leaf] = np.asarray(gradient[leaf])
            else:
                mine = np.asarray(owner) == block
                shifted[leaf] = np.array(shifted[leaf])
                shifted[leaf][mine] = np.asarray(gradient[leaf])[mine]
    return jax.tree.unflatten(structure, shifted)


def assert_trees_close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.abs(x - y).max() <= tolerance * max(np.abs(y).max(), 1e-30)


def closed_form(before, after, x, y):
    """G and G' of ``½ mean‖x W_0 … W_{k−1} − y‖²``, products of matrices in float64."""
    before, after, x, y = (np.asarray(a, np.float64) for a in (before, after, x, y))
    k, n = len(before), len(x)

    def gradient(block, mixed):
        below = x
        for w in mixed[:block]:
            below = below @ w
        above = np.eye(WIDTH)
        for w in mixed[block + 1 :]:
            above = above @ w
        residual = below @ mixed[block] @ above - y
        return below.T @ (residual / n) @ above.T

    plain = [gradient(i, before) for i in range(k)]
    shifted = [gradient(i, [*after[:i], *before[i:]]) for i in range(k)]
    return plain, shifted


def deep_linear(x, y):
    def objective(params):
        out = x
        for w in params:
            out = out @ w
        return 0.5 * jnp.mean(jnp.sum(jnp.square(out - y), axis=-1))

    return objective


# Float32 sums of 9·5 products through k ≤ 8 layers: rounding of a few 1e-6; float64 likewise.
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-4), (np.float64, 1e-10)])
@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_deep_linear_network_has_its_closed_form(k, dtype, tolerance):
    with jax.enable_x64(dtype is np.float64):
        before, after = weights(k, 0, dtype), weights(k, 1, dtype)
        x, y = batch(dtype)
        compiled = jax.jit(
            lambda a, b: hybrid_gradients(deep_linear(x, y), a, b, tuple(range(k)), k)
        )
        gradient, shifted = compiled(before, after)
        assert gradient[0].dtype == dtype
        plain, moved = closed_form(before, after, x, y)
        assert_trees_close(gradient, plain, tolerance)
        assert_trees_close(shifted, moved, tolerance)


def residual(params):
    x = jnp.asarray(batch()[0])
    for w in params:
        x = x + jax.nn.relu(x @ w)
    return jnp.mean(jnp.square(x))


def skip_over_two(params):
    x = jnp.asarray(batch()[0])
    first = jnp.tanh(x @ params[0])
    second = jnp.tanh(first @ params[1])
    third = jnp.tanh(second @ params[2])
    return jnp.mean(jnp.square((third + first) @ params[3] + x))


def tied(params):
    x = jnp.asarray(batch()[0])
    x = jnp.tanh(x @ params[0])
    x = jnp.tanh(x @ params[1])
    return jnp.mean(jnp.square(jnp.tanh(x @ params[2]) @ params[3] @ params[0].T))


def weight_norm(params):
    x = jnp.asarray(batch()[0])
    for w in params:
        x = jnp.tanh(x @ (w / jnp.linalg.norm(w, axis=0, keepdims=True)))
    return jnp.mean(jnp.square(x))


def normalised(params):
    x = jnp.asarray(batch()[0])
    for w in params:
        x = x @ w
        x = jax.nn.relu((x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-3))
    return jnp.mean(jnp.square(x[:, :2]))


def transformed(params):
    x = jnp.asarray(batch()[0])
    x = jax.jit(lambda x, w: jnp.tanh(x @ w))(x, params[0])
    x = jax.checkpoint(lambda x, w: jnp.tanh(x @ w))(x, params[1])
    x = lax.cond(jnp.sum(params[2]) > 0, jnp.tanh, lambda x: x, x @ params[2])
    x = lax.scan(lambda c, _: (jnp.tanh(c @ params[3]), None), x, None, length=3)[0]
    keep = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
    return jnp.mean(jnp.square(jnp.where(keep, x, 0.0)))


@pytest.mark.parametrize(
    "objective", [residual, skip_over_two, tied, weight_norm, normalised, transformed]
)
def test_agrees_with_one_pass_per_block(objective):
    before, after = weights(4, 0), weights(4, 1)
    gradient, shifted = hybrid_gradients(objective, before, after, (0, 1, 2, 3), 4)
    # The same sums in another order.
    assert_trees_close(gradient, jax.grad(objective)(before), 1e-5)
    assert_trees_close(shifted, one_by_one(objective, before, after, (0, 1, 2, 3), 4), 1e-5)


def scanned(params):
    x = jnp.tanh(jnp.asarray(batch()[0]) @ params["in"])

    def layer(x, w):
        return jnp.tanh(x @ w["a"]) + x @ w["b"], jnp.sum(x)

    x, sums = lax.scan(layer, x, params["stack"])
    return jnp.mean(jnp.square(x @ params["out"])) + 0.01 * jnp.sum(sums)


def scanned_in_reverse(params):
    x = jnp.tanh(jnp.asarray(batch()[0]) @ params["in"])
    stack = jax.tree.map(lambda w: w.astype(jnp.float32), params["stack"])
    x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w["a"] @ w["b"]), None), x, stack, reverse=True)
    return jnp.mean(jnp.square(x @ params["out"]))


def indexed(params):
    """Stacked weights that no scan takes apart."""
    x = jnp.tanh(jnp.asarray(batch()[0]) @ params["in"])
    for i in range(3):
        x = jnp.tanh(x @ params["stack"]["a"][i] + x @ params["stack"]["b"][i])
    return jnp.mean(jnp.square(x @ params["out"]))


@pytest.mark.parametrize(
    ("objective", "rows"),
    [(scanned, (1, 2, 3)), (scanned_in_reverse, (3, 2, 1)), (indexed, (1, 2, 3))],
)
def test_stacked_layers_agree_with_one_pass_per_block(objective, rows):
    def params(seed):
        w = weights(8, seed)
        stack = {"a": np.stack(w[:3]), "b": np.stack(w[3:6])}
        return {"in": w[6], "out": w[7], "stack": stack}

    owners = (0, 4, rows, rows)  # in the order of the leaves: in, out, stack/a, stack/b
    before, after = params(0), params(1)
    gradient, shifted = hybrid_gradients(objective, before, after, owners, 5)
    assert_trees_close(gradient, jax.grad(objective)(before), 1e-5)
    assert_trees_close(shifted, one_by_one(objective, before, after, owners, 5), 1e-5)


def test_several_leaves_of_a_block_move_together():
    def objective(params):
        x = jnp.asarray(batch()[0])
        for i in range(3):
            x = jnp.tanh(x @ params[f"w{i}"] + params[f"b{i}"][None])
        return jnp.mean(jnp.square(x))

    def params(seed):
        w = weights(3, seed)
        return {f"b{i}": w[i][0] for i in range(3)} | {f"w{i}": w[i] for i in range(3)}

    owners = (0, 1, 2, 0, 1, 2)
    before, after = params(0), params(1)
    _, shifted = hybrid_gradients(objective, before, after, owners, 3)
    assert_trees_close(shifted, one_by_one(objective, before, after, owners, 3), 1e-5)


def test_the_program_grows_with_the_depth_and_not_its_square():
    def size(k):
        def run(a, b):
            return hybrid_gradients(residual, a, b, tuple(range(k)), k)

        return len(jax.make_jaxpr(run)(weights(k, 0), weights(k, 1)).jaxpr.eqns)

    # Linear but for what the ends of the network add; twice the square would give 4.
    assert size(24) < 2.3 * size(12)
