"""Vanishing and exploding gradients: the norm of each block's gradient, and its growth by depth."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from ici.errors import InputError

GRADIENT_NORM = "block_gradient_norm"


def repeated_blocks(blocks: list[str]) -> list[int]:
    """Positions of the blocks that are repetitions of one another, such as ``blocks/*/linear``.

    The first and the last layers have other shapes, so that the norm of their gradients says
    nothing of depth. Of several repeated kinds, the most frequent; the first of those on a tie.
    Empty where fewer than three repeat.
    """
    kinds = [re.sub(r"\d+", "*", name) for name in blocks]
    counted = Counter(kind for kind in kinds if "*" in kind)
    if not counted:
        return []
    kind, n = counted.most_common(1)[0]
    return [i for i, each in enumerate(kinds) if each == kind] if n >= 3 else []


def growth_per_layer(norms: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Factor by which gradient norms grow from one layer to the one below, and R² of the fit.

    ``norms[..., k]`` in execution order, input first. The factor is ``exp(−slope)`` of the least
    squares line through ``ln norms`` over the layer's index: above 1 gradients explode on the way
    down, below 1 they vanish. A factor says little where R² is far below 1: gradients that bend
    are not exponential. NaN where fewer than three norms are positive and finite.

    Source: Yang et al., "A mean field theory of batch normalization", 2019, Thm 3.9 and 8, who
    derive the factor for BatchNorm at initialization.

    Raises:
      InputError: fewer than three layers.
    """
    values = np.asarray(norms, np.float64)
    if values.ndim == 0 or values.shape[-1] < 3:
        raise InputError(
            f"gradient norms of shape {values.shape}: wanted three or more layers on the last axis."
        )
    known = np.isfinite(values) & (values > 0)
    enough = known.sum(axis=-1) >= 3
    n = np.maximum(known.sum(axis=-1, keepdims=True), 1)
    layer = np.where(known, np.arange(values.shape[-1], dtype=np.float64), 0.0)
    logs = np.log(np.where(known, values, 1.0))
    x = np.where(known, layer - layer.sum(-1, keepdims=True) / n, 0.0)
    y = np.where(known, logs - logs.sum(-1, keepdims=True) / n, 0.0)
    xx, xy, yy = (x * x).sum(-1), (x * y).sum(-1), (y * y).sum(-1)
    slope = xy / np.where(xx > 0, xx, 1.0)
    # Equal norms lie exactly on their (flat) line.
    r2 = np.where(yy > 1e-24, xy * slope / np.where(yy > 1e-24, yy, 1.0), 1.0)
    return np.where(enough, np.exp(-slope), np.nan), np.where(enough, r2, np.nan)


def gradient_growth(norms: xr.DataArray) -> xr.Dataset:
    """`growth_per_layer` over the dimension ``block``: ``growth`` and ``r2`` ``(…)``.

    Raises:
      InputError: fewer than three blocks repeat.
    """
    blocks = norms["block"].values.tolist()
    chosen = repeated_blocks(blocks)
    if not chosen:
        raise InputError(
            f"blocks {', '.join(blocks)} hold no three of a kind: wanted a deeper network."
        )
    hidden = norms.isel(block=chosen).transpose(..., "block")
    growth, r2 = growth_per_layer(hidden.values)
    like = hidden.isel(block=0, drop=True).astype(np.float64)
    return xr.Dataset(
        {"growth": like.copy(data=growth), "r2": like.copy(data=r2)},
        attrs={"blocks": [blocks[i] for i in chosen]},
    )
