"""Probes: which sites to watch, with which statistics, how often; and what they bring back."""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
from jax import Array

from ici.errors import InputError
from ici.measure.statistics import Moments, Statistic, statistic

OUTPUT = "output"
_NORM = re.compile(r"norm(ali[sz](e|er|ation))?\d*d?$", re.IGNORECASE)  # BatchNorm, LayerNorm2d


@dataclass(frozen=True)
class Site:
    """One place that can be watched: the input of one module.

    Attributes:
      name: module path joined by ``/``; ``#i`` marks the i-th call of a module called repeatedly,
        ``.argument`` one of several arrays that it is given.
      module: the module's class.
      has_weights: whether the module itself (not a child) owns parameters.
      path: path of the module in the tree of variables.
      row: for a module whose variables are stacked for a scan, which row this one uses; else None.
      where: "input"; or "attention" or "output" for what those statistics are taken of.
    """

    name: str
    module: type
    has_weights: bool
    path: tuple[str, ...] = ()
    row: int | None = None
    where: str = "input"

    @property
    def is_norm(self) -> bool:
        """Whether the class is named as a normalization layer."""
        return bool(_NORM.search(self.module.__name__))


Select = str | type | tuple[type, ...] | Callable[[Site], bool] | None


@dataclass(frozen=True)
class Probe:
    """Watches the inputs of layers of an unmodified Flax module.

    Attributes:
      select: which layers' inputs to watch. None: every layer that has weights, and every norm. A
        string: a path pattern such as ``"blocks/*/linear"``. A module type or a tuple of them. Or
        a predicate on `Site`. Statistics of attention and output are not concerned: they see every
        attention, and the output.
      stats: the statistics to compute: registered names (``"moments"``, ``"extremes"``, …) or
        kinds, such as a class with ``of``, ``merge`` and ``labelled``.
      every: steps between two probed training steps; steps 0, every, 2·every, … are probed and
        the steps between them run a program without probes.
      cotangents: also take moments of the loss gradient with respect to each site's values.
      mask: ``mask(inputs) -> bool [B, T]``, of what the model is given: the positions that count.
        It holds at every site whose values start with these axes; others are not masked.
    """

    select: Select = None
    stats: tuple[Any, ...] = ("moments",)
    every: int = 10
    cotangents: bool = False
    mask: Callable[[Any], Array] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise InputError(f"probe every is {self.every}: wanted a number of steps >= 1.")
        if isinstance(self.stats, str):
            raise InputError(f"probe stats is {self.stats!r}: wanted a tuple of names.")
        object.__setattr__(self, "stats", tuple(self.stats))
        if not self.stats:
            raise InputError("probe stats is empty: wanted at least one, such as 'moments'.")
        types = self.select if isinstance(self.select, tuple) else ()
        if not all(isinstance(entry, type) for entry in types) or not (
            self.select is None or isinstance(self.select, str | tuple) or callable(self.select)
        ):
            raise InputError(
                f"probe select is {self.select!r}: wanted None, a path pattern, a module type, a "
                "tuple of module types, or a predicate on Site."
            )
        if self.mask is not None and not callable(self.mask):
            raise InputError(
                f"probe mask is {type(self.mask).__name__}: wanted a function of the model's "
                "inputs, such as lambda tokens: tokens != 0."
            )
        for name, kind in self.kinds.items():
            _check_kind(name, kind, self.mask is not None)

    @cached_property
    def kinds(self) -> dict[str, Any]:
        """The statistics by the name they are filed under."""
        kinds: dict[str, Any] = {}
        for entry in self.stats:
            name, kind = (entry, statistic(entry)) if isinstance(entry, str) else _named(entry)
            if name in kinds:
                raise InputError(f"probe stats has {name!r} twice: wanted each name once.")
            kinds[name] = kind
        return kinds

    def kinds_at(self, where: str) -> dict[str, Any]:
        """The statistics taken of "input", "attention" or "output"."""
        return {n: k for n, k in self.kinds.items() if getattr(k, "where", "input") == where}

    def step_part(self) -> Probe | None:
        """This probe with what is cheap enough for every step; None if that is nothing."""
        kept = tuple(
            entry
            for entry, kind in zip(self.stats, self.kinds.values(), strict=True)
            if getattr(kind, "cost", "step") == "step"
        )
        if len(kept) == len(self.stats):
            return self
        return replace(self, stats=kept) if kept else None

    def wants(self, site: Site) -> bool:
        """Whether the input at `site` is selected."""
        select = self.select
        if select is None:
            return site.has_weights or site.is_norm
        if isinstance(select, str):
            return fnmatch.fnmatchcase(site.name, select)
        if isinstance(select, type | tuple):
            return issubclass(site.module, select)
        return bool(select(site))


