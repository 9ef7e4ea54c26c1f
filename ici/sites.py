"""From the tags of a program to named sites in execution order, and from readings to taps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ici.errors import InputError
from ici.harvest import Place, Tagged
from ici.probe import Probe, Site
from ici.tags import Mark

NEVER_CALLED = "the model never calls it"
_REUSED = (
    "inside nn.jit: JAX reuses a trace there for equal layers, and does not say for which; "
    "wanted the inner jit removed, as the training step is compiled as a whole"
)


@dataclass(frozen=True)
class Silent:
    """A layer without a tag: one that was never called, or with nothing to take moments of."""

    path: tuple[str, ...]
    module: type
    has_weights: bool
    reason: str


class Entry(NamedTuple):
    """One site: an iteration of the scans, and a row of the mapped models, around a tag."""

    site: Site
    tagged: Tagged
    index: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What of a program is read, in execution order, and what is not, with the reason."""

    entries: tuple[Entry, ...]
    reasons: tuple[tuple[str, str], ...]

    @property
    def tags(self) -> dict[Place, Tagged]:
        """The tags to be read."""
        return {entry.tagged.place: entry.tagged for entry in self.entries}


def plan(
    probe: Probe,
    tags: Sequence[Tagged],
    silent: Iterable[Silent],
    mask_shape: tuple[int, ...] | None,
) -> Plan:
    """Names the tags of a program, keeps the selected ones, orders them by execution.

    Raises:
      InputError: nothing is selected, or nothing that is can be watched.
    """
    tags = _traced_once(tags)
    reused = any(tagged.refused == _REUSED for tagged in tags)
    entries: list[Entry] = []
    reasons: dict[str, str] = {}
    available: list[Site] = []
    attended = bool(probe.kinds_at("attention"))
    inputs = bool(probe.kinds_at("input"))

    def wanted(site: Site) -> bool:
        return attended if site.where == "attention" else inputs and probe.wants(site)

    calls: dict[Any, list[Tagged]] = {}
    for tagged in tags:
        mark = tagged.mark
        calls.setdefault((mark.path, mark.module, mark.argument, mark.where), []).append(tagged)
    for same in calls.values():
        for i, tagged in enumerate(same):
            call = f"#{i}" if len(same) > 1 else ""
            reason = tagged.refused or _unreadable(tagged, mask_shape)
            if reason:
                site = _site(tagged.mark, tagged.mark.path, call, None)
                available.append(site)
                if wanted(site):
                    reasons[site.name] = reason
                continue
            found = [*_unroll(tagged, call)]
            available += [entry.site for entry in found]
            entries += [entry for entry in found if wanted(entry.site)]
    for layer in silent:
        name = "/".join(layer.path) or layer.module.__name__
        site = Site(name, layer.module, layer.has_weights, layer.path)
        if inputs and probe.wants(site):
            # A call that JAX took from another layer's trace is not seen.
            unseen = reused and layer.reason == NEVER_CALLED
            reasons.setdefault(name, _REUSED if unseen else layer.reason)
    entries.sort(key=_execution_order)
    _check_found(probe, entries, reasons, available)
    return Plan(tuple(entries), tuple(reasons.items()))


def _check_found(
    probe: Probe, entries: list[Entry], reasons: dict[str, str], available: list[Site]
) -> None:
    for where in ("input", "attention"):
        kinds = probe.kinds_at(where)
        if not kinds or any(entry.site.where == where for entry in entries):
            continue
        if reasons:
            listed = "; ".join(f"{name} ({reason})" for name, reason in reasons.items())
            raise InputError(
                f"probe select={probe.select!r} selects only layers that cannot be watched: "
                f"{listed}."
            )
        if where == "attention":
            raise InputError(
                f"probe stats has {', '.join(kinds)} and the model calls no attention: wanted a "
                "model that calls dot_product_attention of jax.nn, flax.nnx or flax.linen."
            )
        names = ", ".join(f"{s.name} ({s.module.__name__})" for s in available)
        raise InputError(
            f"probe select={probe.select!r} matches no site: wanted one or more of: "
            f"{names or 'none'}."
        )


def _traced_once(tags: Sequence[Tagged]) -> list[Tagged]:
    """`tags`, those refused whose trace JAX reused for several calls of unknown layers."""
    seen: dict[int | None, int] = {}
    for tagged in tags:
        seen[tagged.mark.call] = seen.get(tagged.mark.call, 0) + 1
    return [
        tagged
        if tagged.mark.call is None or seen[tagged.mark.call] == 1
        else replace(tagged, refused=_REUSED)
        for tagged in tags
    ]


