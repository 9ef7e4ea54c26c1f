"""Decoder-only Transformer language models, their blocks scanned over stacked parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from ici.errors import InputError, unknown_name
from ici.models import norms
from ici.models.attention import CausalSelfAttention, documents, visible
from ici.models.layers import Nonlinearity, check_choices, check_depth, check_positive, stream
from ici.models.norms import Norm
from ici.models.registry import InputSpec, register

Placement = Literal["pre", "post", "peri"]
Positions = Literal["rope", "learned"]
Feed = Literal["gelu", "swiglu"]
Init = Literal["normal", "depth_scaled"]
Dtype = Literal["float32", "bfloat16"]

STD = 0.02
_QK_NORMS = ("rms", "layer")


class FeedForward(nnx.Module):
    """Two linear maps around GELU, or SwiGLU's three (Shazeer 2020); ``x[B, T, D]``."""

    def __init__(self, config: TransformerConfig, norm: Norm, out_std: float, *, key: Array):
        width, hidden = config.width, config.hidden

        def linear(in_features: int, out_features: int, std: float, index: int) -> nnx.Linear:
            return norm.linear(
                in_features,
                out_features,
                use_bias=config.use_bias,
                kernel_init=nnx.initializers.normal(std),
                dtype=config.compute_dtype,
                rngs=stream(key, index),
            )

        self.up = linear(width, hidden, STD, 0)
        self.gate = linear(width, hidden, STD, 1) if config.activation == "swiglu" else None
        self.down = linear(hidden, width, out_std, 2)
        self.nonlinearity = Nonlinearity("silu" if self.gate is not None else "gelu")

    def __call__(self, x: Array) -> Array:
        if self.gate is None:
            return self.down(self.nonlinearity(self.up(x)))
        return self.down(self.nonlinearity(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and feed-forward layers, each with a residual connection and norms.

    ``"pre"``: x + f(norm(x)) (Xiong et al. 2020). ``"post"``: norm(x + f(x)) (Vaswani et al. 2017).
    ``"peri"``: x + norm(f(norm(x))), a norm on either side of the layer (Kim et al. 2025).
    """

    def __init__(
        self, config: TransformerConfig, norm: Norm, qk_norm: Norm | None, depth: int, key: Array
    ):
        self.placement: Placement = config.placement
        self.dtype = config.compute_dtype
        out_std = STD / math.sqrt(2 * depth) if config.init == "depth_scaled" else STD
        self.attention = CausalSelfAttention(
            config.width,
            config.heads,
            norm=norm,
            qk_norm=qk_norm,
            is_rotary=config.positions == "rope",
            use_bias=config.use_bias,
            std=STD,
            out_std=out_std,
            dtype=config.compute_dtype,
            key=jax.random.fold_in(key, 0),
        )
        self.feed_forward = FeedForward(config, norm, out_std, key=jax.random.fold_in(key, 1))

        def layer(index: int) -> nnx.Module:
            return norm.layer(config.width, layout="sequence", rngs=stream(key, index))

        self.attention_norm, self.feed_forward_norm = layer(2), layer(3)
        is_peri = config.placement == "peri"
        self.attention_out_norm = layer(4) if is_peri else None
        self.feed_forward_out_norm = layer(5) if is_peri else None

    def __call__(self, x: Array, place_BT: Array, visible_B1TS: Array) -> Array:
        def attend(x: Array) -> Array:
            return self.attention(x, place_BT, visible_B1TS)

        x = self._residual(x, attend, self.attention_norm, self.attention_out_norm)
        return self._residual(
            x, self.feed_forward, self.feed_forward_norm, self.feed_forward_out_norm
        )

    def _residual(
        self, x: Array, f: Callable[[Array], Array], norm: Callable, out_norm: Callable | None
    ) -> Array:
        if self.placement == "post":
            return norm(x + f(x)).astype(self.dtype)
        y = f(norm(x).astype(self.dtype))
        return x + (y if out_norm is None else out_norm(y).astype(self.dtype))


class TransformerLM(nnx.Module):
    """``tokens[B, T]`` to the next token's logits ``[B, T, vocab]``, float32."""

    def __init__(
        self, config: TransformerConfig, norm: Norm, qk_norm: Norm | None, depth: int,
        spec: InputSpec, rngs: nnx.Rngs,
    ):  # fmt: skip
        assert spec.vocab_size is not None
        self.config, self.separator = config, spec.separator
        key, normal = rngs.params(), nnx.initializers.normal(STD)
        dtype, width = config.compute_dtype, config.width

        def embed(size: int, index: int) -> nnx.Embed:
            return nnx.Embed(
                size, width, embedding_init=normal, dtype=dtype, rngs=stream(key, index)
            )

        self.embed = embed(spec.vocab_size, 0)
        is_learned = config.positions == "learned"
        self.position_embed = embed(config.max_length, 1) if is_learned else None

        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(key: Array) -> Block:
            return Block(config, norm, qk_norm, depth, key)

        # A block's weights depend on its place alone: a deeper network begins like this one.
        self.blocks = stack(jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(depth) + 4))
        has_last = config.placement != "post"
        self.norm = norm.layer(width, layout="sequence", rngs=stream(key, 2)) if has_last else None
        head = functools.partial(nnx.Linear, use_bias=False, kernel_init=normal)
        is_tied = config.tied
        self.head = None if is_tied else head(width, spec.vocab_size, rngs=stream(key, 3))

    def __call__(self, tokens_BT: Array) -> Array:
        document_BT, place_BT = documents(tokens_BT, self.separator)
        visible_B1TS = visible(document_BT)
        x = self.embed(tokens_BT)
        if self.position_embed is not None:
            x = x + self.position_embed(place_BT)

        def block_of(block: Block, x: Array) -> Array:
            return block(x, place_BT, visible_B1TS)

        apply = nnx.remat(block_of) if self.config.remat else block_of

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x: Array, block: Block) -> Array:
            return apply(block, x)

        x = run(x, self.blocks)
        if self.norm is not None:
            x = self.norm(x)
        x = x.astype(jnp.float32)
        return x @ self.embed.embedding[...].T if self.head is None else self.head(x)


