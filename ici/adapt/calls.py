"""What the calls of one trace look like, whichever Flax API the modules come from."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ici.probe import Probe
from ici.sites import Silent
from ici.tags import Mark, tag

Path = tuple[str, ...]
_NUMBER = itertools.count()


@dataclass(frozen=True)
class Layer:
    """A module as one call finds it.

    Attributes:
      path: in the tree of variables.
      module: its class.
      has_weights: whether it owns parameters.
      weight: any variable at or below it, as the call sees it; None if it has none.
      stacked: whether that variable has fewer axes here than in the tree: it is one row.
    """

    path: Path
    module: type
    has_weights: bool
    weight: Any
    stacked: bool


@dataclass(frozen=True)
class _Active:
    path: Path
    module: type
    weight: Any
    stack: Path | None


class Calls:
    """Tags the calls of one trace. ``numbered``: equal marks may stand for different layers."""

    def __init__(self, probe: Probe, numbered: bool):
        self.probe = probe
        self.numbered = numbered
        self.active: list[_Active] = []
        self.silent: dict[Path, Silent] = {}
        self.tagged: set[Path] = set()

    @contextmanager
    def inside(self, layer: Layer) -> Iterator[_Active]:
        """Marks `layer` as being called."""
        above = next(
            (a for a in reversed(self.active) if a.path == layer.path[: len(a.path)]), None
        )
        weight, stack = layer.weight, above.stack if above else None
        if weight is None and above is not None:
            weight = above.weight
        if stack is None and layer.stacked:
            stack = layer.path
        self.active.append(_Active(layer.path, layer.module, weight, stack))
        try:
            yield self.active[-1]
        finally:
            self.active.pop()

    def tag(
        self, layer: Layer, active: _Active, call: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with their floating-point arrays tagged."""
        leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=_is_argument)
        arrays = {id(leaf): leaf for leaf in leaves if watchable(leaf)}
        if not arrays:
            self.silent.setdefault(
                layer.path,
                Silent(layer.path, layer.module, layer.has_weights, _why(leaves)),
            )
            return args, kwargs
        self.tagged.add(layer.path)
        names = _names(call, args, kwargs) if len(arrays) > 1 else {}
        tagged = {
            key: tag(
                Mark(
                    path=layer.path,
                    module=layer.module,
                    argument=names.get(key, ""),
                    has_weights=layer.has_weights,
                    stack=active.stack,
                    call=next(_NUMBER) if self.numbered else None,
                ),
                [jnp.asarray(array)],
                active.weight,
            )[0]
            for key, array in arrays.items()
        }
        return jax.tree.unflatten(structure, [tagged.get(id(leaf), leaf) for leaf in leaves])

    def attention(
        self,
        operands: dict[str, Any],
        settings: dict[str, Any],
        refused: str,
    ) -> tuple[Any, Any]:
        """Query and key of an attention that the innermost active module calls, tagged."""
        inner = self.active[-1] if self.active else _Active((), object, None, None)
        mark = Mark(
            path=inner.path,
            module=inner.module,
            stack=inner.stack,
            where="attention",
            operands=tuple(operands),
            settings=tuple(settings.items()),
            call=next(_NUMBER) if self.numbered else None,
            refused=refused,
        )
        query, key, *_ = tag(mark, list(operands.values()), inner.weight)
        return query, key


def watchable(x: Any) -> bool:
    """Whether `x` is an array with statistics worth taking."""
    return (
        isinstance(x, jax.Array | np.ndarray)
        and x.ndim >= 1
        and jnp.issubdtype(x.dtype, jnp.floating)
    )


def _is_argument(x: Any) -> bool:
    # Containers are opened, modules and whatever else is a pytree are not.
    return not isinstance(x, list | tuple | dict)


def _why(leaves: list[Any]) -> str:
    dtypes = [str(x.dtype) for x in leaves if isinstance(x, jax.Array | np.ndarray)]
    if not dtypes:
        return "it is called without an array"
    return f"its input is {dtypes[0]}, not a floating-point array with axes"


def _names(call: Callable[..., Any], args: Any, kwargs: Any) -> dict[int, str]:
    """What each array among the arguments is called: ``carry.0``, ``inputs``."""
    try:
        arguments = inspect.signature(call).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        arguments = {str(i): arg for i, arg in enumerate(args)} | kwargs
    found, _ = jax.tree_util.tree_flatten_with_path(dict(arguments), is_leaf=_is_argument)
    names: dict[int, str] = {}
    for path, leaf in found:
        names.setdefault(id(leaf), jax.tree_util.keystr(path, simple=True, separator="."))
    return names
