"""A network's parameters as blocks in execution order: one layer each, with its norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ici.adapt import Model, Variables
from ici.errors import InputError
from ici.measure.updates import Updates
from ici.probe import Probe, Site

PyTree = Any


@dataclass(frozen=True)
class Blocks:
    """Which block each parameter belongs to.

    Attributes:
      names: in execution order; a block is named by its layer.
      owners: per leaf of the parameters (order of ``jax.tree.leaves``), the block's index; for a
        leaf stacked for a scan over layers, one index per row.
    """

    names: tuple[str, ...]
    owners: tuple[int | tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.names)

    def select(self, chosen: Array, new: PyTree, old: PyTree) -> PyTree:
        """`new` in the blocks where the bool array ``chosen[k]`` is true, `old` elsewhere."""
        leaves, structure = jax.tree.flatten(old)
        mixed = [
            jnp.where(self._per_row(chosen, owner, a), b, a)
            for owner, a, b in zip(self.owners, leaves, jax.tree.leaves(new), strict=True)
        ]
        return jax.tree.unflatten(structure, mixed)

    def _per_row(self, values: Array, owner: int | tuple[int, ...], leaf: Array) -> Array:
        if isinstance(owner, int):
            return values[owner]
        return values[jnp.asarray(owner)].reshape(-1, *(1,) * (leaf.ndim - 1))

    def total(self, tree: PyTree) -> Array:
        """Sum of all entries of each block, ``[k]``; `tree` is shaped like the parameters."""
        leaves = jax.tree.leaves(tree)
        sums = jnp.zeros(len(self.names), jnp.result_type(jnp.float32, *leaves))
        for owner, leaf in zip(self.owners, leaves, strict=True):
            if isinstance(owner, int):
                sums = sums.at[owner].add(jnp.sum(leaf))
            else:
                rows = jnp.sum(leaf.reshape(leaf.shape[0], -1), axis=1)
                sums = sums.at[jnp.asarray(owner)].add(rows)
        return sums

    def norm(self, tree: PyTree) -> Array:
        """Euclidean norm of each block, ``[k]``."""
        return jnp.sqrt(self.total(jax.tree.map(jnp.square, tree)))

    def nonfinite(self, tree: PyTree) -> Array:
        """Share of each block's entries that are NaN or infinite, ``[k]``."""
        broken = self.total(jax.tree.map(lambda a: (~jnp.isfinite(a)).astype(jnp.float32), tree))
        return broken / self.total(jax.tree.map(lambda a: jnp.ones_like(a, jnp.float32), tree))


def update_statistics(
    probe: Probe, blocks: Blocks, grads: PyTree, before: PyTree, after: PyTree
) -> dict[str, Updates]:
    """The probe's statistics of blocks, by name, of the update from `before` to `after`."""

    def square(tree: PyTree) -> Array:
        return blocks.total(jax.tree.map(lambda a: jnp.square(a.astype(jnp.float32)), tree))

    update = jax.tree.map(jnp.subtract, after, before)
    squares = square(grads), square(update), square(before)
    return {name: kind.of(*squares) for name, kind in probe.kinds_at("block").items()}


def find_blocks(model: Model, variables: Variables, inputs: Any) -> Blocks:
    """The blocks of `model`, from one abstract forward pass.

    Every layer that owns parameters is a block. A norm belongs to the layer next to it with which
    it shares more of its path (``blocks/3/norm`` to ``blocks/3/linear``), to the one before it if
    it shares as much with both. A layer called several times stands where it was first called.
    Parameters that no watched layer owns (an embedding of token ids, a learnt position) come
    first: they act on the data.

    Raises:
      InputError: the model has no parameters.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables.params)]
    names = [tuple(str(getattr(entry, "key", entry)) for entry in path) for path in paths]
    leaves = jax.tree.leaves(variables.params)
    if not leaves:
        raise InputError(f"{model.name} has no parameters: wanted a model with blocks to compare.")
    watched = _layers(model, variables, inputs)
    homes = [_homes(path, leaf, watched) for path, leaf in zip(names, leaves, strict=True)]
    order = _order(homes, watched)
    heads = _joined(order, watched)
    blocks = list(dict.fromkeys(heads[name] for name in order))
    index = {name: blocks.index(heads[name]) for name in order}
    owners = tuple(
        index[home[0]] if len(home) == 1 else tuple(index[row] for row in home) for home in homes
    )
    return Blocks(tuple(blocks), owners)


def _layers(model: Model, variables: Variables, inputs: Any) -> list[Site]:
    """The called layers that own parameters, each once, in execution order."""
    try:
        taps = model.taps_shape(variables, inputs, Probe(select=lambda site: site.has_weights))
    except InputError:
        return []  # nothing that can be watched owns parameters
    first: dict[tuple[tuple[str, ...], int | None], Site] = {}
    for site in taps.watched:
        first.setdefault((site.path, site.row), site)
    return list(first.values())


def _plain(site: Site) -> str:
    return site.name.split("#")[0]


def _homes(path: tuple[str, ...], leaf: Any, layers: Sequence[Site]) -> list[str]:
    """Name of the layer that owns a parameter; one per row where it is stacked."""
    owning = [s for s in layers if path[: len(s.path)] == s.path and (s.path or len(path) == 1)]
    longest = max((len(site.path) for site in owning), default=-1)
    owning = [site for site in owning if len(site.path) == longest]
    rows = {site.row: site for site in owning}
    if None in rows:
        return [_plain(rows[None])]
    if rows and all(row in rows for row in range(leaf.shape[0])):
        return [_plain(rows[row]) for row in range(leaf.shape[0])]
    return ["/".join(path[:-1]) or path[0]]


def _order(owners: list[list[str]], layers: Sequence[Site]) -> list[str]:
    owned = {home for homes in owners for home in homes}
    called = [name for name in dict.fromkeys(map(_plain, layers)) if name in owned]
    rest = [home for homes in owners for home in homes if home not in called]
    return [*dict.fromkeys(rest), *called]


def _joined(order: list[str], layers: Sequence[Site]) -> dict[str, str]:
    """The block of every layer: itself, or for a norm the layer that it goes with."""
    norms = {_plain(site) for site in layers if site.is_norm}
    # A network that holds parameters itself is no layer that a norm stands beside.
    called = {_plain(site) for site in layers if site.path} - norms

    def shared(a: str, b: str) -> int:
        pairs = zip(a.split("/")[:-1], b.split("/"), strict=False)
        equal = [x == y for x, y in pairs]
        return equal.index(False) if False in equal else len(equal)

    heads: dict[str, str] = {}
    for i, name in enumerate(order):
        before = next((n for n in reversed(order[:i]) if n in called), None)
        after = next((n for n in order[i + 1 :] if n in called), None)
        if name not in norms or (before is None and after is None):
            heads[name] = name
        elif before is None or (after is not None and shared(name, after) > shared(name, before)):
            heads[name] = after or name
        else:
            heads[name] = before
    return heads