def z_loss(logits: Array, labels: Array) -> Array:
    """Mean over the labels that count (≥ 0) of the squared log-partition function.

    Source: Chowdhery et al. (PaLM) 2022, §5; Wortsman et al. 2023, §3.1.2.
    """
    counts = labels >= 0
    squares = jnp.square(jax.nn.logsumexp(logits, axis=-1))
    return jnp.sum(squares * counts) / jnp.maximum(jnp.sum(counts), 1)


@register("transformer")
@dataclass(frozen=True)
class TransformerConfig:
    """Settings of the Transformer family; depth (blocks) and norm are swept by the experiment.

    ``norm="layer+qk"`` adds QK-norm (of the same kind, or RMS where that is none of the two) to a
    norm, so that a sweep can compare it with the norm alone.

    Attributes:
      width: features of the residual stream.
      heads: attention heads; they divide the width.
      hidden_ratio: units of the feed-forward layer over the width; 2/3 of it for SwiGLU, which has
        three matrices.
      placement: norm before each layer ("pre"), after the residual sum ("post"), or on either side
        of the layer ("peri").
      qk_norm: of queries and keys per head, "rms", "layer" or "none" (Henry et al. 2020).
      z_loss: weight of the squared log-partition function in the training loss.
      positions: rotary ("rope") or "learned"; both start anew in every document.
      max_length: positions that can be learned.
      activation: "gelu" or "swiglu".
      tied: whether the output layer is the embedding, transposed.
      use_bias: whether linear maps have biases.
      init: N(0, 0.02) everywhere ("normal"), or with the maps into the residual stream divided by
        √(2 · depth) ("depth_scaled"; Radford et al. 2019).
      dtype: of the computation; parameters, norms, softmax and logits are float32.
      remat: compute each block anew in the backward pass, to save memory.
    """

    width: int = 128
    heads: int = 4
    hidden_ratio: int = 4
    placement: Placement = "pre"
    qk_norm: str = "none"
    z_loss: float = 0.0
    positions: Positions = "rope"
    max_length: int = 1024
    activation: Feed = "gelu"
    tied: bool = True
    use_bias: bool = False
    init: Init = "normal"
    dtype: Dtype = "float32"
    remat: bool = False

    norm_additions: ClassVar[tuple[str, ...]] = ("qk",)

    def __post_init__(self) -> None:
        check_positive(self, "width", "heads", "hidden_ratio", "max_length")
        choices = {"placement": Placement, "positions": Positions, "activation": Feed}
        check_choices(self, choices | {"init": Init, "dtype": Dtype})
        if self.width % self.heads:
            raise InputError(
                f"heads is {self.heads} and width is {self.width}: wanted heads that divide it."
            )
        if self.positions == "rope" and self.width // self.heads % 2:
            raise InputError(
                f"a head has {self.width // self.heads} features: wanted an even number for rotary "
                "positions; change width or heads, or use positions 'learned'."
            )
        if self.qk_norm not in ("none", *_QK_NORMS):
            raise unknown_name("qk_norm", self.qk_norm, ("none", *_QK_NORMS))
        if not self.z_loss >= 0:
            raise InputError(f"z_loss is {self.z_loss}: wanted a number >= 0.")

    @property
    def hidden(self) -> int:
        """Units of the feed-forward layer."""
        units = self.hidden_ratio * self.width
        return units if self.activation == "gelu" else -(-2 * units // 24) * 8

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The type of activations."""
        return jnp.dtype(self.dtype)

    def loss(self, spec: InputSpec) -> Callable[[Array, Array], Array] | None:
        """The loss that is minimised where it is not the task's alone."""
        if not self.z_loss:
            return None

        def with_z_loss(logits: Array, labels: Array) -> Array:
            counts = labels >= 0
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
            mean = jnp.sum(losses * counts) / jnp.maximum(jnp.sum(counts), 1)
            return mean + self.z_loss * z_loss(logits, labels)

        return with_z_loss

    def build(self, norm: str, depth: int, spec: InputSpec) -> Callable[[nnx.Rngs], nnx.Module]:
        """A factory for ``from_nnx``.

        Raises:
          InputError: unknown norm, a depth below 1, data that are no language-model data, or rows
            longer than the positions that can be learned.
        """
        base, _, addition = norm.partition("+")
        parsed = norms.parse(base)
        check_depth(depth)
        if spec.task != "language_model" or spec.vocab_size is None or len(spec.shape) != 1:
            raise InputError(
                f"model 'transformer' on {spec.task} data of shape {spec.shape}: wanted tokens "
                "with next-token labels, such as review_text."
            )
        if spec.n_classes != spec.vocab_size:
            raise InputError(
                f"{spec.vocab_size} tokens go in and {spec.n_classes} come out: wanted the same."
            )
        if self.positions == "learned" and spec.shape[0] > self.max_length:
            raise InputError(
                f"rows have {spec.shape[0]} tokens and max_length is {self.max_length}: wanted "
                "rows that fit, or a larger max_length."
            )
        if parsed.name == "instance":
            parsed.layer(self.width, layout="sequence", rngs=nnx.Rngs(0))  # says what is wrong
        kind = self.qk_norm
        if addition and kind == "none":
            kind = parsed.name if parsed.name in _QK_NORMS else "rms"
        qk_norm = None if kind == "none" else norms.parse(kind)
        return lambda rngs: TransformerLM(self, parsed, qk_norm, depth, spec, rngs)
