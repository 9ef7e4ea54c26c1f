"""Attention logits and entropy, and output logits, against hand-made and float64 references."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import assert_same, cut, merged_in_any_order

from ici.errors import InputError
from ici.measure import Attention, OutputLogits


def qk(b=2, t=5, s=7, h=3, k=4, seed=0):
    rng = np.random.default_rng(seed)
    query, key = rng.normal(size=(b, t, h, k)), rng.normal(size=(b, s, h, k))
    return 3 * query.astype(np.float32), key.astype(np.float32)


def by_hand(query, key, allowed=None, bias=0.0, scale=None):
    """Per head: largest allowed logit and mean entropy, one query after another, in float64."""
    query, key = query.astype(np.float64), key.astype(np.float64)
    logits = np.einsum("bthk,bshk->bhts", query, key)
    logits = logits * (1 / np.sqrt(query.shape[-1]) if scale is None else scale) + bias
    allowed = np.broadcast_to(True if allowed is None else allowed, logits.shape)
    largest, entropy = [], []
    for head in range(query.shape[2]):
        rows = [
            row[keep]
            for row, keep in zip(
                logits[:, head].reshape(-1, logits.shape[-1]),
                allowed[:, head].reshape(-1, logits.shape[-1]),
                strict=True,
            )
            if keep.any()
        ]
        largest.append(max(row.max() for row in rows))
        weights = [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in rows]
        entropy.append(np.mean([-(w * np.log(w)).sum() for w in weights]))
    return largest, entropy


def check(got, expected, rtol=1e-5):
    np.testing.assert_allclose(got.labelled()["attention_max_logit"], expected[0], rtol=rtol)
    np.testing.assert_allclose(got.labelled()["attention_entropy"], expected[1], rtol=rtol)


def test_closed_forms():
    width, keys = 16, 9
    same = Attention.of(jnp.zeros((1, 4, 2, width)), jnp.ones((1, keys, 2, width)))
    np.testing.assert_allclose(same.entropy, np.log(keys), rtol=1e-6)
    assert same.max_logit.tolist() == [0, 0]
    basis = 100 * jnp.eye(width)[None, :, None]
    one = Attention.of(basis, basis)
    assert one.max_logit == 100 * 100 / 4 and one.entropy < 1e-6
    assert one.count == width


def test_agrees_with_float64_under_every_option():
    query, key = qk()
    rng = np.random.default_rng(1)
    bias = rng.normal(size=(1, 3, 5, 7)).astype(np.float32)
    mask = rng.random((2, 1, 5, 7)) < 0.5
    causal = np.tril(np.ones((5, 7), bool))
    attention = jax.jit(Attention.of, static_argnames=("is_causal", "scale"))
    check(attention(query, key), by_hand(query, key))
    check(attention(query, key, bias=bias), by_hand(query, key, bias=bias))
    check(attention(query, key, mask=mask), by_hand(query, key, mask))
    check(attention(query, key, is_causal=True), by_hand(query, key, causal))
    check(attention(query, key, scale=1.0), by_hand(query, key, scale=1.0))
    check(
        attention(query, key, bias=bias, mask=mask, is_causal=True),
        by_hand(query, key, mask & causal, bias),
    )


def test_what_may_not_be_attended_to_never_counts():
    query, key = qk()
    key[:, 5:] = np.nan
    query[1, 3:] = np.inf
    mask = np.ones((2, 1, 5, 7), bool)
    mask[..., 5:] = False
    mask[1, :, 3:] = False
    got = Attention.of(query, key, mask=jnp.asarray(mask))
    assert got.count.tolist() == [8, 8, 8]
    clean_query, clean_key = qk()
    check(got, by_hand(clean_query, clean_key, mask))


def test_a_mask_of_everything_leaves_no_number():
    query, key = qk()
    nothing = Attention.of(query, key, mask=jnp.zeros((2, 1, 5, 7), bool))
    assert all(np.isnan(value).all() for value in nothing.labelled().values())
    something = Attention.of(query, key)
    assert_same(something.merge(nothing), something)
    assert_same(nothing.merge(something), something)


def test_heads_that_share_keys():
    query, key = qk(h=4)
    got = Attention.of(query, key[:, :, :2])
    check(got, by_hand(query, np.repeat(key[:, :, :2], 2, axis=2)))


def test_examples_permute_and_heads_permute():
    query, key = qk(b=4)
    whole = Attention.of(query, key)
    assert_same(Attention.of(query[::-1], key[::-1]), whole, rtol=1e-6)
    turned = Attention.of(query[:, :, ::-1], key[:, :, ::-1])
    assert_same(turned, jax.tree.map(lambda leaf: leaf[::-1], whole), rtol=1e-6)


@pytest.mark.slow
@settings(max_examples=15)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 99), st.randoms())
def test_any_merge_tree_equals_one_pass(sizes, seed, random):
    query, key = qk(b=sum(sizes), seed=seed)
    parts = zip(cut(query, sizes), cut(key, sizes), strict=True)
    whole, _ = merged_in_any_order([Attention.of(q, k) for q, k in parts], random)
    assert_same(whole, Attention.of(query, key), rtol=1e-5)  # sums in another order


def test_under_lanes():
    query, key = qk(b=6)
    lanes = [jnp.asarray(a).reshape(3, 2, *a.shape[1:]) for a in (query, key)]
    mapped = jax.lax.map(lambda pair: Attention.of(*pair), tuple(lanes))
    vmapped = jax.vmap(Attention.of)(*lanes)
    assert_same(mapped, vmapped, rtol=1e-5)
    check(jax.tree.map(lambda leaf: leaf[1], vmapped), by_hand(query[2:4], key[2:4]))


def test_bad_input():
    query, key = qk()
    for wrong in (key[:1], key[..., :2], key[:, :, :2], key[0]):
        with pytest.raises(InputError, match="attention of queries"):
            Attention.of(query, wrong)
    with pytest.raises(InputError, match="mask of float32: wanted bool.*as bias"):
        Attention.of(query, key, mask=jnp.zeros((2, 1, 5, 7)))


def test_output_logits():
    rng = np.random.default_rng(2)
    logits = (10 * rng.normal(size=(6, 4, 11))).astype(np.float32)
    z = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    got = jax.jit(OutputLogits.of)(logits).labelled()
    expected = {"max_logit": logits.max(), "z_mean": z.mean(), "z_max": z.max()}
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6)
        assert got[name].shape == ()
    flat = OutputLogits.of(jnp.full((3, 8), 2.0))
    np.testing.assert_allclose(flat.z_mean, 2 + np.log(8), rtol=1e-6)
    parts = [OutputLogits.of(part) for part in cut(logits, [1, 2, 3])]
    assert_same(parts[0].merge(parts[1]).merge(parts[2]), OutputLogits.of(logits), rtol=1e-5)


def test_where_they_are_taken():
    assert Attention.where == "attention" and OutputLogits.where == "output"
    assert Attention.cost == OutputLogits.cost == "step"
