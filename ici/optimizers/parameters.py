"""Which parameters are matrices, and which are decayed, told by their names and axes."""

from __future__ import annotations

from typing import Any, Literal

import jax
from jax import Array
from optax.contrib import MuonDimensionNumbers

PyTree = Any
DecayOn = Literal["all", "matrices"]
DECAYED = ("all", "matrices")

_VECTORS = {"bias", "scale", "scales", "alpha", "beta", "gamma"}
_NO_HIDDEN_LAYER = ("embed", "head", "logits", "position")


def _names(path: tuple[Any, ...]) -> list[str]:
    return [jax.tree_util.keystr((part,), simple=True).lower() for part in path]


def _is_weight(path: tuple[Any, ...], leaf: Array) -> bool:
    """Whether a parameter multiplies features: no bias, no scale, even where layers are stacked."""
    return leaf.ndim >= 2 and _names(path)[-1] not in _VECTORS


def decay_mask(params: PyTree, on: DecayOn) -> PyTree:
    """True for each leaf that weight decay concerns: all of them, or weights and embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: on == "all" or _is_weight(path, leaf), params
    )


def matrices(params: PyTree) -> PyTree:
    """The axes of each hidden layer's weight matrix, None for every other leaf.

    A kernel of two axes is a matrix; of three, a stack of them (scanned layers); of four, the
    filters ``[H, W, in, out]`` of a convolution, as a matrix from H·W·in to out. Embeddings and
    the output layer are none, as is usual with Muon (Jordan 2024).
    """

    def axes(path: tuple[Any, ...], leaf: Array) -> MuonDimensionNumbers | None:
        names = _names(path)
        outer = any(word in name for name in names for word in _NO_HIDDEN_LAYER)
        if outer or names[-1] in _VECTORS or leaf.ndim not in (2, 3, 4):
            return None
        reduced = {2: (0,), 3: (1,), 4: (0, 1, 2)}[leaf.ndim]
        return MuonDimensionNumbers(reduced, (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(axes, params)
