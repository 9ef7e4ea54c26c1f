"""Causal self-attention within documents, with rotary positions and QK-norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ici.models.layers import stream
from ici.models.norms import Norm

ROTARY_BASE = 10_000.0


def documents(tokens_BT: Array, separator: int | None) -> tuple[Array, Array]:
    """Number of the document that each position belongs to, and its place there: int32 ``[B, T]``.

    A separator begins a document. Without separators a row is one document.
    """
    place_BT = jax.lax.broadcasted_iota(jnp.int32, tokens_BT.shape, 1)
    if separator is None:
        return jnp.zeros_like(place_BT), place_BT
    begins_BT = tokens_BT == separator
    start_BT = jax.lax.cummax(jnp.where(begins_BT, place_BT, 0), axis=1)
    return jnp.cumsum(begins_BT, axis=1, dtype=jnp.int32), place_BT - start_BT


def visible(document_BT: Array) -> Array:
    """Which positions a position may look at, bool ``[B, 1, T, S]``: itself and those before it in
    its document."""
    n = document_BT.shape[1]
    causal_TS = jnp.tril(jnp.ones((n, n), bool))
    same_BTS = document_BT[:, :, None] == document_BT[:, None, :]
    return (causal_TS[None] & same_BTS)[:, None]


def rotary(x_BTHK: Array, place_BT: Array) -> Array:
    """Each pair of features (i, i + K/2) turned by ``place · 10000^(-2i/K)``, in float32.

    Source: Su et al., "RoFormer: enhanced Transformer with rotary position embedding", 2021.
    """
    half = x_BTHK.shape[-1] // 2
    frequency_K = ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1K = place_BT.astype(jnp.float32)[:, :, None, None] * frequency_K[None, None, None]
    cos, sin = jnp.cos(angle_BT1K), jnp.sin(angle_BT1K)
    a, b = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHK.dtype)


class CausalSelfAttention(nnx.Module):
    """Multi-head attention of ``x[B, T, D]`` to itself."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        norm: Norm,
        qk_norm: Norm | None,
        is_rotary: bool,
        use_bias: bool,
        out_std: float,
        std: float,
        dtype: jnp.dtype,
        key: Array,
    ):
        self.heads, self.is_rotary, self.dtype = heads, is_rotary, dtype

        def linear(index: int, std: float) -> nnx.Linear:
            return norm.linear(
                width,
                width,
                use_bias=use_bias,
                kernel_init=nnx.initializers.normal(std),
                dtype=dtype,
                rngs=stream(key, index),
            )

        self.query, self.key, self.value = (linear(i, std) for i in range(3))
        self.out = linear(3, out_std)

        def of_head(index: int) -> nnx.Module | None:
            if qk_norm is None:
                return None
            return qk_norm.layer(width // heads, layout="sequence", rngs=stream(key, index))

        self.query_norm, self.key_norm = of_head(4), of_head(5)

    def __call__(self, x_BTD: Array, place_BT: Array, visible_B1TS: Array) -> Array:
        def split(y_BTD: Array) -> Array:
            return y_BTD.reshape(*y_BTD.shape[:2], self.heads, -1)

        query, key, value = (split(f(x_BTD)) for f in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.is_rotary:
            query, key = rotary(query, place_BT), rotary(key, place_BT)
        mixed_BTHK = jax.nn.dot_product_attention(
            query.astype(self.dtype), key.astype(self.dtype), value, mask=visible_B1TS
        )
        return self.out(mixed_BTHK.reshape(x_BTD.shape))
