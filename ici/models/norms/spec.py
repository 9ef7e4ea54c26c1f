"""Norms by name and options, such as ``"batch:ghost=32,momentum=0.99"``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, get_args

from flax import nnx

from ici.errors import InputError, unknown_name
from ici.models.norms.weight import WeightNormConv, WeightNormLinear

Layout = Literal["vector", "sequence", "image"]
Limit = tuple[str, Callable[[Any], bool]]


class NormFactory(Protocol):
    """Builds a normalization layer for ``features`` channels on the last axis.

    Further keyword-only parameters are options, which a spec can set: ``*, strength: float = 1.0``
    takes ``"mine:strength=2"``. A keyword ``layout`` is told "vector", "sequence" or "image".
    """

    def __call__(self, features: int, *, rngs: nnx.Rngs, **options: Any) -> nnx.Module: ...


@dataclass(frozen=True)
class Entry:
    """What is registered under a name."""

    factory: Callable[..., nnx.Module]
    options: Mapping[str, inspect.Parameter]
    takes_any: bool
    takes_layout: bool
    centres: Callable[..., bool]
    over_batch: bool
    limits: Mapping[str, Limit]


_NORMS: dict[str, Entry] = {}


def register(
    name: str,
    *,
    centres: bool | Callable[..., bool] = False,
    over_batch: bool = False,
    limits: Mapping[str, Limit] | None = None,
) -> Callable[[Callable[..., nnx.Module]], Callable[..., nnx.Module]]:
    """Decorator: makes a factory available as ``norm="name"``.

    Args:
      name: what experiments call it.
      centres: whether it subtracts each feature's own mean over the batch or over the positions of
        an image; or a function of the options given. A bias just before such a norm has no effect,
        so models leave it out.
      over_batch: whether its statistics are taken over examples, so that it needs several.
      limits: for an option, the values it may have, in words and as a predicate.
    """

    def add(factory: Callable[..., nnx.Module]) -> Callable[..., nnx.Module]:
        told = factory.func if isinstance(factory, partial) else factory
        told = told.__init__ if isinstance(told, type) else told
        try:
            parameters = inspect.signature(told, eval_str=True).parameters
        except NameError:  # annotations that only a type checker can resolve
            parameters = inspect.signature(told).parameters
        given = {"rngs", "layout", *getattr(factory, "keywords", ())}  # what a partial has set
        options = {
            p.name: p
            for p in parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.name not in given
        }
        _NORMS[name] = Entry(
            factory,
            options,
            takes_any=any(p.kind is p.VAR_KEYWORD for p in parameters.values()),
            takes_layout="layout" in parameters,
            centres=centres if callable(centres) else lambda **_: bool(centres),
            over_batch=over_batch,
            limits=limits or {},
        )
        return factory

    return add


def names() -> tuple[str, ...]:
    """The registered names."""
    return tuple(_NORMS)


@dataclass(frozen=True)
class Norm:
    """A norm with its options; `parse` makes one.

    Attributes:
      name: as registered.
      options: the options that the spec sets, as pairs of name and value.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        listed = ",".join(f"{key}={_written(value)}" for key, value in self.options)
        return f"{self.name}:{listed}" if listed else self.name

    @property
    def _entry(self) -> Entry:
        if self.name not in _NORMS:
            raise unknown_name("norm", self.name, names())
        return _NORMS[self.name]

    @property
    def makes_bias_redundant(self) -> bool:
        """Whether a bias just before it is cancelled.

        The gradient of such a bias is rounding noise around 0, which Adam scales up to full steps:
        it would wander, and show up as a shift that no layer's function takes part in.
        """
        return self._entry.centres(**dict(self.options))

    @property
    def needs_batch(self) -> bool:
        """Whether its statistics are taken over the examples of a batch."""
        return self._entry.over_batch

    @property
    def is_local(self) -> bool:
        """Whether its statistics are those of each device's part of the batch."""
        return bool(dict(self.options).get("local", False))

    def check_batch(self, batch_size: int) -> None:
        """Checks the number of examples that statistics are taken over.

        Args:
          batch_size: examples that one step's forward pass sees; for a norm with `is_local`, those
            of one device.

        Raises:
          InputError: statistics of one example, which say nothing of a distribution; or a ghost
            batch that does not divide `batch_size`.
        """
        if not self.needs_batch:
            return
        ghost = dict(self.options).get("ghost")
        if ghost is not None and batch_size % ghost:
            raise InputError(
                f"norm {self} and a batch of {batch_size}: wanted ghost batches that divide it."
            )
        size = ghost or batch_size
        if size < 2:
            where = " on each device" if self.is_local else ""
            raise InputError(
                f"norm {self} would take its statistics over {size} example{where}: wanted at "
                "least 2; use 'instance' (images) or 'layer', or a larger batch."
            )

    def layer(self, features: int, *, layout: Layout = "vector", rngs: nnx.Rngs) -> nnx.Module:
        """The layer: same shape in and out.

        Args:
          features: channels, on the last axis.
          layout: "vector" for ``x[B, D]``; "sequence" for ``x[B, T, D]``, where every norm but
            those over the batch works per position; "image" for ``x[B, H, W, C]``.
          rngs: random numbers, for norms that use any.

        Raises:
          InputError: a layout that the norm has no statistics for, or groups that do not divide
            the features.
        """
        if layout not in get_args(Layout):
            raise unknown_name("layout", layout, get_args(Layout))
        entry = self._entry
        told = {"layout": layout} if entry.takes_layout else {}
        return entry.factory(features, rngs=rngs, **told, **dict(self.options))

    def linear(self, in_features: int, out_features: int, **settings: Any) -> nnx.Linear:
        """``nnx.Linear`` with these settings; weight-normalised where this is the norm "weight".

        Its random numbers are those of the plain layer, and at initialisation so is its function.
        """
        kind = WeightNormLinear if self.name == "weight" else nnx.Linear
        return kind(in_features, out_features, **self._of_weights(), **settings)

    def conv(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, ...],
        *,
        strides: int = 1,
        padding: str | tuple[tuple[int, int], ...] = "SAME",
        **settings: Any,
    ) -> nnx.Conv:
        """``nnx.Conv`` with these settings; weight-normalised where this is the norm "weight".

        Args:
          in_features: channels of ``x[B, ..., C]``.
          out_features: channels of the result.
          kernel_size: extents of the window, one per spatial axis.
          strides: step of the window, the same along every axis.
          padding: "SAME", "VALID", or (before, after) for each spatial axis.
          **settings: as of ``nnx.Conv``: use_bias, kernel_init, dtype, rngs.
        """
        kind = WeightNormConv if self.name == "weight" else nnx.Conv
        settings |= {"strides": (strides,) * len(kernel_size), "padding": padding}
        return kind(in_features, out_features, kernel_size, **self._of_weights(), **settings)

    def _of_weights(self) -> dict[str, Any]:
        return dict(self.options) if self.name == "weight" else {}


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def parse(spec: str) -> Norm:
    """The norm that a spec such as ``"batch"`` or ``"batch:ghost=32,momentum=0.99"`` means.

    Raises:
      InputError: unknown name or option, or a value that the option does not take.
    """
    if not isinstance(spec, str):
        raise InputError(f"norm is {spec!r}: wanted a name such as 'batch' or 'batch:ghost=32'.")
    name, colon, rest = (part.strip() for part in spec.partition(":"))
    norm = Norm(name)
    entry = norm._entry
    options: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if not key or not equals or not text or key in options:
            fault = "twice" if key in options else "not option=value"
            raise InputError(
                f"norm {spec!r}: {part.strip()!r} is {fault}; wanted a spec such as "
                "'batch:ghost=32,momentum=0.99'."
            )
        if key not in entry.options and not (entry.takes_any and key not in ("rngs", "layout")):
            if not entry.options:
                raise InputError(f"norm {spec!r}: {name!r} takes no options; use {name!r}.")
            raise unknown_name(f"option of norm {name!r}", key, tuple(entry.options))
        options[key] = _value(spec, key, text, entry)
    return Norm(name, tuple(options.items()))


