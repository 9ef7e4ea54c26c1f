"""Flax modules as pure functions: the one file that knows NNX from Linen.

Both adapters give a `Model` whose variables are plain pytrees and whose ``apply`` can watch the
inputs of the module's layers from outside: during the trace, calls of the selected layers first
sow *already reduced* statistics of what they receive.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ici.errors import InputError
from ici.measure.statistics import Moments
from ici.probe import Probe, Site, Taps
from ici.sites import Sinks, collect, input_first, read, watchable

PyTree = Any
_TAP = "ici_input"


class Variables(NamedTuple):
    """Everything a model carries: trained parameters, and state (running statistics, RNG)."""

    params: PyTree
    state: PyTree


@dataclass(frozen=True)
class Model:
    """A module as two pure functions.

    ``init(key, inputs) -> Variables`` and
    ``apply(variables, inputs, train=True, probe=None, sinks=None) -> (out, state, taps)``, where
    ``taps`` is a `Taps` when a probe is given and None otherwise. ``sinks`` maps site names to
    empty `Moments` whose gradients are the cotangent moments (`cotangent_sinks` makes them).
    """

    init: Callable[..., Variables]
    apply: Callable[..., tuple[Any, PyTree, Taps | None]]
    name: str = "model"

    def taps_shape(self, variables: Variables, inputs: Any, probe: Probe) -> Taps:
        """The taps of one forward pass as shapes, without computing it.

        Raises:
          InputError: the probe selects nothing; the message lists what could be selected.
        """
        taps = jax.eval_shape(
            lambda v, x: self.apply(v, x, train=True, probe=probe)[2], variables, inputs
        )
        assert taps is not None
        return taps

    def cotangent_sinks(
        self, variables: Variables, inputs: Any, probe: Probe
    ) -> dict[str, Moments]:
        """Empty moments for every site of `probe`: differentiate with respect to them."""
        taps = self.taps_shape(variables, inputs, probe)
        return {s: Moments.empty(d) for s, d in zip(taps.sites, taps.features, strict=True)}


# -- conventions for training and evaluation ---------------------------------------------------

_TRAIN_ARGUMENTS = ("train", "training", "is_training")
_EVAL_ARGUMENTS = ("deterministic", "use_running_average")


def _mode_arguments(call: Callable[..., Any], train: bool) -> dict[str, bool]:
    """The mode keywords that `call` takes, by the names Flax code uses for them."""
    parameters = inspect.signature(call).parameters
    return {name: train for name in _TRAIN_ARGUMENTS if name in parameters} | {
        name: not train for name in _EVAL_ARGUMENTS if name in parameters
    }


# -- NNX ---------------------------------------------------------------------------------------


class _Tap(nnx.Variable):
    """Holds the readings of one module during a capture."""


_WATCHED = itertools.count()
_PATCH = threading.RLock()


@contextlib.contextmanager
def _patched_calls(types: set[type], before: Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]):
    """Runs `before(module, args) -> args` ahead of ``__call__`` of exactly these classes.

    Python looks ``__call__`` up on the class, so the class is what must be patched; only for the
    duration of a trace, one trace at a time.
    """

    def wrap(cls: type, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            # A subclass reaching here through super() has been seen under its own class.
            if type(self) is cls:
                args, kwargs = input_first(original, args, kwargs)
                args = before(self, args)
            return original(self, *args, **kwargs)

        # The signature tells which mode keywords the module takes.
        return functools.wraps(original)(call)

    with _PATCH:
        originals = {cls: cls.__call__ for cls in types}
        own = {cls for cls in types if "__call__" in vars(cls)}
        try:
            for cls, original in originals.items():
                cls.__call__ = wrap(cls, original)
            yield
        finally:
            for cls, original in originals.items():
                if cls in own:
                    cls.__call__ = original
                else:
                    del cls.__call__


def _path(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(part) for part in path)


class _Nnx:
    """The NNX side of `Model`."""

    def __init__(self, factory: Callable[[nnx.Rngs], nnx.Module], call: Callable[..., Any] | None):
        if isinstance(factory, nnx.Module):
            raise InputError(
                f"from_nnx: got a {type(factory).__name__}: wanted a function that builds one, "
                "such as lambda rngs: Net(rngs=rngs)."
            )
        self.factory = factory
        self.call = call
        abstract = nnx.eval_shape(lambda: factory(nnx.Rngs(0)))
        if not isinstance(abstract, nnx.Module):
            raise InputError(
                f"from_nnx: the factory returned {type(abstract).__name__}: wanted a function "
                "from nnx.Rngs to an nnx.Module."
            )
        self.name = type(abstract).__name__
        self.types = {type(m) for _, m in nnx.iter_modules(abstract) if callable(m)}
        self.graph, *states = nnx.split(abstract, nnx.Param, ...)
        # Plain dictionaries sort their keys on their own terms, so remember which leaf is which.
        self.structures, self.orders, self.pure = [], [], []
        self.leaves: dict[tuple[str, ...], Any] = {}
        for state in states:
            leaves, structure = jax.tree.flatten(state)
            numbered = nnx.to_pure_dict(jax.tree.unflatten(structure, range(len(leaves))))
            self.structures.append(structure)
            self.orders.append(jax.tree.leaves(numbered))
            self.pure.append(jax.tree.structure(numbered))
            for path, variable in nnx.to_flat_state(state):
                self.leaves[_path(path)] = variable.get_value()
        self.weights = {_path(path)[:-1] for path, _ in nnx.to_flat_state(states[0])}

    def _state(self, index: int, pure: PyTree) -> Any:
        leaves = jax.tree.leaves(pure)
        placed: list[Any] = [None] * len(self.orders[index])
        if jax.tree.structure(pure) != self.pure[index]:
            raise InputError(
                f"variables with {len(leaves)} arrays given to {self.name}, which has "
                f"{len(placed)}, under the same names: wanted what this model's init returned."
            )
        for position, leaf in zip(self.orders[index], leaves, strict=True):
            placed[position] = leaf
        return jax.tree.unflatten(self.structures[index], placed)

    def init(self, key: Array, inputs: Any = None) -> Variables:
        del inputs  # NNX modules know their shapes
        _, *states = nnx.split(self.factory(nnx.Rngs(key)), nnx.Param, ...)
        return Variables(*(nnx.to_pure_dict(state) for state in states))

    def apply(
        self,
        variables: Variables,
        inputs: Any,
        *,
        train: bool = True,
        probe: Probe | None = None,
        sinks: dict[str, Moments] | None = None,
    ) -> tuple[Any, PyTree, Taps | None]:
        states = [self._state(i, pure) for i, pure in enumerate(variables)]
        module = nnx.merge(self.graph, *states, copy=True)
        module.train() if train else module.eval()

        def run(m: Any) -> Any:
            if self.call is not None:
                return self.call(m, inputs, train)
            return m(inputs, **_mode_arguments(type(m).__call__, train))

        if probe is None:
            out, taps = run(module), None
        else:
            out, taps = self._watched(module, run, probe, sinks)
        _, _, state = nnx.split(module, nnx.Param, ...)
        return out, nnx.to_pure_dict(state), taps

    def _watched(self, module: Any, run: Any, probe: Probe, sinks: Any) -> tuple[Any, Taps]:
        order = itertools.count()
        paths: dict[int, str] = {}
        for path, m in nnx.iter_modules(module):
            paths[id(m)] = "/".join(_path(path)) or type(m).__name__
            # nnx.jit, remat and scan reuse the trace of an equal module, and with it readings
            # taken for another layer, model or probe. A number of its own sets each apart.
            m._ici_watched = next(_WATCHED)  # pyright: ignore[reportAttributeAccessIssue]
        watched = Sinks(sinks)

        def before(m: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            if not (args and watchable(args[0]) and hasattr(m, "__captures__")):
                return args
            path = paths.get(id(m))
            if not m.__captures__[0]._can_update:
                site = Site(str(path), type(m), tuple(str(path).split("/")) in self.weights)
                if probe.wants(site):
                    raise InputError(
                        f"{site.name} is called inside a transformation of plain JAX, which no "
                        "reading can leave: wanted nnx.vmap, nnx.scan, nnx.remat or nnx.jit "
                        "there, or a probe that selects other layers."
                    )
                return args
            m.sow(_Tap, _TAP, read(probe, args[0], next(order), type(m)))
            return args if path is None else watched.watch(args, path)

        with _patched_calls(self.types, before):
            out, captured = nnx.capture(run, _Tap)(module)
        readings = [
            (_path(path[:-1]), variable.get_value())
            for path, variable in nnx.to_flat_state(captured)
        ]
        return out, collect(probe, readings, self.leaves, self.weights, watched)


def from_nnx(
    factory: Callable[[nnx.Rngs], nnx.Module], *, call: Callable[..., Any] | None = None
) -> Model:
    """A `Model` from any NNX module, unmodified.

    Args:
      factory: builds the module: ``lambda rngs: Net(rngs=rngs)``.
      call: ``call(module, inputs, train) -> out`` for modules with another signature than
        ``module(inputs)``. ``train()``/``eval()`` is called on the module in any case, and
        keywords named train, training, is_training, deterministic or use_running_average are
        filled in.

    Raises:
      InputError: the factory does not return an ``nnx.Module``.
    """
    adapter = _Nnx(factory, call)
    return Model(adapter.init, adapter.apply, adapter.name)


# -- Linen -------------------------------------------------------------------------------------


class _Linen:
    """The Linen side of `Model`. State holds the mutable collections and the RNG."""

    def __init__(
        self, module: nn.Module, call: Callable[..., Any] | None, rng_streams: tuple[str, ...]
    ):
        self.module = module
        self.call = call
        self.rng_streams = rng_streams

    def _run(self, module: Any, inputs: Any, train: bool) -> Any:
        if self.call is not None:
            return self.call(module, inputs, train)
        return module(inputs, **_mode_arguments(type(module).__call__, train))

    def init(self, key: Array, inputs: Any) -> Variables:
        params_key, state_key = jax.random.split(key)
        streams = {
            name: jax.random.fold_in(state_key, i) for i, name in enumerate(self.rng_streams)
        }
        variables = nn.init(lambda m: self._run(m, inputs, False), self.module)(
            {"params": params_key, **streams}
        )
        collections = {k: v for k, v in variables.items() if k not in ("params", "intermediates")}
        rng = {"key": state_key, "count": jnp.uint32(0)}
        return Variables(variables.get("params", {}), {"collections": collections, "rng": rng})

    def apply(
        self,
        variables: Variables,
        inputs: Any,
        *,
        train: bool = True,
        probe: Probe | None = None,
        sinks: dict[str, Moments] | None = None,
    ) -> tuple[Any, PyTree, Taps | None]:
        params, state = variables
        rng = state["rng"]
        key = jax.random.fold_in(rng["key"], rng["count"])
        streams = {name: jax.random.fold_in(key, i) for i, name in enumerate(self.rng_streams)}
        collections = state["collections"]
        order = itertools.count()
        watched = Sinks(sinks)

        def tap(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            m = context.module
            args, kwargs = input_first(context.orig_method, args, kwargs)
            if context.method_name != "__call__" or not (args and watchable(args[0])):
                return next_call(*args, **kwargs)
            assert probe is not None
            m.sow(_TAP, _TAP, read(probe, args[0], next(order), type(m)))
            path = "/".join(m.path) or type(m).__name__
            return next_call(*watched.watch(args, path), **kwargs)

        # In evaluation too: a BatchNorm that always uses the batch writes, to be dropped below.
        mutable = [*collections, *([_TAP] if probe else ())]
        with nn.intercept_methods(tap) if probe else contextlib.nullcontext():
            out, updated = nn.apply(
                lambda m: self._run(m, inputs, train), self.module, mutable=mutable
            )({"params": params, **collections}, rngs=streams)
        updated = dict(updated)
        captured = updated.pop(_TAP, {})
        # What the module sows grows with every call: it is an output, not a state.
        kept = {
            k: v
            for k, v in updated.items()
            if train and jax.tree.structure(v) == jax.tree.structure(collections[k])
        }
        new_state = {
            "collections": {**collections, **kept},
            "rng": {"key": rng["key"], "count": rng["count"] + jnp.uint32(train)},
        }
        if probe is None:
            return out, new_state, None
        leaves = _flat(nn.meta.unbox(params))
        weights = {path[:-1] for path in leaves}
        return out, new_state, collect(probe, _sown(captured), leaves, weights, watched)


def _flat(tree: PyTree) -> dict[tuple[str, ...], Any]:
    return {
        tuple(str(entry.key) for entry in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _sown(captured: PyTree, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found = []
    for key, value in captured.items():
        if key == _TAP:
            found.append((path, value))
        else:
            found += _sown(value, (*path, key))
    return found


def from_linen(
    module: nn.Module,
    *,
    call: Callable[..., Any] | None = None,
    rng_streams: tuple[str, ...] = ("dropout",),
) -> Model:
    """A `Model` from any Linen module, unmodified.

    Args:
      module: the module, such as ``ResNet(stages=...)``.
      call: ``call(module, inputs, train) -> out`` for another signature than ``module(inputs)``;
        keywords named train, training, is_training, deterministic or use_running_average are
        filled in without it.
      rng_streams: names of the random streams the module draws from besides ``params``.

    Raises:
      InputError: `module` is not a Linen module instance.
    """
    if not isinstance(module, nn.Module):
        raise InputError(
            f"from_linen: got {type(module).__name__}: wanted a flax.linen module instance."
        )
    adapter = _Linen(module, call, rng_streams)
    return Model(adapter.init, adapter.apply, type(module).__name__)
