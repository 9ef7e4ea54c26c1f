"""Modules as users write them, without a thought of measurement."""

from __future__ import annotations

import flax.linen as nn
import jax
from flax import nnx


class Block(nnx.Module):
    def __init__(self, features, *, rngs):
        self.norm = nnx.BatchNorm(features, rngs=rngs)  # defined first, called last
        self.linear = nnx.Linear(features, features, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.linear(x)))


class Chain(nnx.Module):
    def __init__(self, features=4, depth=3, dropout=0.0, *, rngs):
        self.head = nnx.Linear(features, 2, rngs=rngs)
        self.blocks = nnx.List([Block(features, rngs=rngs) for _ in range(depth)])
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(x))


class Scanned(nnx.Module):
    """`Chain` without dropout, its blocks stacked and scanned."""

    def __init__(self, features=4, depth=3, *, rngs):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs):
            return Block(features, rngs=rngs)

        self.head = nnx.Linear(features, 2, rngs=rngs)
        self.blocks = stack(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, block):
            return block(x)

        return self.head(run(x, self.blocks))


class Remat(Chain):
    def __call__(self, x):
        for block in self.blocks:
            x = nnx.remat(lambda block, x: block(x))(block, x)
        return self.head(x)


class Twice(nnx.Module):
    """One layer called twice, and an embedding of integers."""

    def __init__(self, *, rngs):
        self.embed = nnx.Embed(10, 4, rngs=rngs)
        self.layer = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        return self.layer(nnx.relu(self.layer(x)))


class Sub(nnx.Linear):
    def __call__(self, x):
        return super().__call__(2 * x)


class WithSub(nnx.Module):
    def __init__(self, *, rngs):
        self.sub = Sub(4, 4, rngs=rngs)
        self.plain = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.plain(self.sub(x))


class LinenBlock(nn.Module):
    features: int = 4

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.Dense(self.features, name="linear")(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.99, name="norm")(x))


class LinenChain(nn.Module):
    features: int = 4
    depth: int = 3
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = True):
        for i in range(self.depth):
            x = LinenBlock(self.features, name=f"blocks_{i}")(x, train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(2, name="head")(x)


class LinenScanned(nn.Module):
    """Its scan admits the collection that carries readings."""

    features: int = 4
    depth: int = 3

    @nn.compact
    def __call__(self, x, train: bool = True):
        class Body(nn.Module):
            features: int

            @nn.compact
            def __call__(self, x, _):
                return LinenBlock(self.features, name="block")(x, train), None

        stack = nn.scan(
            Body,
            variable_axes={"params": 0, "batch_stats": 0, "ici_input": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        x, _ = stack(self.features, name="blocks")(x, None)
        return nn.Dense(2, name="head")(x)


class LinenTwice(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool = False):
        layer = nn.Dense(4, name="layer")
        return layer(nn.Dropout(0.5, deterministic=deterministic)(layer(x)))


def data(n=16, features=4):
    """Inputs whose features differ in mean and scale."""
    x = jax.random.normal(jax.random.key(1), (n, features))
    return 3.0 * x + jax.numpy.arange(features, dtype=x.dtype)[None]
