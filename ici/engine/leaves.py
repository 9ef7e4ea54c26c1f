"""Leaves of a state by name, and what tells whether they are what was saved."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ici.engine import hosts
from ici.errors import InputError

PyTree = Any


class DamagedError(InputError):
    """A checkpoint is not what was saved, or not of this model."""


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves of a pytree by path; random keys as the numbers they are."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        leaves[jax.tree_util.keystr(path)] = jax.random.key_data(leaf) if is_key else leaf
    return leaves


def with_leaves(tree: PyTree, leaves: dict[str, np.ndarray]) -> PyTree:
    """`tree` with its leaves replaced by those of `leaves`; random keys are made of numbers.

    Raises:
      DamagedError: names, types or shapes (but for the first axis) differ: nothing is cast.
    """
    old = named_leaves(tree)
    if old.keys() != leaves.keys():
        differing = sorted(old.keys() ^ leaves.keys())
        raise DamagedError(
            f"a checkpoint has other leaves than the model: {', '.join(differing[:3])}: go on with "
            "the code that saved it, or --restart trains from step 0."
        )

    def replaced(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        new, wanted = leaves[name], old[name]
        if new.dtype != wanted.dtype or new.shape[1:] != wanted.shape[1:]:
            raise DamagedError(
                f"{name} is {new.dtype}{list(new.shape)}: the model wants "
                f"{wanted.dtype}{list(wanted.shape)}; go on with the code that saved it, or "
                "--restart trains from step 0."
            )
        if wanted is leaf:
            return new
        return jax.random.wrap_key_data(jnp.asarray(new), impl=jax.random.key_impl(leaf))

    return jax.tree_util.tree_map_with_path(replaced, tree)


_HOST = "host/"


def with_host(leaves: dict[str, Any], host: dict[str, np.ndarray]) -> dict[str, Any]:
    """Leaves of the devices and arrays of the host as one dictionary."""
    return leaves | {_HOST + name: array for name, array in host.items()}


def split_host(leaves: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `with_host` put together."""
    state = {name: leaf for name, leaf in leaves.items() if not name.startswith(_HOST)}
    host = {name[len(_HOST) :]: leaf for name, leaf in leaves.items() if name.startswith(_HOST)}
    return state, host


def digests(leaves: dict[str, Any]) -> dict[str, Any]:
    """SHA-256 of every leaf's bytes, type and shape.

    Of a leaf that lies on the devices of several processes: of every part that this one is to save,
    by what of the leaf it is.
    """

    def of(item: tuple[str, Any]) -> tuple[str, Any]:
        name, leaf = item
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return name, _digest(leaf)
        mine = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
        return name, {_where(s.index, leaf.shape): _digest(s.data) for s in mine}

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(of, leaves.items()))


def _digest(leaf: Any) -> str:
    array = np.asarray(leaf)
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return digest.hexdigest()


def _where(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """A part of an array as text, such as ``0:2,4:8``."""
    bounds = [part.indices(size) for part, size in zip(index, shape, strict=True)]
    return ",".join(f"{first}:{last}" for first, last, _ in bounds)


def of_all(mine: dict[str, Any]) -> dict[str, Any]:
    """The digests that all processes found, on process 0."""
    whole, *others = hosts.gathered(mine) or [mine]
    for more in others:
        for name, parts in more.items():
            if isinstance(parts, dict):
                whole[name] |= parts
    return whole


def is_intact(array: np.ndarray, digest: Any) -> bool:
    """Whether an array is what `digests` saw: whole, or all parts of it."""
    if not isinstance(digest, dict):
        return _digest(array) == digest
    n_seen = 0
    for where, of_part in digest.items():
        bounds = (text.split(":") for text in where.split(",") if where)
        part = array[tuple(slice(int(first), int(last)) for first, last in bounds)]
        if _digest(part) != of_part:
            return False
        n_seen += part.size
    return n_seen == array.size


def state_digest(leaves: dict[str, Any]) -> str:
    """One SHA-256 over all leaves."""
    return hash_of(digests(leaves))


def hash_of(content: Any) -> str:
    """SHA-256 of JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
