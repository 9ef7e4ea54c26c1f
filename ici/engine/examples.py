"""Examples on the devices, read by index."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Arrays:
    """Examples on the device, read by index: a whole split.

    ``ids`` are the examples' numbers in the split; None where they are the indices themselves.
    """

    inputs: Array
    labels: Array
    ids: Array | None = None

    def take(self, indices: Array) -> tuple[Array, Array]:
        """Inputs and labels ``[B, ...]`` of the examples at ``indices[B]``."""
        return self.inputs[indices], self.labels[indices]

    def ids_at(self, indices: Array) -> Array:
        """Their numbers in the split, ``[B]``."""
        return indices if self.ids is None else self.ids[indices]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batches(Arrays):
    """The batches of one chunk of steps, ``[n, B, ...]``, in the order in which they are indexed.

    Indices count through all of them, and are only ever asked for a whole batch at a time: it is
    found by its number, so that where the batches are spread over devices, nothing moves.
    """

    def take(self, indices: Array) -> tuple[Array, Array]:
        at = self._at(indices)
        return self.inputs[at], self.labels[at]

    def ids_at(self, indices: Array) -> Array:
        assert self.ids is not None
        return self.ids[self._at(indices)]

    def _at(self, indices: Array) -> Array:
        return indices[0] // self.inputs.shape[1]
