"""Running a module under a probe: trace it with tags, decide what to read, run it reading that."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ici.adapt.calls import Calls, watchable
from ici.adapt.model import MappedAxes
from ici.errors import InputError
from ici.harvest import Tagged, harvest, survey
from ici.measure.statistics import Moments
from ici.probe import OUTPUT, Probe, Site, Taps, watch_cotangent
from ici.sites import Entry, Silent, full_shape, plan, stack, unstack
from ici.tags import Axis

# Part of the key under which JAX keeps traces: a function that was traced without tags, or with
# those of another model, is traced anew.
_TRACE = jax.make_user_context(None)
_TRACES = itertools.count()


def watched(
    function: Callable[[], tuple[Any, Any]],
    probe: Probe,
    calls: Calls,
    layers: Callable[[], Sequence[Silent]],
    inputs: Any,
    sinks: dict[str, Moments] | None,
    axes: MappedAxes,
) -> tuple[Any, Any, Taps]:
    """``function() -> (out, rest)`` and what `probe` saw of it.

    Args:
      function: runs the module, whose calls are tagged through `calls`.
      probe: decides what is read.
      calls: keeps what the trace has come across.
      layers: after the trace, every layer that there is, for those that were not called.
      inputs: what the probe's mask is a function of.
      sinks: per site, where its cotangent moments go.
      axes: the mapped axes that the module names.
    """
    static: list[Any] = []

    def traced() -> list[Array]:
        leaves, structure = jax.tree.flatten(axes.bound(function)())
        fixed = [None if isinstance(leaf, jax.Array) else leaf for leaf in leaves]
        static[:] = [structure, fixed]
        return [leaf for leaf in leaves if isinstance(leaf, jax.Array)]

    with _TRACE(next(_TRACES)):
        # A trace that stops for want of a name has tags in it: each attempt gets one of its own.
        program = axes.learning(lambda: jax.make_jaxpr(traced)())
    mask = _mask(probe, inputs)
    tags = survey(program)
    silent = [
        calls.silent.get(layer.path, layer) for layer in layers() if layer.path not in calls.tagged
    ]
    planned = plan(probe, tags, silent, None if mask is None else mask.shape)
    reading = _Reading(probe, mask)
    stacked = stack(planned.entries, sinks or {}, lambda t: Moments.empty(_n_features(t)))
    _check_sinks(sinks or {}, planned.entries)
    takes = {place: reading.take(tagged) for place, tagged in planned.tags.items()}
    reading.check(planned.entries)
    arrays, readings = harvest(program, takes, stacked)
    structure, fixed = static
    remaining = iter(arrays)
    out, rest = jax.tree.unflatten(
        structure, [next(remaining) if leaf is None else leaf for leaf in fixed]
    )
    by_site = unstack(planned.entries, readings)
    sites = [entry.site for entry in planned.entries]
    features = [_n_features(entry.tagged) for entry in planned.entries]
    reasons = list(planned.reasons)
    at_output, reason = reading.output(out)
    if at_output:
        by_site[OUTPUT] = at_output
        sites.append(Site(OUTPUT, object, False, (), None, OUTPUT))
        features.append(out.shape[-1] if out.ndim > 1 else 1)
    elif reason:
        reasons.append((OUTPUT, reason))
        if not by_site:
            raise InputError(f"{OUTPUT} cannot be watched: {reason}.")
    return (
        out,
        rest,
        Taps(by_site, {}, tuple(sites), tuple(probe.kinds), tuple(features), tuple(reasons)),
    )


def _mask(probe: Probe, inputs: Any) -> Array | None:
    if probe.mask is None:
        return None
    mask = probe.mask(inputs)
    if not (hasattr(mask, "shape") and mask.ndim and mask.dtype == jnp.bool_):
        seen = f"{mask.dtype}{list(mask.shape)}" if hasattr(mask, "shape") else type(mask).__name__
        raise InputError(f"probe mask gave {seen}: wanted bool with the leading axes of a site.")
    return jnp.asarray(mask)


def _n_features(tagged: Tagged) -> int:
    shape = full_shape(tagged)
    if tagged.mark.where == "attention":
        return shape[-2]
    return shape[-1] if len(shape) > 1 else 1


def _check_sinks(sinks: dict[str, Moments], entries: Sequence[Entry]) -> None:
    known = {
        entry.site.name
        for entry in entries
        if all(axis.present[0] for axis in entry.tagged.axes) and entry.site.where == "input"
    }
    missing = sorted(sinks.keys() - known)
    if missing:
        raise InputError(
            f"cotangents at {', '.join(missing)}: wanted sites that this probe watches, and not "
            "the common input of models that are mapped; set cotangents=False or select others."
        )


class _Reading:
    """How one probe reads, under one mask."""

    def __init__(self, probe: Probe, mask: Array | None):
        self.probe = probe
        self.mask = mask

    def covers(self, shape: tuple[int, ...]) -> bool:
        """Whether the mask speaks of values of this shape."""
        lead = shape[:-1] if len(shape) > 1 else shape
        return self.mask is not None and lead[: self.mask.ndim] == self.mask.shape

    def mask_for(self, shape: tuple[int, ...]) -> Array | None:
        if self.mask is None or not self.covers(shape):
            return None
        lead = shape[:-1] if len(shape) > 1 else shape
        more = (1,) * (len(lead) - self.mask.ndim)
        return jnp.broadcast_to(self.mask.reshape(*self.mask.shape, *more), lead)

    def check(self, entries: Sequence[Entry]) -> None:
        """Raises `InputError` for a mask that speaks of no site at all."""
        shapes = {
            full_shape(e.tagged)[: -1 if e.site.where == "attention" else None]: e.site.name
            for e in entries
        }
        if self.mask is None or not shapes or any(map(self.covers, shapes)):
            return
        shape, name = next(iter(shapes.items()))
        raise InputError(
            f"probe mask of shape {self.mask.shape} fits no site, such as {name} of shape "
            f"{shape}: wanted a mask with a site's leading axes, or a probe without mask."
        )

    def input(self, x: Array) -> dict[str, Any]:
        return self._of("input", x)

    def _of(self, where: str, x: Array) -> dict[str, Any]:
        x = jax.lax.stop_gradient(x)
        mask = self.mask_for(x.shape)
        kinds = self.probe.kinds_at(where)
        return {n: k.of(x) if mask is None else k.of(x, mask=mask) for n, k in kinds.items()}

    def output(self, out: Any) -> tuple[dict[str, Any], str]:
        """The statistics of the model's output, or why there are none."""
        if not self.probe.kinds_at("output"):
            return {}, ""
        if not watchable(out):
            return {}, (
                f"the model returns {type(out).__name__}, not one floating-point array; wanted a "
                "call= hook that returns one"
            )
        return self._of("output", out), ""

    def attention(self, tagged: Tagged) -> Callable[..., dict[str, Any]]:
        mark, kinds = tagged.mark, self.probe.kinds_at("attention")

        def read(*operands: Array) -> dict[str, Any]:
            given = dict(zip(mark.operands, map(jax.lax.stop_gradient, operands), strict=True))
            query, key = given.pop("query"), given.pop("key")
            counted = self.mask_for(query.shape[:-1])
            if counted is not None:
                # Queries that do not count attend to nothing, and such are left out.
                here = counted[..., None, :, None]
                given["mask"] = here & given["mask"] if "mask" in given else here
            settings = dict(mark.settings)
            return {n: k.of(query, key, **given, **settings) for n, k in kinds.items()}

        return read

    def take(self, tagged: Tagged) -> Callable[[list[Any], Any], tuple[list[Any], Any]]:
        is_input = tagged.mark.where == "input"
        read = self.input if is_input else self.attention(tagged)
        axes = tagged.axes
        for axis in reversed([axis for axis in axes if axis.model]):
            in_axes = tuple(0 if present else None for present in axis.present)
            read = jax.vmap(read, in_axes=in_axes, axis_size=axis.size)

        def take(values: list[Any], sink: Any) -> tuple[list[Any], Any]:
            arranged = [_arranged(x, axes, k) for k, x in enumerate(values)]
            readings = read(*arranged)
            if sink is not None:
                mask = self.mask_for(full_shape(tagged))
                watch = _Watch(mask)
                for n, axis in reversed(list(enumerate(axes))):
                    if axis.model:
                        n -= sum(other.model for other in axes[:n])
                        watch = jax.vmap(watch, in_axes=(n, 0), out_axes=n)
                values = [watch(values[0], sink), *values[1:]]
            return values, readings

        return take


class _Watch:
    def __init__(self, mask: Array | None):
        self.mask = mask
        self.__name__ = "watch"

    def __call__(self, x: Array, sink: Moments) -> Array:
        return watch_cotangent(x, sink, self.mask)


def _arranged(x: Array, axes: Sequence[Axis], operand: int) -> Array:
    """`x` with its rows of models in front, then every batch axis, then its own axes."""
    present = [axis for axis in axes if axis.present[operand]]
    rows = [i for i, axis in enumerate(present) if axis.model]
    batches = [i for i, axis in enumerate(present) if not axis.model]
    own = range(len(present), x.ndim)
    x = jnp.transpose(x, (*rows, *batches, *own)) if rows and batches else x
    position = len(rows)
    for axis in axes:
        if not axis.model:
            if not axis.present[operand]:
                x = jnp.expand_dims(x, position)
                x = jnp.broadcast_to(x, (*x.shape[:position], axis.size, *x.shape[position + 1 :]))
            position += 1
    return x
