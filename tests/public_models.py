"""Models in the style of public repositories, written without a thought of measurement."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

# -- Linen: a residual network with BatchNorm ----------------------------------------------------


class ResidualBlock(nn.Module):
    filters: int
    conv: Any
    norm: Any
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = self.conv(self.filters, (3, 3), self.strides)(x)
        y = nn.relu(self.norm()(y))
        y = self.conv(self.filters, (3, 3))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if residual.shape != y.shape:
            residual = self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(residual)
            residual = self.norm(name="norm_proj")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    filters: int = 4
    classes: int = 3
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, axis_name=self.axis_name
        )
        x = nn.relu(norm(name="bn_init")(conv(self.filters, (3, 3), name="conv_init")(x)))
        for i in range(2):
            strides = (2, 2) if i else (1, 1)
            x = ResidualBlock(self.filters * 2**i, conv, norm, strides)(x)
        return nn.Dense(self.classes)(jnp.mean(x, axis=(1, 2)))


def resnet_sites():
    """In execution order: the projection comes after the two convolutions beside it."""
    block = "ResidualBlock_{}/{}"
    inner = ("Conv_0", "BatchNorm_0", "Conv_1", "BatchNorm_1")
    return (
        "conv_init",
        "bn_init",
        *(block.format(0, m) for m in inner),
        *(block.format(1, m) for m in (*inner, "conv_proj", "norm_proj")),
        "Dense_0",
    )


# -- NNX: a pre-LN Transformer, its blocks scanned -----------------------------------------------


class TransformerBlock(nnx.Module):
    def __init__(self, width, heads, dropout, *, rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x, mask=None):
        x = x + self.attn(self.norm1(x), mask=mask)
        h = nnx.gelu(self.up(self.norm2(x)))
        return x + self.down(self.dropout(h))


class Transformer(nnx.Module):
    def __init__(self, vocab=11, width=8, heads=2, depth=3, dropout=0.0, scan=True, *, rngs):
        self.embed = nnx.Embed(vocab, width, rngs=rngs)
        self.scan = scan
        if scan:

            @nnx.split_rngs(splits=depth)
            @nnx.vmap(in_axes=(0,), out_axes=0)
            def stack(rngs):
                return TransformerBlock(width, heads, dropout, rngs=rngs)

            self.blocks = stack(rngs)
        else:
            blocks = [TransformerBlock(width, heads, dropout, rngs=rngs) for _ in range(depth)]
            self.blocks = nnx.List(blocks)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, vocab, rngs=rngs)

    def __call__(self, tokens):
        mask = nnx.make_causal_mask(tokens)
        x = self.embed(tokens)
        if self.scan:

            @nnx.scan(in_axes=(nnx.Carry, 0, None), out_axes=nnx.Carry)
            def run(x, block, mask):
                return block(x, mask)

            x = run(x, self.blocks, mask)
        else:
            for block in self.blocks:
                x = block(x, mask)
        return self.head(self.norm(x))


def transformer_sites(depth=3):
    attn = ("attn/query", "attn/key", "attn/value", "attn/out")
    block = ("norm1", *attn, "norm2", "up", "down")
    return (*(f"blocks/{i}/{m}" for i in range(depth) for m in block), "norm", "head")


# -- NNX: a convnet with GroupNorm ---------------------------------------------------------------


class GroupNormConvNet(nnx.Module):
    def __init__(self, width=4, *, rngs):
        self.stem = nnx.Conv(1, width, (3, 3), rngs=rngs)
        self.layers = nnx.Sequential(
            nnx.GroupNorm(width, num_groups=2, rngs=rngs),
            nnx.relu,
            nnx.Conv(width, 2 * width, (3, 3), strides=2, rngs=rngs),
            nnx.GroupNorm(2 * width, num_groups=2, rngs=rngs),
            nnx.relu,
        )
        self.head = nnx.Linear(2 * width, 3, rngs=rngs)

    def __call__(self, images):
        return self.head(self.layers(self.stem(images)).mean(axis=(1, 2)))


CONVNET_SITES = ("stem", "layers/layers/0", "layers/layers/2", "layers/layers/3", "head")


# -- recurrent networks --------------------------------------------------------------------------


class LSTMClassifier(nnx.Module):
    def __init__(self, features=3, hidden=4, classes=3, *, rngs):
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(features, hidden, rngs=rngs))
        self.head = nnx.Linear(hidden, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


class LinenGRU(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = nn.RNN(nn.GRUCell(4))(x)
        return nn.Dense(3, name="head")(hidden[:, -1])


def images(n=8, side=6):
    return jax.random.normal(jax.random.key(1), (n, side, side, 1)) + 0.5


def tokens(n=5, length=6, vocab=11):
    return jax.random.randint(jax.random.key(2), (n, length), 1, vocab)


def series(n=5, length=4, features=3):
    return 2 * jax.random.normal(jax.random.key(3), (n, length, features)) + 1