_TYPES = {int: "an integer", float: "a number", bool: "true or false", type(None): "none"}


def _value(spec: str, key: str, text: str, entry: Entry) -> Any:
    """`text` as a value of the option's annotated type; without one, as what it looks like."""
    parameter = entry.options.get(key)
    annotation = parameter.annotation if parameter else inspect.Parameter.empty
    kinds = get_args(annotation) or (annotation,)
    if not set(kinds) <= {*_TYPES, str}:
        kinds = (int, float, bool, type(None), str)
    for kind in kinds:
        try:
            value = _READ[kind](text)
        except (ValueError, KeyError):
            continue
        words, holds = entry.limits.get(key, ("", lambda _: True))
        if not holds(value):
            raise InputError(f"norm {spec!r}: {key} is {text}; wanted {words}.")
        return value
    wanted = " or ".join(_TYPES[kind] for kind in kinds)
    raise InputError(f"norm {spec!r}: {key} is {text!r}; wanted {wanted}.")


_READ: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: float,
    str: str,
    bool: lambda text: {"true": True, "false": False}[text.lower()],
    type(None): lambda text: {"none": None}[text.lower()],
}


def check_norm(spec: str) -> str:
    """`spec` itself. Raises `InputError` when it is no norm, as `parse` does."""
    parse(spec)
    return spec


def makes_bias_redundant(spec: str) -> bool:
    """Whether a bias just before the norm `spec` is cancelled by it."""
    return parse(spec).makes_bias_redundant


def make_norm(spec: str, features: int, *, rngs: nnx.Rngs, layout: Layout = "vector") -> nnx.Module:
    """The layer that `spec` means. Raises `InputError` as `parse` and `Norm.layer` do."""
    return parse(spec).layer(features, layout=layout, rngs=rngs)
