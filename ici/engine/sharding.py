"""Where arrays lie along the mesh axis ``data``: examples spread over it, and weights when asked.

The axis is automatic, so all of this is advice to the compiler: it moves numbers between devices
and adds in another order, and changes no value beyond that. Without a mesh, or with one device
along the axis, nothing here does anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, get_abstract_mesh

PyTree = Any
LANES, BATCH = "run", "data"
# Smaller leaves (biases, scales, short tables) cost more in messages than they take in memory.
MIN_LEAF_SIZE = 2**12


def leaf_spec(shape: Sequence[int], n_devices: int, minimum: int = MIN_LEAF_SIZE) -> PartitionSpec:
    """Which axis of a weight is spread over `n_devices`: the longest one that they divide.

    The first of several. None, so that every device holds all of it, where no axis divides evenly
    or the leaf has fewer than `minimum` numbers.
    """
    dividing = [axis for axis, size in enumerate(shape) if size and size % n_devices == 0]
    if n_devices == 1 or math.prod(shape) < minimum or not dividing:
        return PartitionSpec()
    chosen = max(dividing, key=lambda axis: shape[axis])
    return PartitionSpec(*(BATCH if axis == chosen else None for axis in range(chosen + 1)))


def batch_devices() -> int:
    """Devices that one run's batch is spread over in the program that is being traced."""
    mesh = get_abstract_mesh()
    return 1 if BATCH in mesh.manual_axes else dict(mesh.shape).get(BATCH, 1)


def spread_examples(tree: PyTree) -> PyTree:
    """Arrays ``[B, ...]`` with their examples spread over the devices, inside a program."""
    if batch_devices() == 1:
        return tree
    return jax.tree.map(lambda a: lax.with_sharding_constraint(a, PartitionSpec(BATCH)), tree)


def spread_weights(tree: PyTree) -> PyTree:
    """Weights, or what is shaped like them, spread by `leaf_spec`, inside a program."""
    n_devices = batch_devices()
    if n_devices == 1:
        return tree
    return jax.tree.map(
        lambda a: lax.with_sharding_constraint(a, leaf_spec(a.shape, n_devices)), tree
    )


def whole_weights(tree: PyTree) -> PyTree:
    """Weights gathered, so that every device has all of them, inside a program."""
    if batch_devices() == 1:
        return tree
    return jax.tree.map(lambda a: lax.with_sharding_constraint(a, PartitionSpec()), tree)


def over_slots(mesh: Mesh, shapes: PyTree, shard: bool) -> PyTree:
    """`NamedSharding` of every leaf ``[slots, *shape]``: slots over the axis ``run``, and the
    rest by `leaf_spec` if `shard`, else whole on each device."""
    n_devices = mesh.shape[BATCH] if shard else 1
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, PartitionSpec(LANES, *leaf_spec(leaf.shape, n_devices))),
        shapes,
    )


def of_examples(mesh: Mesh, shape: Sequence[int], axis: int) -> NamedSharding:
    """Examples along `axis` over the axis ``data`` where it divides them, else everywhere."""
    if shape[axis] % mesh.shape[BATCH]:
        return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec(*([None] * axis), BATCH))