def _named(kind: Any) -> tuple[str, Any]:
    name = getattr(kind, "name", None) or getattr(kind, "__name__", type(kind).__name__).lower()
    return str(name), kind


def _check_kind(name: str, kind: Any, masked: bool) -> None:
    if not callable(getattr(kind, "of", None)):
        raise InputError(
            f"probe statistic {name!r} is {kind!r}: wanted a registered name, or a class or object "
            "with of, merge and labelled."
        )
    for attribute, default, known in (
        ("where", "input", ("input", "attention", "output", "block")),
        ("cost", "step", ("step", "reference")),
    ):
        if getattr(kind, attribute, default) not in known:
            raise InputError(
                f"statistic {name!r} has {attribute} {getattr(kind, attribute)!r}: wanted one of "
                f"{', '.join(known)}."
            )
    if masked and "mask" not in inspect.signature(kind.of).parameters:
        raise InputError(
            f"statistic {name!r} has no mask parameter and the probe has a mask: wanted "
            "of(x, mask=None), or a probe without mask."
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Taps(Mapping[str, Any]):
    """What a probe saw: statistics per site, in execution order.

    ``taps["blocks/3/linear"]`` is the site's first statistic (`Moments` by default);
    ``taps.stat("extremes")`` maps every site that has it to another one; ``taps.cotangents`` maps
    every site to the `Moments` of the loss gradient there (empty unless asked for).
    ``taps.features`` holds the number of features of each site, ``taps.watched`` the sites
    themselves. Attention statistics are filed under ``<module path>/attention``, those of the
    output, which comes last, under ``"output"``.
    """

    readings: dict[str, dict[str, Statistic]]
    cotangents: dict[str, Moments]
    watched: tuple[Site, ...] = field(metadata={"static": True})
    stats: tuple[str, ...] = field(metadata={"static": True})
    features: tuple[int, ...] = field(metadata={"static": True})
    reasons: tuple[tuple[str, str], ...] = field(default=(), metadata={"static": True})

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the watched sites, in execution order."""
        return tuple(site.name for site in self.watched)

    @property
    def unwatched(self) -> dict[str, str]:
        """Selected layers that could not be watched, and why."""
        return dict(self.reasons)

    def __getitem__(self, site: str) -> Any:
        readings = self.readings[site]
        return next(readings[name] for name in self.stats if name in readings)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.watched)

    def merge(self, other: Taps) -> Taps:
        """The taps of both batches together, of the same model and probe."""
        readings = {
            site: {name: one.merge(other.readings[site][name]) for name, one in own.items()}
            for site, own in self.readings.items()
        }
        cotangents = {s: own.merge(other.cotangents[s]) for s, own in self.cotangents.items()}
        return replace(self, readings=readings, cotangents=cotangents)

    def stat(self, name: str) -> dict[str, Any]:
        """One statistic at every site that has it, in execution order."""
        return {s: self.readings[s][name] for s in self.sites if name in self.readings[s]}


@jax.custom_vjp
def watch_cotangent(x: Array, into: Moments, mask: Array | None = None) -> Array:
    """Identity on `x`; in the backward pass the gradient of `into` is the cotangent's moments."""
    del into, mask
    return x


def _watch_forward(x: Array, into: Moments, mask: Array | None) -> tuple[Array, Array | None]:
    del into
    return x, mask


def _watch_backward(mask: Array | None, cotangent: Array) -> tuple[Array, Moments, None]:
    return cotangent, Moments.of(cotangent, mask), None


watch_cotangent.defvjp(_watch_forward, _watch_backward)
