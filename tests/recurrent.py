"""A net that runs the same layers over and over, as users write it."""

from __future__ import annotations

import flax.linen as nn


class SharedCell(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4, name="b")(nn.relu(nn.Dense(4, name="a")(x))), None


class LinenShared(nn.Module):
    """A recurrent net: the same two layers in every iteration."""

    @nn.compact
    def __call__(self, x):
        cell = nn.scan(
            SharedCell,
            variable_axes={"ici_input": 0},
            variable_broadcast="params",
            split_rngs={"params": False},
            length=2,
        )
        return nn.Dense(3, name="head")(cell(name="cell")(x, None)[0])