def full_shape(tagged: Tagged) -> tuple[int, ...]:
    """Shape of the first tagged array, batch axes of a vmap in front, those of models left out."""
    own = tagged.shapes[0][sum(axis.present[0] for axis in tagged.axes) :]
    return (*(axis.size for axis in tagged.axes if not axis.model), *own)


def _unreadable(tagged: Tagged, mask_shape: tuple[int, ...] | None) -> str:
    stacks = sum(loop.stacked for loop in tagged.loops) + sum(axis.model for axis in tagged.axes)
    if tagged.mark.stack is not None and stacks > 1:
        return (
            "inside a stack of layers that is inside a stack of layers, whose rows have no one "
            "order; wanted one of the scans unrolled"
        )
    if mask_shape is not None:
        shape = full_shape(tagged)
        n = len(mask_shape) - 1
        over_time = any(loop.length == mask_shape[-1] for loop in tagged.loops)
        if n and over_time and shape[:n] == mask_shape[:n] and shape[n:-1] == ():
            return (
                "inside a scan as long as the mask: which position an iteration holds is not "
                "known, and padding would count; wanted a probe that selects other layers"
            )
    return ""


def _site(mark: Mark, path: tuple[str, ...], call: str, row: int | None) -> Site:
    name = "/".join(path) or ("" if mark.where == "attention" else mark.module.__name__)
    if mark.where == "attention":
        name = f"{name}/attention" if name else "attention"
    if mark.argument:
        name += f".{mark.argument}"
    return Site(name + call, mark.module, mark.has_weights, mark.path, row, mark.where)


def _sizes(tagged: Tagged) -> list[int]:
    """Lengths of the scans around a tag, then those of its rows of models."""
    return [loop.length for loop in tagged.loops] + [a.size for a in tagged.axes if a.model]


def _unroll(tagged: Tagged, call: str) -> Iterable[Entry]:
    """One entry per iteration and row."""
    mark = tagged.mark
    stacked = [loop.stacked for loop in tagged.loops] + [a.model for a in tagged.axes if a.model]
    which = stacked.index(True) if mark.stack is not None and True in stacked else None
    for index in itertools.product(*(range(size) for size in _sizes(tagged))):
        repeats = "".join(f"#{i}" for n, i in enumerate(index) if n != which)
        path, row = mark.path, None
        if which is not None:
            n = len(mark.stack or ())
            path, row = (*path[:n], str(index[which]), *path[n:]), index[which]
        yield Entry(_site(mark, path, call + repeats, row), tagged, index)


def _execution_order(entry: Entry) -> tuple[int, ...]:
    """Place in the program, the iteration behind each scan on the way, rows last."""
    loops = {
        loop.depth: (loop, i) for loop, i in zip(entry.tagged.loops, entry.index, strict=False)
    }
    order: list[int] = []
    for depth, position in enumerate(entry.tagged.place, 1):
        order.append(position)
        if depth in loops:
            loop, i = loops[depth]
            order.append(-i if loop.reverse else i)
    return (*order, *entry.index[len(entry.tagged.loops) :])


def unstack(entries: Sequence[Entry], readings: Mapping[Place, Any]) -> dict[str, Any]:
    """The reading of each site, by name, in execution order."""
    return {
        entry.site.name: jax.tree.map(
            lambda a, i=entry.index: a[i] if i else a, readings[entry.tagged.place]
        )
        for entry in entries
    }


def stack(entries: Sequence[Entry], values: Mapping[str, Any], empty: Any) -> dict[Place, Any]:
    """The inverse of `unstack`: per tag, the values of its sites as its scans and rows run.

    ``empty(tagged)`` fills the places of sites without a value; a tag without any is left out.
    """
    members: dict[Place, dict[tuple[int, ...], Any]] = {}
    for entry in entries:
        if entry.site.name in values:
            members.setdefault(entry.tagged.place, {})[entry.index] = values[entry.site.name]
    tags = {entry.tagged.place: entry.tagged for entry in entries}
    stacked: dict[Place, Any] = {}
    for place, given in members.items():
        sizes = _sizes(tags[place])
        indices = itertools.product(*(range(size) for size in sizes))
        rows = [given[i] if i in given else empty(tags[place]) for i in indices]
        stacked[place] = jax.tree.map(
            lambda *parts, sizes=sizes: jnp.stack(parts).reshape(*sizes, *parts[0].shape), *rows
        )
    return stacked
