"""From the readings of one trace to named sites in execution order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ici.errors import InputError
from ici.measure.statistics import Statistic
from ici.probe import Probe, Site, Taps


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reading:
    """Statistics of one call. ``once`` is a scalar: axes it has gained are axes of a scan."""

    stats: dict[str, Statistic]
    once: Array
    order: int = field(metadata={"static": True})
    module: type = field(metadata={"static": True})
    n_features: int = field(metadata={"static": True})


def read(probe: Probe, x: Array, order: int, module: type) -> Reading:
    """The reading of one call of `module` with input `x`, the `order`-th call of the trace."""
    n_features = x.shape[-1] if x.ndim > 1 else 1
    return Reading(probe.read(x), jnp.float32(1), order, module, n_features)


def _stack_of(
    path: tuple[str, ...], length: int, leaves: dict[tuple[str, ...], Any]
) -> tuple[str, ...] | None:
    """The scanned module that `path` lies in: its shortest prefix all of whose variables are
    stacked to `length`. None when there is none (weights shared by all iterations)."""
    for n in range(len(path) + 1):
        below = [leaf for p, leaf in leaves.items() if p[:n] == path[:n]]
        if below and all(leaf.ndim and leaf.shape[0] == length for leaf in below):
            return path[:n]
    return None


class _Found(NamedTuple):
    site: Site
    reading: Reading
    scan: tuple[str, ...] | None
    iteration: int


def _name(path: tuple[str, ...], reading: Reading, call: str) -> str:
    return ("/".join(path) or reading.module.__name__) + call


def _unstack(
    path: tuple[str, ...], reading: Reading, call: str, leaves: dict[tuple[str, ...], Any]
) -> Iterator[_Found]:
    """One entry per call; a call inside a scan is one per iteration."""
    has_weights = any(leaf_path[:-1] == path for leaf_path in leaves)
    if not reading.once.ndim:
        yield _Found(
            Site(_name(path, reading, call), reading.module, has_weights), reading, None, 0
        )
        return
    length = reading.once.shape[0]
    stack = _stack_of(path, length, leaves)
    for i in range(length):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], reading)
        if stack is None:
            name = _name(path, reading, f"{call}#{i}")
        else:
            name = _name((*stack, str(i), *path[len(stack) :]), reading, call)
        yield _Found(Site(name, reading.module, has_weights), one, stack or path, i)


def collect(
    probe: Probe,
    calls: list[tuple[tuple[str, ...], tuple[Reading, ...]]],
    leaves: dict[tuple[str, ...], Any],
) -> Taps:
    """Names the readings of a trace, keeps the selected ones, orders them by execution."""
    found: list[_Found] = []
    for path, readings in calls:
        for i, reading in enumerate(readings):
            found += _unstack(path, reading, f"#{i}" if len(readings) > 1 else "", leaves)
    starts: dict[Any, int] = {}
    for entry in found:
        starts[entry.scan] = min(starts.get(entry.scan, entry.reading.order), entry.reading.order)

    def execution_order(entry: _Found) -> tuple[int, int, int]:
        order = entry.reading.order
        return (order if entry.scan is None else starts[entry.scan], entry.iteration, order)

    found.sort(key=execution_order)
    kept = [(entry.site.name, entry.reading) for entry in found if probe.wants(entry.site)]
    if not kept:
        raise _no_match(probe, [entry.site for entry in found])
    return Taps(
        readings={name: reading.stats for name, reading in kept},
        cotangents={},
        sites=tuple(name for name, _ in kept),
        stats=probe.stats,
        features=tuple(reading.n_features for _, reading in kept),
    )


def _no_match(probe: Probe, available: list[Site]) -> InputError:
    """The error for a selection that matches nothing: lists what could have been selected."""
    names = ", ".join(f"{site.name} ({site.module.__name__})" for site in available)
    return InputError(
        f"probe select={probe.select!r} matches no site: wanted one or more of: {names or 'none'}."
    )
