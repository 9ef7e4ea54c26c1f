"""Several processes that run one program together, each on devices of its own.

Every process takes the same way through the program: what one alone can know (a notice to stop, the
time, what a folder holds) is told to all before anything depends on it. Small things are told
through JAX's coordination service, not through the devices, which may be a chunk of steps behind.
With one process all of this does nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ici.engine.sharding import of_examples
from ici.errors import InputError

PyTree = Any
T = TypeVar("T")
# Longer than anything that one process does and the others wait for; a watchdog is quicker.
PATIENCE_S = 24 * 3600
_turns = itertools.count()
_met_at = time.monotonic()


def client() -> Any:
    """JAX's connection to the coordination service; None where this process is the only one."""
    # Not public, and the only way to it: `jax.experimental.multihost_utils` goes through devices.
    from jax._src import distributed

    return distributed.global_state.client


def n_processes() -> int:
    """How many processes run this program; asking does not start JAX's devices."""
    from jax._src import distributed

    return 1 if client() is None else distributed.global_state.num_processes


def process_index() -> int:
    """This process's number, from 0."""
    from jax._src import distributed

    return 0 if client() is None else distributed.global_state.process_id


def is_first() -> bool:
    """Whether this process is the one that writes what all share."""
    return process_index() == 0


def met_at() -> float:
    """When this process last met the others, by `time.monotonic`."""
    return _met_at


def _next_turn(what: str) -> str:
    global _met_at
    _met_at = time.monotonic()
    return f"ici/{what}/{next(_turns)}"


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For every flag, whether it is true on some process. All have to call this together."""
    if n_processes() == 1:
        return flags
    key = _next_turn("any")
    if any(flags):
        client().key_value_set(f"{key}/{process_index()}", json.dumps([bool(f) for f in flags]))
    client().wait_at_barrier(key, PATIENCE_S * 1000)
    told = [json.loads(text) for _, text in client().key_value_dir_get(key)]
    return tuple(any(column) for column in zip(*told, strict=True)) or (False,) * len(flags)


def first_says(function: Callable[[], T]) -> T:
    """What `function` returns on process 0, which alone calls it; JSON. All call this together.

    Raises:
      InputError: `function` raised it; on every process.
    """
    if n_processes() == 1:
        return function()
    key = _next_turn("first")
    if not is_first():
        told = json.loads(client().blocking_key_value_get(key, PATIENCE_S * 1000))
        if "error" in told:
            raise InputError(told["error"])
        return told["value"]
    try:
        value = function()
    except InputError as error:
        client().key_value_set(key, json.dumps({"error": str(error)}))
        raise
    client().key_value_set(key, json.dumps({"value": value}))
    return value


def gathered(value: Any) -> list[Any]:
    """The JSON `value` of every process, on process 0; an empty list on others."""
    if n_processes() == 1:
        return [value]
    key = _next_turn("gathered")
    if not is_first():
        client().key_value_set(f"{key}/{process_index()}", json.dumps(value))
        return []
    values = [value]
    for process in range(1, n_processes()):
        one = f"{key}/{process}"
        values.append(json.loads(client().blocking_key_value_get(one, PATIENCE_S * 1000)))
        client().key_value_delete(one)
    return values


def leave(status: int, within_s: float = 20.0) -> None:
    """Ends this process with an exit status; the others are waited for, but not for ever."""
    if n_processes() == 1:
        raise SystemExit(status)
    ending = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    ending.start()
    ending.join(within_s)
    os._exit(status)


def put(tree: PyTree, shardings: Any) -> PyTree:
    """Host arrays, or keys of `jax.random`, on the devices of all processes.

    Each process gives the whole value and places its part. `shardings` is one for all leaves, or
    a tree of them.
    """
    if n_processes() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: _put(leaf, shardings), tree)
    return jax.tree.map(_put, tree, shardings)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(np.asarray(jax.random.key_data(leaf)), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def put_examples(tree: PyTree, mesh: Mesh, axis: int, part: tuple[int, int] = (0, 1)) -> PyTree:
    """Examples along `axis`, spread over the devices that share a batch.

    `part` is ``(index, count)``: this process gives the index-th of `count` equal parts.
    """
    index, count = part

    def placed(local: np.ndarray) -> jax.Array:
        n = local.shape[axis]
        shape = (*local.shape[:axis], n * count, *local.shape[axis + 1 :])
        sharding = of_examples(mesh, shape, axis)
        if n_processes() == 1:
            return jax.device_put(local, sharding)

        def of_device(where: Any) -> np.ndarray:
            first, last, _ = where[axis].indices(n * count)
            here = slice(first - index * n, last - index * n)
            return local[(*where[:axis], here, *where[axis + 1 :])]

        return jax.make_array_from_callback(shape, sharding, of_device)

    return jax.tree.map(placed, tree)


def part_of_batch(mesh: Mesh, size: int) -> tuple[int, int]:
    """``(index, count)``: which of how many equal parts of a batch this process's devices hold."""
    along = of_examples(mesh, (size,), 0).addressable_devices_indices_map((size,))
    bounds = [where[0].indices(size)[:2] for where in along.values() if where is not None]
    first, last = min(b[0] for b in bounds), max(b[1] for b in bounds)
    n = last - first
    # Devices may be dealt unevenly: then each process reads all of it.
    return (first // n, size // n) if size % n == 0 and first % n == 0 else (0, 1)


def fetched(array: Any) -> np.ndarray:
    """The whole of an array, on the host of every process. All have to call this together."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    whole = NamedSharding(array.sharding.mesh, PartitionSpec())  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(jax.jit(lambda a: a, out_shardings=whole)(array))


def taken(array: Any, positions: np.ndarray) -> Any:
    """Slots of an array, or of keys, on the host; where they lie on other processes too."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(fetched(jax.random.key_data(array))[positions])
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    return fetched(array)[positions]
