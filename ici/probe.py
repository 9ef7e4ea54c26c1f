"""Probes: which sites to watch, with which statistics, how often; and what they bring back."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax import Array

from ici.errors import InputError
from ici.measure.statistics import Moments, Statistic, statistic


@dataclass(frozen=True)
class Site:
    """One place that can be watched: the input of one module.

    Attributes:
      name: module path joined by ``/``; ``#i`` marks the i-th call of a module called repeatedly.
      module: the module's class.
      has_weights: whether the module itself (not a child) owns parameters.
    """

    name: str
    module: type
    has_weights: bool

    @property
    def is_norm(self) -> bool:
        """Whether the class is named as a normalization layer."""
        return "norm" in self.module.__name__.lower()


Select = str | type | tuple[type, ...] | Callable[[Site], bool] | None


@dataclass(frozen=True)
class Probe:
    """Watches the inputs of layers of an unmodified Flax module.

    Attributes:
      select: what to watch. None: every layer that has weights, and every norm. A string: a path
        pattern such as ``"blocks/*/linear"``. A module type or a tuple of them. Or a predicate
        on `Site`.
      stats: names of the statistics to compute (``"moments"``, ``"extremes"``, or registered).
      every: steps between two probed training steps; steps 0, every, 2·every, … are probed and
        the steps between them run a program without probes.
      cotangents: also take moments of the loss gradient with respect to each site's values.
    """

    select: Select = None
    stats: tuple[str, ...] = ("moments",)
    every: int = 10
    cotangents: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise InputError(f"probe every is {self.every}: wanted a number of steps >= 1.")
        if isinstance(self.stats, str):
            raise InputError(f"probe stats is {self.stats!r}: wanted a tuple of names.")
        object.__setattr__(self, "stats", tuple(self.stats))
        if not self.stats:
            raise InputError("probe stats is empty: wanted at least one, such as 'moments'.")
        for name in self.stats:
            statistic(name)
        types = self.select if isinstance(self.select, tuple) else ()
        if not all(isinstance(entry, type) for entry in types) or not (
            self.select is None or isinstance(self.select, str | tuple) or callable(self.select)
        ):
            raise InputError(
                f"probe select is {self.select!r}: wanted None, a path pattern, a module type, a "
                "tuple of module types, or a predicate on Site."
            )

    def wants(self, site: Site) -> bool:
        """Whether `site` is selected."""
        select = self.select
        if select is None:
            return site.has_weights or site.is_norm
        if isinstance(select, str):
            return fnmatch.fnmatchcase(site.name, select)
        if isinstance(select, type | tuple):
            return issubclass(site.module, select)
        return bool(select(site))

    def read(self, x: Array) -> dict[str, Statistic]:
        """The statistics of one site's values ``x[..., D]``, by name."""
        return {name: statistic(name).of(x) for name in self.stats}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Taps(Mapping[str, Any]):
    """What a probe saw: statistics per site, in execution order.

    ``taps["blocks/3/linear"]`` is the site's first statistic (`Moments` by default);
    ``taps.stat("extremes")`` maps every site to another one; ``taps.cotangents`` maps every site
    to the `Moments` of the loss gradient there (empty unless asked for). ``taps.features`` holds
    the number of features of each site.
    """

    readings: dict[str, dict[str, Statistic]]
    cotangents: dict[str, Moments]
    sites: tuple[str, ...] = field(metadata={"static": True})
    stats: tuple[str, ...] = field(metadata={"static": True})
    features: tuple[int, ...] = field(metadata={"static": True})

    def __getitem__(self, site: str) -> Any:
        return self.readings[site][self.stats[0]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def stat(self, name: str) -> dict[str, Statistic]:
        """One statistic at every site, in execution order."""
        return {site: self.readings[site][name] for site in self.sites}


@jax.custom_vjp
def watch_cotangent(x: Array, into: Moments) -> Array:
    """Identity on `x`; in the backward pass the gradient of `into` is the cotangent's moments."""
    del into
    return x


def _watch_forward(x: Array, into: Moments) -> tuple[Array, None]:
    del into
    return x, None


def _watch_backward(_: None, cotangent: Array) -> tuple[Array, Moments]:
    return cotangent, Moments.of(cotangent)


watch_cotangent.defvjp(_watch_forward, _watch_backward)
