"""From the readings of one trace to named sites in execution order."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ici.errors import InputError
from ici.measure.statistics import Moments, Statistic
from ici.probe import Probe, Site, Taps, watch_cotangent


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


def watchable(x: Any) -> bool:
    """Whether `x` is an array with statistics worth taking."""
    return (
        isinstance(x, jax.Array | np.ndarray)
        and x.ndim >= 1
        and jnp.issubdtype(x.dtype, jnp.floating)
    )


def input_first(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a method with its input positional: ``layer(inputs=x)`` counts too."""
    if args or not kwargs:
        return args, kwargs
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    first = parameters[0]
    if first.kind is not first.POSITIONAL_OR_KEYWORD or first.name not in kwargs:
        return args, kwargs
    return (kwargs[first.name],), {k: v for k, v in kwargs.items() if k != first.name}


class Sinks:
    """Where cotangents go; knows which sinks a trace has reached."""

    def __init__(self, sinks: dict[str, Moments] | None):
        self.given = frozenset(sinks or ())
        self.unused = dict(sinks or {})
        self.calls: dict[str, Iterator[int]] = {}

    def watch(self, args: tuple[Any, ...], path: str) -> tuple[Any, ...]:
        """`args` with its first entry watched, where a sink is given for this call."""
        call = next(self.calls.setdefault(path, itertools.count()))
        for name in (path, f"{path}#{call}"):
            if name in self.unused:
                return (watch_cotangent(args[0], self.unused.pop(name)), *args[1:])
        return args

    def check(self, scanned: set[str]) -> None:
        """Raises `InputError` for sinks that were not reached, or lie in a scan's one trace."""
        refused = sorted(self.unused.keys() | (self.given & scanned))
        if refused:
            raise InputError(
                f"cotangents at {', '.join(refused)}: wanted layers that are called directly, not "
                "inside a scan or remat or jit; set cotangents=False, select others, or unroll."
            )


def _stack_of(
    path: tuple[str, ...],
    length: int,
    leaves: dict[tuple[str, ...], Any],
    inside: set[tuple[str, ...]],
) -> tuple[str, ...] | None:
    """The scanned module that `path` lies in: its shortest prefix that is called `inside` a scan
    and all of whose variables are stacked to `length`. None when there is none (weights shared
    by all iterations)."""
    for n in range(len(path) + 1):
        if path[:n] not in inside:
            continue
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
    path: tuple[str, ...],
    reading: Reading,
    call: str,
    leaves: dict[tuple[str, ...], Any],
    inside: set[tuple[str, ...]],
    has_weights: bool,
) -> Iterator[_Found]:
    """One entry per call; a call inside a scan is one per iteration."""
    if not reading.once.ndim:
        yield _Found(
            Site(_name(path, reading, call), reading.module, has_weights), reading, None, 0
        )
        return
    length = reading.once.shape[0]
    stack = _stack_of(path, length, leaves, inside)
    for i in range(length):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], reading)
        if stack is None:
            name = _name(path, reading, f"{call}#{i}")
        else:
            name = _name((*stack, str(i), *path[len(stack) :]), reading, call)
        scan = (str(length),) if stack is None else stack
        yield _Found(Site(name, reading.module, has_weights), one, scan, i)


def collect(
    probe: Probe,
    calls: list[tuple[tuple[str, ...], tuple[Reading, ...]]],
    leaves: dict[tuple[str, ...], Any],
    weights: set[tuple[str, ...]],
    sinks: Sinks,
) -> Taps:
    """Names the readings of a trace, keeps the selected ones, orders them by execution.

    Args:
      probe: decides what is kept.
      calls: path of each module, and one reading per call of it.
      leaves: every variable by path, to tell which modules are stacked for a scan.
      weights: paths of the modules that own parameters.
      sinks: where cotangents went.
    """
    _check_traced_once(probe, [reading for _, readings in calls for reading in readings])
    inside = {path for path, readings in calls if any(r.once.ndim for r in readings)}
    found: list[_Found] = []
    for path, readings in calls:
        for i, reading in enumerate(readings):
            call = f"#{i}" if len(readings) > 1 else ""
            found += _unstack(path, reading, call, leaves, inside, path in weights)
    sinks.check({entry.site.name for entry in found if entry.scan is not None})
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
    nested = [name for name, reading in kept if reading.once.ndim]
    if nested:
        raise InputError(
            f"{', '.join(nested)}: inside a scan that is inside a scan, whose iterations have no "
            "one order; wanted a probe that selects other layers, or one of the scans unrolled."
        )
    return Taps(
        readings={name: reading.stats for name, reading in kept},
        cotangents={},
        sites=tuple(name for name, _ in kept),
        stats=probe.stats,
        features=tuple(reading.n_features for _, reading in kept),
    )


def _check_traced_once(probe: Probe, readings: list[Reading]) -> None:
    orders = {reading.order for reading in readings}
    stale = any(set(reading.stats) != set(probe.stats) for reading in readings)
    if stale or len(orders) < len(readings):
        raise InputError(
            "layers inside nn.jit, or inside one jitted or rematerialised function that is called "
            "twice on a layer: JAX reuses a trace there, and readings with it; wanted the inner "
            "jit or remat removed (the training step is compiled as a whole)."
        )


def _no_match(probe: Probe, available: list[Site]) -> InputError:
    """The error for a selection that matches nothing: lists what could have been selected."""
    names = ", ".join(f"{site.name} ({site.module.__name__})" for site in available)
    return InputError(
        f"probe select={probe.select!r} matches no site: wanted one or more of: {names or 'none'}."
    )
