"""Logits that grow before a training run breaks: in attention and at the output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ici.errors import InputError
from ici.measure.statistics import broadcast_leading, counted, pooled, share_of, unless_empty


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attention:
    """Largest attention logit and mean entropy of the attention weights, per head.

    The logits are ``⟨q, k⟩/√K`` plus the bias if there is one, in float32, where the query may
    attend to the key; the weights are their softmax over keys. The entropy, in nats, is 0 when
    every query attends to one key and ``ln S`` when it attends to all S alike.

    Attributes:
      count: float32 ``[..., H]``, queries with at least one key to attend to.
      max_logit: float32 ``[..., H]``; ``-inf`` if there is none, for which the record has NaN.
      entropy: float32 ``[..., H]``, mean over those queries; NaN if there is none.

    Source:
      Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities"
      (ICLR 2024), section 3.1.1, for the logits; Zhai et al., "Stabilizing Transformer training by
      preventing attention entropy collapse" (ICML 2023), for the entropy.

    Cost:
      step: repeats the layer's product of queries and keys and its softmax, forward only, and
      holds the B·H·T·S logits while it does.

    Caveats:
      The maximum grows with the number of queries and keys: compare batches of one shape. Dropout
      of attention weights is not part of it.
    """

    name: ClassVar[str] = "attention"
    cost: ClassVar[str] = "step"
    where: ClassVar[str] = "attention"

    count: Array
    max_logit: Array
    entropy: Array

    @classmethod
    def of(
        cls,
        query: Array,
        key: Array,
        *,
        bias: Array | None = None,
        mask: Array | None = None,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Attention:
        """Statistics of ``query[..., T, H, K]`` attending to ``key[..., S, H, K]``.

        Args:
          query: queries; further leading axes are pooled with T.
          key: keys; with fewer heads than the query, each serves a group of its heads.
          bias: added to the logits, broadcast to ``[..., H, T, S]``.
          mask: bool, broadcast to ``[..., H, T, S]``; True where the query may attend. Queries
            that may attend to nothing do not count.
          is_causal: whether query t may only attend to keys up to t.
          scale: factor of the products; None is ``1/√K``.

        Raises:
          InputError: shapes of queries and keys that do not fit each other, or a mask that is not
            bool.
        """
        query, key = (jax.lax.stop_gradient(jnp.asarray(a)) for a in (query, key))
        query, key = query.astype(jnp.float32), key.astype(jnp.float32)
        _check(query, key, mask)
        key = jnp.repeat(key, query.shape[-2] // key.shape[-2], axis=-2)
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        logits = jnp.einsum("...thk,...shk->...hts", query * factor, key)
        if bias is not None:
            bias = jax.lax.stop_gradient(jnp.asarray(bias)).astype(jnp.float32)
            logits = logits + jnp.broadcast_to(bias, logits.shape)
        allowed = jnp.ones(logits.shape[-2:], bool)
        allowed = jnp.broadcast_to(jnp.tril(allowed) if is_causal else allowed, logits.shape)
        if mask is not None:
            allowed &= jnp.broadcast_to(mask, logits.shape)
        heads = logits.ndim - 3
        pool = tuple(axis for axis in range(logits.ndim) if axis != heads)
        queries = pool[:-1]
        max_logit = jnp.max(logits, axis=pool, initial=-jnp.inf, where=allowed)
        logits = jnp.where(allowed, logits, -jnp.inf)
        some = jnp.any(allowed, axis=-1)
        # A row without keys would be all -inf; its place is held by a row of zeros.
        weights_log = jax.nn.log_softmax(jnp.where(some[..., None], logits, 0.0), axis=-1)
        finite_log = jnp.where(allowed, weights_log, 0.0)
        entropies = -jnp.sum(jnp.exp(weights_log) * finite_log, axis=-1)
        count = jnp.sum(some, axis=queries, dtype=jnp.float32)
        entropy = jnp.sum(jnp.where(some, entropies, 0.0), axis=queries) / count
        return cls(count, max_logit, entropy)

    def merge(self, other: Attention) -> Attention:
        a, b = broadcast_leading(self, other)
        count = a.count + b.count
        entropy = a.entropy + (b.entropy - a.entropy) * share_of(b.count, count)
        entropy = unless_empty(a.count, b.count, a.entropy, b.entropy, entropy)
        return Attention(count, jnp.maximum(a.max_logit, b.max_logit), entropy)

    def labelled(self) -> dict[str, Array]:
        return {
            "attention_max_logit": jnp.where(self.count > 0, self.max_logit, jnp.nan),
            "attention_entropy": self.entropy,
        }


def _check(query: Array, key: Array, mask: Array | None) -> None:
    lead, (_, heads, width) = query.shape[:-3], query.shape[-3:]
    if (
        key.ndim != query.ndim
        or key.shape[:-3] != lead
        or key.shape[-1] != width
        or heads % key.shape[-2]
    ):
        raise InputError(
            f"attention of queries {query.shape} to keys {key.shape}: wanted [..., T, H, K] and "
            "[..., S, H, K] with the same leading axes and K, and H a multiple of the keys' heads."
        )
    if mask is not None and jnp.asarray(mask).dtype != jnp.bool_:
        raise InputError(
            f"attention mask of {jnp.asarray(mask).dtype}: wanted bool, True where a query may "
            "attend; pass additive masks as bias."
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OutputLogits:
    """Largest output logit, and mean and maximum of ``z = ln Σ_c exp(logit_c)``.

    Attributes:
      count: float32 ``[...]``, number of predictions.
      max_logit, z_max: float32 ``[...]``; ``-inf`` if there is none, for which the record has NaN.
      z_mean: float32 ``[...]``; NaN if there is none.

    Source:
      Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities"
      (ICLR 2024), section 3.1.2: logits that drift, which the z-loss holds at ``z = 0``.

    Cost:
      step: one read of the logits.

    Caveats:
      Softmax does not see a constant added to all logits, but z does: that drift is what it shows.
    """

    name: ClassVar[str] = "output_logits"
    cost: ClassVar[str] = "step"
    where: ClassVar[str] = "output"

    count: Array
    max_logit: Array
    z_mean: Array
    z_max: Array

    @classmethod
    def of(cls, logits: Array, mask: Array | None = None) -> OutputLogits:
        """Statistics of ``logits[..., C]`` over all axes, where `mask` (if any) is True.

        Raises:
          InputError: the mask is not a bool array of shape ``logits.shape[:-1]``.
        """
        logits_NC = pooled(logits)
        n = logits_NC.shape[0]
        keep_N = jnp.ones(n, bool) if mask is None else counted(logits, mask)
        z_N = jax.nn.logsumexp(logits_NC, axis=-1)
        count = jnp.sum(keep_N, dtype=jnp.float32)
        return cls(
            count,
            jnp.max(logits_NC, initial=-jnp.inf, where=keep_N[:, None]),
            jnp.sum(jnp.where(keep_N, z_N, 0.0)) / count,
            jnp.max(z_N, initial=-jnp.inf, where=keep_N),
        )

    def merge(self, other: OutputLogits) -> OutputLogits:
        a, b = broadcast_leading(self, other)
        count = a.count + b.count
        z_mean = a.z_mean + (b.z_mean - a.z_mean) * share_of(b.count, count)
        return OutputLogits(
            count,
            jnp.maximum(a.max_logit, b.max_logit),
            unless_empty(a.count, b.count, a.z_mean, b.z_mean, z_mean),
            jnp.maximum(a.z_max, b.z_max),
        )

    def labelled(self) -> dict[str, Array]:
        some = self.count > 0
        return {
            "max_logit": jnp.where(some, self.max_logit, jnp.nan),
            "z_mean": self.z_mean,
            "z_max": jnp.where(some, self.z_max, jnp.nan),
        }
